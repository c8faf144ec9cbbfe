from __future__ import annotations

import re
import sys
from array import array
from dataclasses import replace
from typing import Any

import pytest
from rich.cells import cell_len

from willfit._allocator_settings import AllocatorSettings
from willfit._devices import Device, find_device, resolve_device
from willfit._footprint import Footprint
from willfit._render.devices import devices_text
from willfit._render.fits import fits_text
from willfit._render.sentences import card, count
from willfit._render.text import bill_text
from willfit._replay import OutOfMemoryPlace, PhasePeak
from willfit._trace.trace import ROLES, JobSummary, Mark, Role, Trace
from willfit._units import format_size

GIB = 2**30
LLAMA = 8_030_261_248

# What accelerate.utils.memory.should_reduce_batch_size looks for.
SWALLOWED = ("CUDA out of memory.", "CUDNN_STATUS_NOT_SUPPORTED.", "DefaultCPUAllocator: can't allocate memory")


def footprint(device: Device | None = None, bill: dict[Role, int] | None = None, **changes: Any) -> Footprint:
    """A footprint of 8 GiB at its peak, as wanted."""
    full: dict[Role, int] = dict.fromkeys(ROLES, 0)
    full.update(bill if bill is not None else {"parameters": 6 * GIB, "activations": 2 * GIB})
    peak = sum(full.values())
    facts: dict[str, Any] = {
        "device": device,
        "job": JobSummary("Net", "SGD", 3 * GIB, 3 * GIB, (("bfloat16", 3 * GIB),), "x 8 x 1024"),
        "steps": 3,
        "peak_allocated": peak,
        "peak_reserved": peak + GIB,
        "context": 0 if device is None else device.context,
        "bill": full,
        "phases": (
            PhasePeak(0, "placement", 6 * GIB, 6 * GIB, 6 * GIB),
            *(PhasePeak(n, "forward", peak, peak + GIB, peak) for n in (1, 2, 3)),
        ),
        "modules": (("layers.0", 4 * GIB), ("(inputs)", 512)),
        "sources": (("train.py:12", 4 * GIB),),
        "timeline": ((0, 512, 2 * 2**20),),
        "verdict": None if device is None else "fits",
        "out_of_memory": None,
        "retries": 0,
        "reserved_at_capacity": None if device is None else peak + GIB,
        "convolution_workspace": 0,
        "assumptions": (),
        "_trace": Trace((), array("q"), (Mark(0, 0, "placement"),), JobSummary("Net", "SGD", 0, 0, (), "")),
        "_settings": AllocatorSettings(),
    }
    return Footprint(**{**facts, **changes})


def llama_on_t4() -> Footprint:
    """Full fine-tuning of Llama-3-8B in bfloat16 with AdamW: 16 GB of weights, three times that beside them."""
    weights = 2 * LLAMA
    t4 = find_device("T4")
    return footprint(
        t4,
        {"parameters": weights, "gradients": weights, "optimizer states": 2 * weights, "temporaries": weights},
        job=JobSummary("LlamaForCausalLM", "AdamW", LLAMA, LLAMA, (("bfloat16", LLAMA),), "input_ids 1 x 512"),
        phases=(PhasePeak(1, "optimizer step", 5 * weights, 5 * weights + GIB, weights),),
        verdict="does not fit",
        reserved_at_capacity=None,
        out_of_memory=OutOfMemoryPlace(
            step=0,
            phase="placement",
            module="model.layers.27.mlp.down_proj",
            op="aten._to_copy.default",
            source="finetune_llama.py:37",
            requested=112 * 2**20,
            allocated=15_400_000_000,
            reserved=15_500_000_000,
            free=t4.capacity - 15_500_000_000,
            capacity=t4.capacity,
        ),
    )


def long_names() -> Footprint:
    """All that could break a line: names without blanks, a long batch, wide characters, sizes of every length."""
    return footprint(
        Device(name="an accelerator of a maker whose names are long " * 2, total=10**15, compute_capability=(8, 0)),
        dict.fromkeys(ROLES, 1_023 * GIB),
        job=JobSummary("Ω" * 90, "Opt" * 40, 7, 3, (("bfloat16", 4), ("float32", 3)), "image 3 x 1024, " * 12),
        phases=tuple(PhasePeak(n, "forward", n * GIB, n * GIB, 0) for n in range(1, 30)),
        modules=(("model." + "layers_" * 30, 5 * GIB), ("模型" * 50, GIB), ("", 1)),
        sources=(("/home/somebody/" + "very_long_directory/" * 8 + "train.py:12345", GIB),),
        assumptions=("word " * 60, "x" * 200),
        convolution_workspace=10**9,
    )


def tight() -> Footprint:
    toy = Device(name="toy", total=8 * GIB + GIB // 2, context=0)
    return footprint(toy, verdict="tight", retries=3, reserved_at_capacity=8 * GIB)


ALL = {
    "llama": llama_on_t4,
    "no device": footprint,
    "fits": lambda: footprint(find_device("A100-80GB")),
    "tight": tight,
    "long names": long_names,
    "nothing": lambda: footprint(None, {}, phases=(), modules=(), sources=()),
    "no parameters": lambda: footprint(None, job=JobSummary("Net", "", 0, 0, (), "")),
}


def words(text: str) -> str:
    """The text with its lines joined: what it says, wherever it is wrapped."""
    return " ".join(text.split())


def sizes(text: str, name: str) -> list[str]:
    """The sizes in the rows of this name."""
    return re.findall(rf"^  {re.escape(name)} +([0-9.]+ [KMG]?i?B)", text, re.MULTILINE)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("width", [None, 64, 100])
def test_no_line_is_wider_than_asked(name: str, width: int | None) -> None:
    for line in bill_text(ALL[name](), width=width).splitlines():
        assert cell_len(line) <= (width or 80), line
        assert line == line.rstrip()


@pytest.mark.parametrize("name", ALL)
def test_plain_text_has_no_control_characters_and_no_words_that_programs_look_for(name: str) -> None:
    text = bill_text(ALL[name]())
    assert not [c for c in text if c != "\n" and not c.isprintable()]
    assert "out of memory" not in words(text).lower()
    assert not [phrase for phrase in SWALLOWED if phrase in words(text)]


@pytest.mark.parametrize("name", [name for name in ALL if name != "long names"])
def test_it_is_ascii_but_for_names(name: str) -> None:
    assert bill_text(ALL[name]()).isascii()


@pytest.mark.parametrize("name", ALL)
def test_colour_changes_nothing_but_colour(name: str) -> None:
    coloured = bill_text(ALL[name](), color=True)
    assert "\x1b[" in coloured
    uncoloured = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in uncoloured.splitlines()] == bill_text(ALL[name]()).splitlines()


def test_str_is_plain_whatever_the_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = bill_text(llama_on_t4())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "200", "TERM": "xterm-256color", "CLICOLOR_FORCE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert str(llama_on_t4()) == plain


def test_each_role_that_holds_something_has_one_row_with_its_bytes() -> None:
    bill: dict[Role, int] = {role: (place + 1) * GIB for place, role in enumerate(ROLES)}
    text = bill_text(footprint(None, bill))
    for role, size in bill.items():
        assert sizes(text, role) == [format_size(size)]
    assert sizes(text, "peak allocated") == [format_size(sum(bill.values()))]


def test_a_role_that_holds_nothing_has_no_row() -> None:
    text = bill_text(footprint())
    assert sizes(text, "parameters")
    assert sizes(text, "activations")
    for role in set(ROLES) - {"parameters", "activations"}:
        assert not sizes(text, role)


def test_shares_and_bytes_per_parameter_are_of_the_peak_and_the_models_parameters() -> None:
    row = next(line for line in bill_text(footprint()).splitlines() if line.startswith("  parameters"))
    assert row.split()[1:6] == ["6.00", "GiB", "2.00", "75", "%"]


def test_what_is_added_to_the_peak_comes_to_what_is_needed() -> None:
    text = bill_text(footprint(Device(name="toy", total=16 * GIB, context=2 * GIB)))
    assert sizes(text, "peak allocated") == ["8.00 GiB"]
    assert sizes(text, "+ cache") == ["1.00 GiB"]
    assert sizes(text, "+ CUDA context") == ["2.00 GiB"]
    assert sizes(text, "= needed") == ["11.00 GiB"]
    assert sizes(text, "the card") == ["16.00 GiB"]
    assert sizes(text, "left") == ["5.00 GiB"]
    assert not sizes(text, "missing")


def test_llama_on_a_t4_tells_the_story() -> None:
    subject = llama_on_t4()
    text, said = bill_text(subject), words(bill_text(subject))
    assert said.startswith("DOES NOT FIT: training LlamaForCausalLM with AdamW needs 75.92 GiB on a T4, ")
    assert "which has 14.58 GiB: 61.34 GiB missing." in said
    assert "The parameters alone exceed what it can hold, and training takes 5.1 times their size." in said
    assert "8.03 billion parameters, all trainable, in bfloat16" in said
    assert "2.0 tensors the size of the trainable parameters, kept by AdamW" in said
    assert "between steps: momentum and variance" in said
    assert "working copies of the optimizer step, 1.0 times the trainable parameters" in said
    assert sizes(text, "missing") == [format_size(subject.missing)]
    where = said.partition("Where memory runs out")[2]
    assert where.startswith(" in the placement of model and batch, module model.layers.27.mlp.down_proj, ")
    assert "operator aten._to_copy.default, at finetune_llama.py:37 Tried to allocate 112.00 MiB." in where
    assert "a total capacity of 14.58 GiB of which 15.0" not in where
    assert f"of which {format_size(find_device('T4').capacity - 15_500_000_000)} is free" in where


def test_a_tight_fit_says_why_and_what_is_given_back() -> None:
    text, said = bill_text(tight()), words(bill_text(tight()))
    assert said.startswith("TIGHT: training Net with SGD needs 9.00 GiB on a toy, which has 8.50 GiB.")
    assert "only by giving cached memory back and asking the driver again, 3 times; 512.00 MiB left." in said
    assert sizes(text, "- given back") == ["1.00 GiB"]
    assert sizes(text, "left") == ["512.00 MiB"]


def test_a_tight_fit_for_want_of_room_for_convolutions_says_so() -> None:
    toy = Device(name="toy", total=10 * GIB, context=0)
    said = words(bill_text(footprint(toy, verdict="tight", convolution_workspace=2 * GIB)))
    assert "That leaves 1.00 GiB, and cuDNN may take up to 2.00 GiB more for convolutions." in said


def test_without_a_device_there_is_no_verdict_and_it_says_what_gives_one() -> None:
    text = bill_text(footprint())
    assert text.startswith("NO VERDICT: training Net with SGD needs 9.00 GiB.")
    assert 'on="T4"' in words(text)
    assert not sizes(text, "the card")


def test_nothing_is_said_of_an_optimizer_that_is_not_known() -> None:
    own = JobSummary("Net", "MyOptimizer", GIB, GIB, (("float32", GIB),), "")
    said = words(bill_text(footprint(None, {"parameters": 4 * GIB, "optimizer states": 8 * GIB}, job=own)))
    assert "2.0 tensors the size of the trainable parameters, kept by MyOptimizer between steps" in said
    assert "momentum" not in said


@pytest.mark.parametrize("states", [GIB, 12 * GIB])
def test_adam_is_said_to_keep_two_means_only_if_it_keeps_as_much(states: int) -> None:
    adam = JobSummary("Net", "Adam", GIB, GIB, (("float32", GIB),), "")
    assert "momentum" not in bill_text(footprint(None, {"parameters": 4 * GIB, "optimizer states": states}, job=adam))


def test_no_ratio_is_given_where_the_bytes_of_trainable_parameters_are_not_known() -> None:
    lora = JobSummary("Net", "AdamW", 3 * GIB, GIB, (("uint8", 2 * GIB), ("float32", GIB)), "")
    said = words(bill_text(footprint(None, {"parameters": 6 * GIB, "optimizer states": 8 * GIB}, job=lora)))
    assert "kept by AdamW from one step to the next" in said
    assert "training 33.3 % of Net with AdamW" in said


def test_activations_are_said_to_be_for_backward_only_if_that_is_still_to_come() -> None:
    bill: dict[Role, int] = {"activations": GIB}
    for phase, said in (("backward", "backward needs"), ("optimizer step", "something still holds")):
        peak = PhasePeak(1, phase, GIB, GIB, 0)  # type: ignore[arg-type]
        assert said in bill_text(footprint(None, bill, phases=(peak,)))


def test_like_steps_share_a_column() -> None:
    text = bill_text(footprint())
    assert re.search(r"^ +before +steps 1-3$", text, re.MULTILINE)
    rows = [line for line in text.splitlines() if line.startswith("  forward")]
    assert [re.findall(r"[0-9.]+ GiB", row) for row in rows] == [["8.00 GiB"]]


def test_phases_that_come_twice_in_a_step_have_the_larger_peak() -> None:
    twice = (
        PhasePeak(1, "forward", GIB, GIB, 0),
        PhasePeak(1, "backward", GIB, GIB, 0),
        PhasePeak(1, "forward", 3 * GIB, 3 * GIB, 0),
    )
    text = bill_text(footprint(phases=twice))
    assert re.search(r"^  forward +3.00 GiB$", text, re.MULTILINE)


def test_five_modules_and_no_more() -> None:
    text = bill_text(footprint(modules=tuple((f"layers.{n}", GIB) for n in range(9))))
    assert "layers.4" in text
    assert "layers.5" not in text


def test_other_processes_on_the_gpu_are_named() -> None:
    shared = replace(find_device("T4"), other_processes=("python (pid 1234): 3.20 GiB",))
    assert "also on this GPU: python (pid 1234): 3.20 GiB" in bill_text(footprint(shared))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("T4", "a T4"),
        ("A100-80GB", "an A100-80GB"),
        ("H100-80GB", "an H100-80GB"),
        ("L4", "an L4"),
        ("RTX 4090", "an RTX 4090"),
        ("Titan RTX", "a Titan RTX"),
        ("Quadro RTX 6000", "a Quadro RTX 6000"),
        ("24 GiB", "a card of 24 GiB"),
        ("toy", "a toy"),
    ],
)
def test_cards_have_the_right_article(name: str, said: str) -> None:
    assert card(Device(name=name, total=GIB, context=0)) == said


def test_a_number_stays_with_its_unit() -> None:
    for width in range(64, 90):
        for line in bill_text(llama_on_t4(), width=width).splitlines():
            assert not re.match(r" *([KMG]?i?B|%)\b", line), line


def test_a_capacity_that_was_given_is_named_as_it_was_given() -> None:
    limited = Device(name="toy", total=16 * GIB, context=GIB, available=8 * GIB)
    said = words(bill_text(footprint(limited, verdict="does not fit", reserved_at_capacity=None)))
    assert "needs 9.00 GiB for tensors and cache on a toy, which may hold 8.00 GiB of them: 1.00 GiB missing." in said
    alone = resolve_device(None, "8 GiB")
    assert "on a card of compute capability 8.0, which may hold 8.00 GiB of them" in words(bill_text(footprint(alone)))


def test_a_gpu_of_this_process_is_named_as_such() -> None:
    assert card(Device(name="Tesla T4", total=GIB, context=0, index=1)) == "the Tesla T4 here (cuda:1)"


def test_counts() -> None:
    assert [count(n) for n in (0, 999_999, 10**6, 10**12)] == ["0", "999,999", "1.00 million", "1.00 trillion"]


def test_the_table_of_devices_has_a_row_for_each_and_marks_totals_that_are_assumed() -> None:
    known, assumed = find_device("T4"), find_device("A30")
    text = devices_text((known, assumed))
    assert re.search(r"^  T4 +14.58 GiB +15.66 GB +14.45 GiB +7.5$", text, re.MULTILINE)
    assert re.search(r"^  A30 \* ", text, re.MULTILINE)
    assert "*" not in devices_text((known,))
    assert all(cell_len(line) <= 80 for line in text.splitlines())


def test_the_table_of_fits_shows_what_fits_and_names_the_rest() -> None:
    small = llama_on_t4()
    large = footprint(find_device("A100-80GB"))
    text = fits_text({"T4": small, "A100-80GB": large, "H100-80GB": "flash_attn cannot run here"})
    assert words(text).startswith("FITS 1 of the 3 GPUs that willfit knows: training ")
    assert re.search(r"^  A100-80GB +fits +9.40 GiB +79.15 GiB +69.75 GiB$", text, re.MULTILINE)
    assert re.search(r"^It does not fit\n  T4$", text, re.MULTILINE)
    assert "Could not be predicted\n  H100-80GB\n  flash_attn cannot run here" in text
    assert all(cell_len(line) <= 80 for line in text.splitlines())


def test_a_job_that_fits_no_gpu_shows_the_largest() -> None:
    text = fits_text({"T4": llama_on_t4()})
    assert text.startswith("FITS 0 of the 1 GPUs that willfit knows")
    assert re.search(r"^  T4 +does not fit +75.92 GiB +14.58 GiB +-61.34 GiB$", text, re.MULTILINE)


def test_in_short_it_is_the_verdict_and_the_figures() -> None:
    shown = footprint(find_device("T4"))
    full, brief = bill_text(shown).splitlines(), bill_text(shown, brief=True).splitlines()
    rest = iter(full)
    assert all(line in rest for line in brief), "nothing is said otherwise, only less"
    assert len(brief) < len(full)
    assert any(line.startswith("  parameters          6.00 GiB") for line in brief)
    assert not any("the weights of the model" in line or "Peak allocated in each phase" in line for line in brief)
