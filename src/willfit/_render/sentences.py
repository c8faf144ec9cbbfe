"""The facts of a footprint in plain sentences, true for the job at hand: they say nothing that its figures do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from willfit._units import format_size

if TYPE_CHECKING:
    from willfit._devices import Device
    from willfit._footprint import Footprint
    from willfit._replay import PhasePeak
    from willfit._trace.trace import Role

# Bytes of an element, by the name that torch gives the dtype.
_ELEMENT_SIZES: Final = {
    **dict.fromkeys(("bool", "uint8", "int8", "float8_e4m3fn", "float8_e5m2"), 1),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("float32", "int32", "uint32", "complex32"), 4),
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    "complex128": 16,
}

# torch's optimizers with a running mean and a running mean of squares of each gradient (amsgrad: and its maximum).
_TWO_MEANS: Final = frozenset({"Adam", "AdamW", "NAdam", "RAdam"})


def count(number: int, *, of: str = "") -> str:
    """A number of elements as people say it.

    >>> count(8_030_261_248), count(124_439_808), count(61_706), count(999)
    ('8.03 billion', '124.44 million', '61,706', '999')
    """
    for unit, name in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million")):
        if number >= unit:
            return f"{number / unit:.2f} {name}{of}"
    return f"{number:,}{of}"


def card(device: Device) -> str:
    """A device within a sentence: "a T4", "an RTX 4090", "a card of 24 GiB", "the Tesla T4 here (cuda:0)".

    >>> from willfit._devices import Device
    >>> card(Device(name="RTX 4090", total=24 * 2**30))
    'an RTX 4090'
    """
    name = device.name
    if device.index is not None:
        return f"the {name} here (cuda:{device.index})"
    if name.startswith("a capacity of "):
        return "a card of compute capability 8.0"
    if name[:1].isdigit() or name.startswith("."):
        return f"a card of {name}"
    spelled = len(name) > 1 and not name[1].islower()  # "RTX" is said letter by letter, "Titan" is not
    return f"{'an' if name[:1] in ('AEFHILMNORSX' if spelled else 'AEIOUaeiou') else 'a'} {name}"


def peak_phase(footprint: Footprint) -> PhasePeak | None:
    """The phase in which allocated first equals its peak."""
    return next((each for each in footprint.phases if each.peak_allocated == footprint.peak_allocated), None)


def moment(step: int, phase: str) -> str:
    """A moment of the job: "the placement of model and batch", "the backward of step 2"."""
    return "the placement of model and batch" if phase == "placement" else f"the {phase} of step {step}"


def room(footprint: Footprint) -> int:
    """Bytes that the device has for the process, context included."""
    assert footprint.capacity is not None
    return footprint.capacity + footprint.context


def headline(footprint: Footprint) -> tuple[str, str]:
    """The verdict in a word, and the sentence that goes with it."""
    device = footprint.device
    needs = f"{training(footprint)} needs {format_size(footprint.required)}"
    if device is None:
        return "NO VERDICT", f'{needs}. No GPU was named and none was found here: name one, as in on="T4".'
    if device.index is not None:
        on = f"on {card(device)}, which has {format_size(room(footprint))} for this process now"
    elif device.available is None:
        on = f"on {card(device)}, which has {format_size(room(footprint))}"
    else:  # a capacity that was given: the context is no part of it
        needs = f"{training(footprint)} needs {format_size(footprint.peak_reserved)} for tensors and cache"
        on = f"on {card(device)}, which may hold {format_size(device.capacity)} of them"
    if footprint.verdict == "does not fit":
        missing = f": {format_size(footprint.missing)} missing" if footprint.missing else ""
        return "DOES NOT FIT", f"{needs} {on}{missing}."
    left = left_over(footprint)
    if footprint.verdict == "fits":
        return "FITS", f"{needs} {on}: {format_size(left)} left."
    return "TIGHT", f"{needs} {on}. {tightness(footprint)}"


def what_it_has(device: Device) -> str:
    """What a device has, so that nobody need guess whether it is GB or GiB."""
    held = f"tensors and cache may take {format_size(device.capacity)}"
    return held if device.available is not None else f"{device.total / 10**9:.2f} GB in all, of which {held}"


def left_over(footprint: Footprint) -> int:
    """Bytes of the card that the run, as it goes at the card's capacity, does not take."""
    assert footprint.capacity is not None
    taken = footprint.peak_reserved if footprint.reserved_at_capacity is None else footprint.reserved_at_capacity
    return footprint.capacity - taken


def tightness(footprint: Footprint) -> str:
    """Why a run is tight, in a sentence."""
    left = format_size(left_over(footprint))
    if footprint.retries:
        times = "once" if footprint.retries == 1 else f"{footprint.retries} times"
        return f"It gets through only by giving cached memory back and asking the driver again, {times}; {left} left."
    if left_over(footprint) < footprint.convolution_workspace:
        bound = format_size(footprint.convolution_workspace)
        return f"That leaves {left}, and cuDNN may take up to {bound} more for convolutions."
    return f"That leaves only {left}."


def story(footprint: Footprint) -> str:
    """What the figures come to, where something stands out; else ""."""
    parameters, required = footprint.bill["parameters"], footprint.required
    if footprint.capacity is None or footprint.verdict != "does not fit" or not parameters:
        return ""
    times = f"{required / parameters:.1f} times their size"
    if parameters > footprint.capacity:
        return f"The parameters alone exceed what it can hold, and training takes {times}."
    alone = [role for role, size in footprint.bill.items() if size > footprint.capacity]
    if alone:
        return f"The {alone[0]} alone exceed what it can hold."
    return f"The parameters alone would fit; training takes {times}." if 2 <= required / parameters < 20 else ""


def job_line(footprint: Footprint) -> str:
    """The job in a line: parameters, dtypes, batch, steps."""
    job = footprint.job
    dtypes = " and ".join([name if len(job.dtypes) == 1 else f"{count(number)} {name}" for name, number in job.dtypes])
    trained = "all trainable" if job.trainable == job.parameters else f"{count(job.trainable)} trainable"
    parts = [f"{count(job.parameters)} parameters, {trained}" + (f", in {dtypes}" if dtypes else "")]
    if job.batch:
        parts.append(f"batch: {job.batch}")
    followed = f"followed through {footprint.steps} step{'s' if footprint.steps > 1 else ''}"
    if footprint.engine == "emulated":
        followed += ", run by PyTorch's own CUDA code on an emulated GPU"
    parts.append(followed)
    return "; ".join(parts) + "."


def role_sentence(role: Role, footprint: Footprint) -> str:
    """What one row of the bill is, true for this job."""
    return _SENTENCES[role](footprint)


def place_sentences(footprint: Footprint) -> tuple[str, str]:
    """Where memory runs out, and what PyTorch's own error would say there."""
    place, device = footprint.out_of_memory, footprint.device
    assert place is not None
    assert device is not None
    where = [f"in {moment(place.step, place.phase)}"]
    where += [f"module {place.module}"] if place.module else []
    where += [f"operator {place.op}"] if place.op not in ("", place.phase) else []
    where += [f"at {place.source}"] if place.source else []
    asked = (
        f"Tried to allocate {format_size(place.requested)}. "
        f"The GPU has a total capacity of {format_size(place.capacity + footprint.context)} "
        f"of which {format_size(place.free)} is free. "
        f"Of the memory in use {format_size(place.allocated)} is allocated by PyTorch, "
        f"{format_size(place.reserved - place.allocated)} is reserved by PyTorch but unallocated, "
        f"and {format_size(footprint.context)} is the CUDA context."
    )
    return ", ".join(where), asked


def training(footprint: Footprint) -> str:
    """The job as the subject of a sentence: "training LlamaForCausalLM with AdamW"."""
    job = footprint.job
    if not job.optimizer:
        return f"forward and backward of {job.model}, without an optimizer,"
    part = "" if job.trainable == job.parameters else f" {_percent(job.trainable, job.parameters)} of"
    return f"training{part} {job.model} with {job.optimizer}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


def _trainable_bytes(footprint: Footprint) -> int | None:
    """Bytes of the trainable parameters; None where the summary does not tell."""
    job = footprint.job
    if any(name not in _ELEMENT_SIZES for name, _ in job.dtypes):
        return None
    if job.trainable == job.parameters:
        return sum(number * _ELEMENT_SIZES[name] for name, number in job.dtypes)
    return job.trainable * _ELEMENT_SIZES[job.dtypes[0][0]] if len(job.dtypes) == 1 else None


def _relative(role: Role, footprint: Footprint) -> float | None:
    """Bytes of a role relative to those of the trainable parameters; None where that is not known."""
    trainable = _trainable_bytes(footprint)
    return footprint.bill[role] / trainable if trainable else None


def _parameters(footprint: Footprint) -> str:
    dtypes = " and ".join(name for name, _ in footprint.job.dtypes)
    return f"the weights of the model: {count(footprint.job.parameters)}" + (f", in {dtypes}" if dtypes else "")


def _buffers(footprint: Footprint) -> str:
    return "tensors of the model that are not trained, such as masks and running means"


def _gradients(footprint: Footprint) -> str:
    ratio = _relative("gradients", footprint)
    if ratio is not None and ratio < 0.9:
        return f"of the trainable parameters; at the peak those for {100 * ratio:.0f} % of their bytes exist"
    return "one for each trainable parameter, from backward until zero_grad()"


def _optimizer_states(footprint: Footprint) -> str:
    optimizer = footprint.job.optimizer or "the step"
    ratio = _relative("optimizer states", footprint)
    if ratio is None:
        return f"kept by {optimizer} from one step to the next"
    size = f"{ratio:.1f} tensors the size of the trainable parameters, kept by {optimizer} between steps"
    if optimizer in _TWO_MEANS and 1.9 <= ratio <= 2.1:
        return f"{size}: momentum and variance"
    return size


def _activations(footprint: Footprint) -> str:
    peak = peak_phase(footprint)
    if peak is not None and peak.phase in ("forward", "backward"):
        return "results of forward that backward needs; they grow with the batch"
    return "results of forward that something still holds"


def _inputs(footprint: Footprint) -> str:
    return f"the batch: {footprint.job.batch}" if footprint.job.batch else "the batch"


def _workspaces(footprint: Footprint) -> str:
    return "scratch memory that libraries such as cuBLAS take once and keep"


def _temporaries(footprint: Footprint) -> str:
    peak = peak_phase(footprint)
    if peak is None:
        return "what operators make and drop again"
    ratio = _relative("temporaries", footprint)
    if peak.phase == "optimizer step" and ratio is not None and ratio >= 0.05:
        return f"working copies of the optimizer step, {ratio:.1f} times the trainable parameters, dropped after it"
    return f"what operators make and drop again, here in {moment(peak.step, peak.phase)}"


_SENTENCES: Final = {
    "parameters": _parameters,
    "buffers": _buffers,
    "gradients": _gradients,
    "optimizer states": _optimizer_states,
    "activations": _activations,
    "inputs": _inputs,
    "workspaces": _workspaces,
    "temporaries": _temporaries,
}
