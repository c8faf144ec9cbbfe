"""What bitsandbytes keeps in globals while a job is traced: what a process has at its start on the target GPU."""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from packaging.version import Version

from willfit._trace.bitsandbytes.backend import NoLibrary, backends
from willfit._trace.bitsandbytes.paged import PagedMemory
from willfit._trace.recorder import Recorder

OLDEST = "0.48"
"""The first version all of whose kernels are operators of PyTorch's, those of the optimizers included."""

_LruCache = type(functools.cache(lambda: None))


def too_old() -> str:
    """The version of bitsandbytes that is imported, if it is one that cannot be followed; else ""."""
    bitsandbytes = sys.modules.get("bitsandbytes")
    version = getattr(bitsandbytes, "__version__", "")
    return version if version and Version(version) < Version(OLDEST) else ""


@contextmanager
def bitsandbytes_runtime(recorder: Recorder) -> Iterator[None]:
    """While the body runs, bitsandbytes works as on the target, if the process has imported it."""
    if "bitsandbytes" not in sys.modules or too_old():
        yield
        return
    functional: Any = importlib.import_module("bitsandbytes.functional")
    for backend in backends():
        for value in vars(backend).values():
            if isinstance(value, _LruCache):
                value.cache_clear()  # what it knows of the GPU of another trace
    log = logging.getLogger("bitsandbytes")
    with ExitStack() as stack:
        stack.enter_context(patch.object(functional, "lib", NoLibrary()))
        stack.enter_context(patch.object(functional, "get_paged", PagedMemory(recorder).allocate))
        stack.enter_context(patch.dict(functional.name2qmap, clear=True))
        update = _with_its_norm(functional.optimizer_update_32bit)
        stack.enter_context(patch.object(functional, "optimizer_update_32bit", update))
        for single in (functional.CUBLAS_Context, functional.GlobalPageManager):
            stack.enter_context(patch.object(single, "_instance", None))
        stack.callback(log.setLevel, log.level)
        log.setLevel(logging.ERROR)  # Linear8bitLt warns of each cast
        yield


def _with_its_norm(own: Callable[..., None]) -> Callable[..., None]:
    """LAMB and LARS hand a parameter's norm to an operator that takes a number: PyTorch reads none of a meta tensor."""

    @functools.wraps(own)
    def update(name: str, gradient: Any, parameter: Any, *args: Any, max_unorm: float = 0.0, **kwargs: Any) -> None:
        if max_unorm > 0.0:
            torch.norm(parameter.data.float()).item()
        own(name, gradient, parameter, *args, **kwargs)

    return update
