"""The itemised bill as text: for people whose job would die twenty minutes in, and for those who read the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from willfit._render import sentences
from willfit._render.paper import Paper
from willfit._units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from willfit._footprint import Footprint
    from willfit._replay import PhasePeak

_STYLES: Final = {"DOES NOT FIT": "bold red", "TIGHT": "bold yellow", "FITS": "bold green", "NO VERDICT": "bold"}
_LARGEST = 5  # modules and source lines shown
_MOST_COLUMNS = 4  # steps shown side by side
_BEFORE_BAR = 49  # columns of a row that its bar leaves to the figures


def bill_text(footprint: Footprint, *, brief: bool = False, color: bool = False, width: int | None = None) -> str:
    """The itemised bill of a footprint, without a newline at the end.

    Sizes are in GiB with two decimals, MiB below 1 GiB. No words of it are those by which programs recognise an
    error of CUDA's, so it may stand in an exception's message.

    Args:
        footprint: what `willfit.predict` returned.
        brief: True leaves it at the verdict, the figures and where memory runs out.
        color: True puts in ANSI codes, for a terminal; else the text is plain.
        width: columns, at least 64; 80 by default.
    """
    paper = Paper(color=color, width=width)
    _header(paper, footprint)
    _bill(paper, footprint, explain=not brief)
    _where(paper, footprint)
    if brief:
        return paper.text()
    _phases(paper, footprint)
    _largest(paper, "Modules that hold most at the peak", footprint.modules, footprint.peak_allocated)
    _largest(paper, "Source lines that hold most at the peak", footprint.sources, footprint.peak_allocated)
    if footprint.assumptions:
        paper.title("Assumed")
        for sentence in footprint.assumptions:
            paper.item(sentence)
    return paper.text()


def _header(paper: Paper, footprint: Footprint) -> None:
    verdict, sentence = sentences.headline(footprint)
    story = sentences.story(footprint)
    paper.paragraph((f"{verdict}: ", _STYLES[verdict]), f"{sentence} {story}".rstrip())
    paper.line()
    paper.paragraph(sentences.job_line(footprint))


def _bill(paper: Paper, footprint: Footprint, *, explain: bool) -> None:
    peak = sentences.peak_phase(footprint)
    where = f", in {sentences.moment(peak.step, peak.phase)}" if peak is not None else ""
    paper.title(f"What holds the memory at the peak{where}")
    rows = _Rows(paper, footprint, explain)
    paper.line((f"  {'':<16} {'size':>11} {'B/param':>9} {'share':>6}", "dim"))
    for role, size in sorted(footprint.bill.items(), key=lambda item: -item[1]):
        if size:
            rows.item(role, size, sentences.role_sentence(role, footprint))
    rows.rule()
    rows.item("peak allocated", footprint.peak_allocated, "the most that tensors hold at one time")
    cached = footprint.peak_reserved - footprint.peak_allocated
    rows.sum("+ cache", cached, "freed blocks that PyTorch keeps for later, and the gaps between blocks")
    rows.sum("+ CUDA context", footprint.context, "the driver's part and the kernels, outside of PyTorch")
    rows.rule()
    rows.sum("= needed", footprint.required, "")
    _against_the_card(rows, footprint)
    if footprint.convolution_workspace:
        bound = format_size(footprint.convolution_workspace)
        paper.paragraph(f"cuDNN may take up to {bound} more for convolutions, not counted here.", indent=2)


def _against_the_card(rows: _Rows, footprint: Footprint) -> None:
    device = footprint.device
    if device is None:
        return
    room, needed = sentences.room(footprint), footprint.required
    if footprint.reserved_at_capacity is not None and footprint.reserved_at_capacity < footprint.peak_reserved:
        given_back = footprint.peak_reserved - footprint.reserved_at_capacity
        rows.sum("- given back", given_back, "cached memory that PyTorch frees when the card is full")
        needed -= given_back
    rows.sum("the card", room, f"{device.name}: {sentences.what_it_has(device)}")
    if needed > room:
        rows.sum("missing", needed - room, "", start=room, style=_STYLES["DOES NOT FIT"])
    else:
        rows.sum("left", room - needed, "", start=needed, style=_STYLES["FITS"])
    for process in device.other_processes:
        rows.note(f"also on this GPU: {process}")


class _Rows:
    """Rows of the bill: figures, a bar on one scale for all, and a sentence below if it is to explain them."""

    def __init__(self, paper: Paper, footprint: Footprint, explain: bool) -> None:
        self._paper = paper
        self._explain = explain
        self._parameters = footprint.job.parameters
        self._peak = footprint.peak_allocated
        room = 0 if footprint.device is None else sentences.room(footprint)
        self._cell = max(1.0, max(footprint.required, room) / (paper.width - _BEFORE_BAR))

    def item(self, name: str, size: int, sentence: str) -> None:
        """A row of the bill itself: with bytes a parameter, and its share of the peak."""
        each = f"{size / self._parameters:.2f}" if self._parameters else ""
        self._row(name, size, each if len(each) <= 9 else "", _share(size, self._peak), sentence)

    def sum(self, name: str, size: int, sentence: str, *, start: int = 0, style: str = "bold") -> None:
        """A row of the sum below the bill; its bar may start where another ends."""
        self._row(name, size, "", "", sentence, start, style)

    def rule(self) -> None:
        self._paper.line(("  " + "-" * (self._paper.width - 2), "dim"))

    def note(self, sentence: str) -> None:
        self._paper.paragraph((sentence, "dim"), indent=6)

    def _row(
        self, name: str, size: int, each: str, share: str, sentence: str, start: int = 0, style: str = "bold"
    ) -> None:
        first, last = round(start / self._cell), round((start + size) / self._cell)
        bar = " " * first + "#" * (last - first)
        figures = f" {format_size(size):>11} {each:>9} {share:>6}  "
        self._paper.line("  ", (f"{name:<16}", style), figures, (bar, style if "red" in style else "cyan"))
        if sentence and self._explain:
            self.note(sentence)


def _share(part: int, whole: int) -> str:
    percent = 100 * part / whole if whole else 0.0
    return "< 1 %" if 0 < percent < 1 else f"{percent:.0f} %"


def _where(paper: Paper, footprint: Footprint) -> None:
    if footprint.out_of_memory is None:
        return
    where, asked = sentences.place_sentences(footprint)
    paper.title("Where memory runs out")
    paper.paragraph((where, "bold red"), indent=2)
    paper.paragraph(asked, indent=2)


def _phases(paper: Paper, footprint: Footprint) -> None:
    if not footprint.phases:
        return
    table = _phase_table(footprint.phases)
    names = list(dict.fromkeys(phase for column in table for phase in column[1]))
    rows = [(name, *(format_size(column[1][name]) if name in column[1] else "" for column in table)) for name in names]
    paper.title("Peak allocated in each phase")
    paper.columns(rows, ("", *(heading for heading, _ in table)), right=len(table))


def _phase_table(phases: Iterable[PhasePeak]) -> list[tuple[str, dict[str, int]]]:
    """A column for placement and for each step: heading, and the peak of each phase. Like steps share a column."""
    steps: dict[int, dict[str, int]] = {}
    for each in phases:
        column = steps.setdefault(each.step, {})
        column[each.phase] = max(column.get(each.phase, 0), each.peak_allocated)
    runs: list[tuple[int, int, dict[str, int]]] = []
    for step, column in steps.items():
        if runs and runs[-1][2] == column:
            runs[-1] = (runs[-1][0], step, column)
        else:
            runs.append((step, step, column))
    if len(runs) > _MOST_COLUMNS:
        runs = [*runs[: _MOST_COLUMNS - 1], runs[-1]]
    return [(_heading(first, last), column) for first, last, column in runs]


def _heading(first: int, last: int) -> str:
    if first == 0:
        return "before"
    return f"step {first}" if first == last else f"steps {first}-{last}"


def _largest(paper: Paper, title: str, largest: tuple[tuple[str, int], ...], peak: int) -> None:
    if largest:
        paper.title(title)
        paper.columns([(name, format_size(size), _share(size, peak)) for name, size in largest[:_LARGEST]], right=2)
