"""Advice as text: what fits, what helps, what does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from willfit._render import sentences
from willfit._render.paper import GLUE, Paper
from willfit._units import format_size

if TYPE_CHECKING:
    from willfit._advice import Advice, Option

_SHOWN: Final = 3
_ROWS: Final = 10


def advice_text(advice: Advice, *, everything: bool = False, color: bool = False, width: int | None = None) -> str:
    """The options that fit, at most three unless everything is asked for, with their code; then what else was tried.

    Args:
        advice: what to render.
        everything: True shows every option and every change that was tried.
        color: True puts in ANSI codes, for a terminal; else the text is plain.
        width: columns, at least 64; 80 by default.
    """
    paper = Paper(color=color, width=width)
    _header(paper, advice)
    shown = advice.options if everything else advice.options[:_SHOWN]
    for number, option in enumerate(shown, start=1):
        _option(paper, number, option)
    if rest := advice.options[len(shown) :]:
        _names(paper, "These fit as well", [" + ".join(option.titles) for option in rest])
    rows = advice.partial if everything else advice.partial[:_ROWS]
    if rows:
        paper.title(
            "Helps, but not enough by itself" if advice.footprint.verdict == "does not fit" else "Helps as well"
        )
        paper.columns([_row(option) for option in rows], ("change", "needs", "less by", "costs"), right=0)
    if everything:
        _names(paper, "Would save nothing", advice.unhelpful)
        if advice.not_applicable:
            paper.title("Does not apply")
            for name, reason in advice.not_applicable:
                paper.item(f"{name}: {reason}")
    _elsewhere(paper, advice)
    return paper.text()


def _header(paper: Paper, advice: Advice) -> None:
    footprint, name = advice.footprint, advice.device.name
    needs, has = format_size(footprint.required), format_size(sentences.room(footprint))
    if footprint.verdict != "does not fit":
        paper.paragraph((f"What would take less on {name}", "bold"), f": the job fits, and needs {needs} of {has}.")
    elif advice.options:
        paper.paragraph((f"What would make it fit on {name}", "bold"), f": it needs {needs}, and there are {has}.")
    else:
        paper.paragraph(
            (f"Nothing that was tried makes it fit on {name}", "bold red"), f": it needs {needs}, and there are {has}."
        )


def _option(paper: Paper, number: int, option: Option) -> None:
    paper.line()
    style = "bold green" if option.fits else "bold"
    paper.paragraph((f"{number}. {' + '.join(option.titles)}", style))
    needs = format_size(option.footprint.required)
    paper.paragraph(f"{str(option.verdict).upper()}: needs {needs}, {format_size(option.saved)} less", indent=3)
    for cost in dict.fromkeys(option.costs):
        paper.paragraph(cost, indent=3)
    if moved := _transfers(option):
        paper.paragraph(moved, indent=3)
    if option.packages:
        missing = f" (not installed here: pip install {' '.join(option.missing)})" if option.missing else ""
        paper.paragraph(f"takes {', '.join(option.packages)}{missing}", indent=3)
    paper.line()
    for line in option.code.split("\n"):
        paper.verbatim(f"       {line}" if line else "")


def _transfers(option: Option) -> str:
    """What crosses the link in each step, and what that takes: bytes, and a bound on time."""
    device, transfers, seconds = option.footprint.device, option.transfers, option.transfer_seconds
    if device is None or transfers is None or seconds is None or device.host_bandwidth is None:
        return ""
    parts = [f"{format_size(transfers.to_host)} to the host"] if transfers.to_host > 0 else []
    parts += [f"{format_size(transfers.to_gpu)} to the GPU"] if transfers.to_gpu > 0 else []
    parts += [f"up to {format_size(transfers.paged)} each way of pages"] if transfers.paged > 0 else []
    sentence = (
        f"moves {' and '.join(parts)} in each step: at least {seconds:.2g} s at the link's "
        f"{device.host_bandwidth / 1e9:.0f} GB/s"
    )
    if device.memory_bandwidth is not None:
        sentence += f", {device.memory_bandwidth / device.host_bandwidth:.0f} times less than its own memory's"
    return sentence


def _row(option: Option) -> tuple[str, ...]:
    title = " + ".join(option.titles)
    return (title, format_size(option.footprint.required), format_size(option.saved), option.disruption)


def _names(paper: Paper, title: str, names: list[str] | tuple[str, ...]) -> None:
    if names:
        paper.title(title)
        paper.paragraph(", ".join(name.replace(" ", GLUE) for name in names), indent=2)


def _elsewhere(paper: Paper, advice: Advice) -> None:
    if advice.footprint.verdict != "does not fit":
        return
    if advice.cards:
        names = ", ".join(name.replace(" ", GLUE) for name in advice.cards[:5])
        paper.title("As it is, it fits on")
        paper.paragraph(names + (f" and {len(advice.cards) - 5} more" if len(advice.cards) > 5 else ""), indent=2)
    if shares := [share for share in advice.shares if share.fits]:
        least = min(shares, key=lambda share: (share.gpus, share.stage))
        paper.title("Or on several of this GPU (by arithmetic on the trace of one)")
        paper.paragraph(
            f"sharded over {least.gpus} of them with ZeRO stage {least.stage}: {format_size(least.size)} of tensors on "
            "each, without what communication takes",
            indent=2,
        )
