"""What surrounds a training step in its process: set to a known state while it is traced, put back afterwards."""

from __future__ import annotations

import functools
import gc
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils import _device
from torch.utils._python_dispatch import _disable_current_modes

_KINDS = ("cuda", "cpu")
_LruCache = type(functools.cache(lambda: None))
_ASK_FOR_GPUS = ("torch.cuda", "torch.accelerator", "torch.utils._triton", "torch.backends")


def _backend(*names: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return getattr(torch._C, f"_get_{names[0]}"), getattr(torch._C, f"_set_{names[-1]}")


# Settings of torch that a step may change: how to ask, and how to set.
_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], None]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch._C._set_grad_enabled),
    (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda v: torch.set_anomaly_enabled(*v),
    ),
    (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda v: torch._C._set_deterministic_algorithms(v[0], warn_only=v[1]),
    ),
    _backend("cudnn_enabled"),
    _backend("cudnn_benchmark"),
    _backend("cudnn_deterministic"),
    _backend("cudnn_allow_tf32"),
    _backend("cublas_allow_tf32"),
    _backend("flash_sdp_enabled", "sdp_use_flash"),
    _backend("mem_efficient_sdp_enabled", "sdp_use_mem_efficient"),
    _backend("math_sdp_enabled", "sdp_use_math"),
    _backend("cudnn_sdp_enabled", "sdp_use_cudnn"),
    (gc.get_threshold, lambda v: gc.set_threshold(*v)),
)
_RANDOM: tuple[tuple[Callable[[], Any], Callable[[Any], None]], ...] = (
    (torch.get_rng_state, torch.set_rng_state),
    (random.getstate, random.setstate),
)

# Where torch keeps hooks that apply to every module and every optimizer.
_GLOBAL_HOOKS = ("torch.nn.modules.module", "torch.optim.optimizer")


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Run the body as at the start of a training script, and put back all that it changes outside of its objects.

    Contexts of the caller (autocast, no_grad, inference mode, saved tensors hooks) have no part in the body: a job has
    the same answer wherever it is asked for.
    """
    with ExitStack() as stack:
        for ask, put in (*_SETTINGS, *_random()):
            stack.callback(_put_back, ask, put, _answer(ask))
        for name in _GLOBAL_HOOKS:
            _keep_hooks(vars(sys.modules[name]), stack)
        stack.enter_context(_caches_kept())
        stack.enter_context(_disable_current_modes())
        _start_without_function_modes(stack)
        _start_without_saved_tensors_hooks(stack)
        _start_without_autocast(stack)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if gc.isenabled():
            stack.callback(gc.enable)
        else:
            stack.callback(gc.disable)
        gc.disable()  # cycles are collected at the end of each phase instead, so that the answer is the same each time
        yield


def settings_in_force() -> tuple[Any, ...]:
    """What torch is set to, as far as a training step may depend on it."""
    return (
        *(_answer(ask) for ask, _ in _SETTINGS),
        torch.get_default_device(),
        *(torch.get_autocast_dtype(kind) for kind in _KINDS),
        torch._C._get_math_sdp_allow_fp16_bf16_reduction(),
        *torch._C._get_sdp_priority_order(),
    )


def global_hooks() -> list[Any]:
    """The hooks that apply to every module and every optimizer."""
    return [
        value for name in _GLOBAL_HOOKS for key, value in vars(sys.modules[name]).items() if key.startswith("_global_")
    ]


def callers_hooks_stay() -> bool:
    """Whether the caller's hooks on saved tensors stay in force in a trace: torch 2.6 tells nobody which they are."""
    if hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"):
        return False
    with torch.inference_mode(False), torch.enable_grad():
        product: Any = torch.ones((), requires_grad=True).square()
    try:
        product.grad_fn._raw_saved_self.register_hooks(lambda packed: packed, lambda packed: packed)
    except RuntimeError:  # there are hooks already
        return True
    return False


class Dice:
    """Tells whether random numbers were drawn on the host since it was made."""

    def __init__(self) -> None:
        self._before = [(ask, ask()) for ask, _ in _random()]

    def were_cast(self) -> bool:
        """Whether a generator of torch, Python or NumPy is no longer where it was."""
        return any(not _is_equal(ask(), before) for ask, before in self._before)


def _is_equal(now: Any, before: Any) -> bool:
    if isinstance(now, torch.Tensor):
        return torch.equal(now, before)
    if isinstance(now, tuple):
        return len(now) == len(before) and all(map(_is_equal, now, before))
    same = now == before
    return bool(same.all() if hasattr(same, "all") else same)  # a part of NumPy's is an array


def _answer(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except RuntimeError:  # allow_tf32, where the process has used the settings that come after it
        return None


def _put_back(ask: Callable[[], Any], put: Callable[[Any], None], before: Any) -> None:
    now = _answer(ask)
    if before is not None and (isinstance(now, (torch.Tensor, tuple)) or now != before):
        put(before)


def _random() -> list[tuple[Callable[[], Any], Callable[[Any], None]]]:
    numpy = sys.modules.get("numpy")
    return [*_RANDOM, *([] if numpy is None else [(numpy.random.get_state, numpy.random.set_state)])]


def _keep_hooks(namespace: dict[str, Any], stack: ExitStack) -> None:
    def put_back(hooks: dict[int, Any], before: dict[int, Any]) -> None:
        hooks.clear()
        hooks.update(before)

    for name, value in list(namespace.items()):
        if name.startswith("_global_"):
            if isinstance(value, dict):
                stack.callback(put_back, value, dict(value))
            else:
                stack.callback(namespace.__setitem__, name, value)


@contextmanager
def _caches_kept() -> Iterator[None]:
    """Empty functools' caches to which the body adds: they would keep what holds in a trace alone.

    Fake tensors, and answers such as "there is a GPU, and it has bf16".
    """
    before = {id(cache): (cache, cache.cache_info().misses) for cache in _caches()}
    modules = len(sys.modules)
    try:
        yield
    finally:
        after = before.values() if len(sys.modules) == modules else ((cache, 0) for cache in _caches())
        for cache, _ in list(after):
            if cache.cache_info().misses != before.get(id(cache), (cache, 0))[1]:
                cache.cache_clear()


def _caches() -> list[Any]:
    # each refers to its type: found so in a third of the time that going through all objects takes
    return [each for each in gc.get_referrers(_LruCache) if type(each) is _LruCache and not _is_torchs_own(each)]


def _is_torchs_own(cache: Any) -> bool:
    """Whether a cache of PyTorch's own knows nothing of GPUs."""
    name = cache.__module__ or ""
    return name.startswith(("torch.", "willfit.")) and not name.startswith(_ASK_FOR_GPUS)


def _start_without_function_modes(stack: ExitStack) -> None:
    """Drop ``with torch.device(...)`` and the like; a default device that is a GPU stays in force."""
    contexts: Any = torch._GLOBAL_DEVICE_CONTEXT
    before = dict(vars(contexts))
    current = _device.CURRENT_DEVICE
    modes = _pop_function_modes()

    def put_back() -> None:
        _pop_function_modes()
        for mode in modes:
            torch._C._push_on_torch_function_stack(mode)
        vars(contexts).clear()
        vars(contexts).update(before)
        _device.CURRENT_DEVICE = current

    stack.callback(put_back)
    vars(contexts).clear()  # None in it is no default device to torch before 2.13: get_default_device raises
    _device.CURRENT_DEVICE = None
    if current is not None and current.type == "cuda":
        torch.set_default_device(current)


def _pop_function_modes() -> list[Any]:
    """The modes taken off, the outermost first."""
    modes = [torch._C._pop_torch_function_stack() for _ in range(torch._C._len_torch_function_stack())]
    return modes[::-1]


def _start_without_saved_tensors_hooks(stack: ExitStack) -> None:
    hooks: Any = torch._C._autograd
    if not hasattr(hooks, "_top_saved_tensors_default_hooks"):
        return  # torch 2.6 tells nobody which hooks there are: they stay in force

    def pop_all() -> list[Any]:
        popped = []
        while (top := hooks._top_saved_tensors_default_hooks(True)) is not None:
            popped.append(top)
            hooks._pop_saved_tensors_default_hooks()
        return popped[::-1]

    def put_back(own: list[Any]) -> None:
        pop_all()
        for pack, unpack in own:
            hooks._push_saved_tensors_default_hooks(pack, unpack)

    stack.callback(put_back, pop_all())


def _start_without_autocast(stack: ExitStack) -> None:
    for kind in _KINDS:
        stack.callback(torch.set_autocast_enabled, kind, torch.is_autocast_enabled(kind))
        stack.callback(torch.set_autocast_dtype, kind, torch.get_autocast_dtype(kind))
        torch.set_autocast_enabled(kind, False)
    torch.set_autocast_cache_enabled(True)
    stack.callback(_nest_autocast, _nest_autocast(0))


def _nest_autocast(depth: int) -> int:
    """How deep in autocast contexts this thread is said to be; returns how deep it was."""
    before = torch.autocast_increment_nesting() - 1
    for _ in range(before + 1 - depth):
        torch.autocast_decrement_nesting()
    for _ in range(depth - before - 1):
        torch.autocast_increment_nesting()
    return int(before)
