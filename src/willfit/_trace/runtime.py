"""What torch.cuda answers while a job is traced."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import patch

import torch
import torch.utils._foreach_utils

from willfit._devices import Device
from willfit._trace.bitsandbytes import bitsandbytes_runtime
from willfit._trace.cuda import accumulation, autocast
from willfit._trace.fake import CUDA, FakeCudaTensor
from willfit._trace.following import phases_and_modules
from willfit._trace.made_before import autocast_contexts_enabled
from willfit._trace.masks import masks_as_under_tracing
from willfit._trace.overrides import overrides_enabled
from willfit._trace.recorder import Recorder
from willfit._trace.surroundings import nothing_left_behind
from willfit._trace.triton import triton_kernels_not_launched
from willfit._trace.trl import trl_as_with_triton

__all__ = ["cuda_runtime", "nothing_left_behind"]

_optim = sys.modules["torch.optim.optimizer"]  # torch.optim binds the name ``optimizer`` to something else
_Generator = torch.Generator


class _Stream:
    """A CUDA stream: a number that allocations are filed under. There are 32 of them, given out in turns.

    Source: kStreamsPerPool and get_idx in c10/cuda/CUDAStream.cpp; each priority has such a pool.
    """

    _given: ClassVar[Counter[int]] = Counter()

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.stream_id = self.cuda_stream = 1 + _Stream._given[priority] % 32 + 32 * abs(priority)
        _Stream._given[priority] += 1
        self.device = CUDA
        self.priority = priority

    def is_capturing(self) -> bool:
        """No CUDA graph is being captured."""
        return False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: True  # wait_stream, synchronize, query: events are over at once


class _DeviceContext:
    """``with torch.cuda.device(0):``; there is one device."""

    def __init__(self, device: Any = None) -> None:
        self.idx, self.prev_idx = 0, -1

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


class _AnyGenerator(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _Generator)


class _CpuGenerator(metaclass=_AnyGenerator):
    """``torch.Generator(device="cuda")``, which only a build for CUDA makes: one of the CPU's serves as well."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return _Generator()


class _Event(_Stream):
    """A CUDA event: it is over at once."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.device = CUDA


def _default_stream() -> _Stream:
    stream = _Stream.__new__(_Stream)
    stream.stream_id = stream.cuda_stream = stream.priority = 0
    stream.device = CUDA
    return stream


def _cuda_answers(recorder: Recorder, device: Device) -> dict[str, Any]:
    """Functions of torch.cuda, as they answer on the target."""
    default = _default_stream()
    current = [default]

    @contextmanager
    def on_stream(stream: _Stream | None) -> Iterator[None]:
        if stream is None:
            yield
            return
        current.append(stream)
        recorder.change_stream(stream.stream_id)
        try:
            yield
        finally:
            current.pop()
            recorder.change_stream(current[-1].stream_id)

    def nothing(*_: Any, **__: Any) -> None:
        return None

    def zero(*_: Any, **__: Any) -> int:
        return 0

    major, minor = device.compute_capability
    properties = SimpleNamespace(
        name=device.driver_name or device.name,
        major=major,
        minor=minor,
        total_memory=device.total,
        multi_processor_count=device.multiprocessors,
        warp_size=32,
    )
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_initialized": lambda: True,
        "get_device_name": lambda *_: device.driver_name or device.name,
        "get_device_capability": lambda *_: device.compute_capability,
        "get_device_properties": lambda *_: properties,
        "is_bf16_supported": lambda including_emulation=True: including_emulation or major >= 8,
        "is_current_stream_capturing": lambda: False,
        "mem_get_info": lambda *_: (device.capacity, device.total),
        "device": _DeviceContext,
        "device_of": _DeviceContext,
        "default_generators": (_Generator(),),
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "get_rng_state_all": lambda *_: [torch.zeros(16, dtype=torch.uint8)],
        "empty_cache": recorder.empty_cache,
        "Stream": _Stream,
        "Event": _Event,
        "stream": on_stream,
        "current_stream": lambda *_: current[-1],
        "default_stream": lambda *_: default,
        "memory_stats": lambda *_: defaultdict(int),
        "memory_summary": lambda *_, **__: "",
        "memory_snapshot": lambda *_: [],
    }
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        answers[name] = zero
    for name in (
        *("set_device", "synchronize", "_lazy_init", "init", "set_rng_state", "set_rng_state_all", "ipc_collect"),
        *("manual_seed", "manual_seed_all", "seed", "seed_all", "reset_peak_memory_stats", "set_stream"),
        *("reset_max_memory_allocated", "set_per_process_memory_fraction"),
    ):
        answers[name] = nothing
    return answers


@contextmanager
def cuda_runtime(recorder: Recorder, device: Device) -> Iterator[None]:
    """Let torch.cuda answer as on the target, while the recorder is at work."""
    accumulation.holders_of_an_unshared_gradient()
    answers = [
        *((torch.cuda, name, answer) for name, answer in _cuda_answers(recorder, device).items()),
        *((torch.accelerator, name, answer) for name, answer in _accelerator_answers(recorder).items()),
        (torch, "Generator", _CpuGenerator),
        (torch, "Stream", _Stream),
        (torch, "Event", _Event),
        (torch, "save", _not_saved(recorder)),
        (torch.Tensor, "pin_memory", lambda tensor, *_, **__: tensor),
        (torch.UntypedStorage, "clone", _cloned_storage(recorder)),
    ]
    answers = [answer for answer in answers if hasattr(*answer[:2])]
    with ExitStack() as stack:
        # first: dynamo looks at torch.cuda when it is imported
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_imports_mended({id(answer): getattr(owner, name) for owner, name, answer in answers}))
        for answer in answers:
            stack.enter_context(patch.object(*answer))
        # GradScaler and checkpointing ask this; a real context of this process must not be touched
        stack.enter_context(patch.object(torch.cuda, "_initialized", False))
        for name in ("range_push", "range_pop", "mark"):
            stack.enter_context(patch.object(torch.cuda.nvtx, name, lambda *_: None))
        stack.enter_context(autocast_contexts_enabled(recorder))
        stack.enter_context(patch.object(torch, "clear_autocast_cache", autocast.clearing(torch.clear_autocast_cache)))
        stack.callback(autocast.clear_cache)
        for lists in (_optim, torch.utils._foreach_utils):  # torch.optim's, and that of clip_grad_norm_
            supported = [*lists._foreach_supported_types, FakeCudaTensor]
            stack.enter_context(patch.object(lists, "_foreach_supported_types", supported))
        stack.enter_context(patch.object(torch._C, "_group_tensors_by_device_and_dtype", _grouped_on_the_gpu()))
        stack.enter_context(masks_as_under_tracing(recorder))
        lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") then copies through the dispatcher
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifted)
        stack.enter_context(phases_and_modules(recorder))
        stack.enter_context(bitsandbytes_runtime(recorder))
        stack.enter_context(triton_kernels_not_launched(recorder))
        stack.enter_context(trl_as_with_triton(recorder))
        stack.enter_context(overrides_enabled())
        stack.enter_context(recorder)
        yield


def _accelerator_answers(recorder: Recorder) -> dict[str, Any]:
    """Functions of torch.accelerator, as they answer on the target."""
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_accelerator": lambda *_, **__: torch.device("cuda"),
        "empty_cache": recorder.empty_cache,
        "current_stream": lambda *_: torch.cuda.current_stream(),
        "memory_stats": lambda *_: defaultdict(int),
        "device_index": _DeviceContext,
    }
    for name in ("current_device_index", "current_device_idx", "memory_allocated", "memory_reserved"):
        answers[name] = lambda *_: 0
    for name in ("max_memory_allocated", "max_memory_reserved"):
        answers[name] = lambda *_: 0
    for name in ("set_device_index", "set_device_idx", "set_stream", "synchronize", "reset_peak_memory_stats"):
        answers[name] = lambda *_: None
    return answers


def _not_saved(recorder: Recorder) -> Callable[..., None]:
    def save(*_: Any, **__: Any) -> None:
        recorder.assume("torch.save writes nothing while a step is predicted")

    return save


def _cloned_storage(recorder: Recorder) -> Callable[[Any], Any]:
    """As copy.deepcopy clones the storage of a CPU tensor, beside the dispatcher: the clone is the job's."""
    own: Callable[[Any], Any] = torch.UntypedStorage.clone

    def clone(storage: Any) -> Any:
        if storage.device.type != "cpu":
            return own(storage)
        cloned = torch.UntypedStorage(storage.nbytes(), device="cpu")
        recorder.own_cpu_storage(cloned)
        return cloned.copy_(storage)

    return clone


@contextmanager
def _imports_mended(originals: dict[int, Any]) -> Iterator[None]:
    """Give modules that are imported while the body runs PyTorch's own functions, in place of its answers."""
    before = set(sys.modules)
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            namespace = vars(sys.modules[name])
            for key in [key for key, value in namespace.items() if id(value) in originals]:
                namespace[key] = originals[id(namespace[key])]


def _grouped_on_the_gpu() -> Callable[..., Any]:
    own = torch._C._group_tensors_by_device_and_dtype

    def group(tensors: Any, with_indices: bool = False) -> Any:
        """C++ finds fake tensors on meta."""
        groups = own(tensors, with_indices)
        return {(CUDA if device.type == "meta" else device, dtype): g for (device, dtype), g in groups.items()}

    return group
