"""Checkpoints of a script on fake tensors: saved without values, loaded to where they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from willfit._trace.fake import FakeCudaTensor
from willfit._trace.following import Follower

_GPU = "cuda:0"


class _Loading:
    """One call of ``torch.load``: storages are read to the CPU, and those that belong on the GPU are moved there."""

    def __init__(self, map_location: Any) -> None:
        self._map_location = map_location
        self._to_gpu: dict[int, torch.Tensor | None] = {}
        """By address, storages that belong there; and what they are there."""

    def target(self, location: str, storage: Any) -> tuple[str, Any]:
        """Where something that was at this location goes, and what its storage is on the CPU."""
        wanted = self._map_location
        if callable(wanted):
            mapped = wanted(storage, location)
            return (location, storage) if mapped is None else ("cpu", mapped)
        if isinstance(wanted, dict):
            wanted = wanted.get(location)
        return location if wanted is None else str(wanted), storage

    def restored(self, storage: Any, location: str) -> Any:
        """What PyTorch calls as ``map_location``."""
        target, storage = self.target(location, storage)
        if target.startswith("cuda"):
            self._to_gpu[storage._cdata] = None
        return storage

    def rebuilt(
        self, own: Callable[..., torch.Tensor], storage: Any, offset: int, size: Any, stride: Any
    ) -> torch.Tensor:
        """A tensor over a storage, of which there is one on either side however many tensors share it."""
        tensor = own(storage, offset, size, stride)
        key = tensor.untyped_storage()._cdata
        if key not in self._to_gpu:
            return tensor
        there = self._to_gpu[key]
        if there is None:
            whole = tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0)
            there = self._to_gpu[key] = whole.to("cuda")
        return there.view(tensor.dtype).as_strided(size, stride, offset)


_loading: list[_Loading] = []
_followers: list[Follower] = []


@contextmanager
def checkpoints(follower: Follower) -> Iterator[None]:
    """While the body runs, ``torch.save`` and ``torch.load`` know fake tensors."""
    own_load = torch.load
    own_rebuild: Any = torch._utils._rebuild_tensor

    def load(file: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        _loading.append(_Loading(map_location))
        try:
            return own_load(file, _loading[-1].restored, *args, **kwargs)
        finally:
            _loading.pop()

    def rebuild(*args: Any) -> torch.Tensor:
        return _loading[-1].rebuilt(own_rebuild, *args) if _loading else own_rebuild(*args)

    _followers.append(follower)
    allow: Any = torch.serialization.add_safe_globals
    allow([made_on_gpu])
    with ExitStack() as stack:
        stack.callback(_followers.pop)
        stack.enter_context(patch.object(torch, "load", load))
        stack.enter_context(patch.object(torch._utils, "_rebuild_tensor", rebuild))
        stack.enter_context(patch.object(FakeCudaTensor, "__reduce_ex__", _reduced))
        yield


def _reduced(tensor: FakeCudaTensor, protocol: Any) -> tuple[Any, ...]:
    """What is saved of a tensor on the GPU: its layout."""
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    return made_on_gpu, (tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.requires_grad, is_parameter)


def made_on_gpu(
    shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, requires_grad: bool, is_parameter: bool
) -> torch.Tensor:
    """A tensor that was saved from the GPU, where the call that loads it wants it."""
    target = _loading[-1].target(_GPU, torch.UntypedStorage(0))[0] if _loading else _GPU
    tensor = torch.empty_strided(shape, stride, dtype=dtype, device=target)
    if target == "cpu":
        tensor.fill_(1)
        _followers[-1].assume("values copied from the GPU to the CPU are not known: taken as 1")
    return torch.nn.Parameter(tensor, requires_grad) if is_parameter else tensor.requires_grad_(requires_grad)
