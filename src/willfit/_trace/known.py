"""Values that are known although they would be on the GPU: those of the batch, and what the step computes from them.

A job's batch is there, and so are constants that the step makes. What an operator makes of known tensors is known:
masks, lengths and positions have their values, and ``if mask.all():`` goes the way that it will go. Values are computed
on the CPU when they are read, which most never are. What depends on weights or on random numbers is not known
(cuda/values.py).
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from willfit._trace.fake import OVERRIDES_KEY, storages_of
from willfit._trace.overrides import overload

# Elements of a tensor, above which its values are not kept: most batches of token ids have fewer; images, and masks of
# all positions against all, have more.
MOST_ELEMENTS = 2**17

_CPU = torch.device("cpu")
_NAME = "_willfit_known"
_INDICES = "_willfit_known_indices"
_FAILED = object()


def _overloads(*names: str) -> frozenset[Any]:
    return frozenset(op for name in names if (op := overload(name)) is not None)


# Their outputs have known values whatever their arguments hold.
_CONSTANTS = _overloads(
    *("arange", "arange.start", "arange.start_step", "eye", "eye.m", "full", "linspace", "ones", "scalar_tensor"),
    *("zeros", "full_like", "new_full", "new_ones", "new_zeros", "ones_like", "tril_indices", "triu_indices"),
    "zeros_like",
)
_FROM_HOST = _overloads("_to_copy")
# Their outputs hold what was in memory before.
_UNINITIALISED = _overloads(
    *("empty.memory_format", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"),
)
# GradScaler's check leaves what it was given as it was: no overflow, by the policy for what is not known.
_ASSUMED_TO_CHANGE_NOTHING = _overloads("_amp_foreach_non_finite_check_and_unscale_")


class _Value:
    """What one tensor holds: a CPU tensor, or how to compute it."""

    __slots__ = ("__weakref__", "_compute", "_tensor", "of_the_batch")

    def __init__(self, compute: Callable[[], torch.Tensor | None], of_the_batch: bool) -> None:
        self._compute: Callable[[], torch.Tensor | None] | None = compute
        self._tensor: torch.Tensor | None = None
        self.of_the_batch = of_the_batch

    def tensor(self) -> torch.Tensor | None:
        """None where it turns out that the CPU cannot compute it."""
        if self._compute is not None:
            self._tensor, self._compute = self._compute(), None
        return self._tensor


class KnownValues:
    """What is known of the tensors of a run, and what becomes of it by changes in place."""

    def __init__(self, is_on_gpu: Callable[[torch.Tensor], bool]) -> None:
        self._is_on_gpu = is_on_gpu
        self._readers: dict[int, list[weakref.ref[_Value]]] = {}
        """Values that may not be computed yet, by the storages that they are to be computed from."""
        self._lost: dict[int, Any] = {}
        """Storages of values that something unknown was written into, by address; kept, so that these stay valid."""
        self._unknown_on_host: dict[int, weakref.ref[Any]] = {}
        """Storages on the CPU that stand for what was copied from the GPU, where it was not known."""
        self.batch_was_read = False
        """Whether anything was asked for that may depend on what the batch holds."""
        self._is_mixed = False
        """Whether the batch had a part in a change in place, so that from then on every value may depend on it."""

    def give(self, tensor: torch.Tensor, values: torch.Tensor, *, of_the_batch: bool = False) -> None:
        """Let a tensor of the job have the values of the user's, which is not changed; of large ones none are kept."""
        if self._is_on_gpu(tensor) and values.numel() <= MOST_ELEMENTS and values.device.type != "meta":
            with _not_followed():
                copied = values.cpu().detach().clone()
            setattr(tensor, _NAME, _Value(lambda: copied, of_the_batch))

    def forget_on_host(self, tensor: torch.Tensor) -> None:
        """A tensor on the CPU was given what a tensor on the GPU holds, and that is not there to be copied."""
        storage = tensor.untyped_storage()
        self._unknown_on_host[storage._cdata] = weakref.ref(storage)

    def put_indices(self, indices: torch.Tensor, sparse: torch.Tensor) -> None:
        """A sparse tensor was made: what is known of its indices goes along with it."""
        setattr(sparse, _INDICES, _value(indices))

    def take_indices(self, sparse: torch.Tensor, indices: torch.Tensor) -> None:
        """The indices of a sparse tensor were asked for."""
        setattr(indices, _NAME, getattr(sparse, _INDICES, None))

    def of(self, tensor: Any) -> torch.Tensor | None:
        """The values of a tensor, on the CPU; None where they are not known."""
        value = _value(tensor)
        if value is not None and (value.of_the_batch or self._is_mixed):
            self.batch_was_read = True
        known = None if value is None else value.tensor()
        return None if known is None or known.untyped_storage()._cdata in self._lost else known

    def is_of_the_batch(self, tensor: Any) -> bool:
        """Whether a tensor's values depend on those of the batch."""
        value = _value(tensor)
        return value is not None and value.of_the_batch

    def after(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """An operator has run: note what its outputs hold, if that is known."""
        if not (func in _CONSTANTS or func in _FROM_HOST or _concerns(args)):
            return
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor) and self._is_on_gpu(leaf)]
        is_known = self._is_known(func, given, made)
        if func._schema.is_mutable:
            self._is_mixed = self._is_mixed or any(map(self.is_of_the_batch, given))
            if func not in _ASSUMED_TO_CHANGE_NOTHING:
                self._change(func, args, kwargs, is_known)
        elif is_known and made:
            self._note(func, args, kwargs, made, given)

    def _is_known(self, func: Any, given: list[torch.Tensor], made: list[torch.Tensor]) -> bool:
        if func in _UNINITIALISED or torch.Tag.nondeterministic_seeded in func.tags:
            return False
        if any(each.layout != torch.strided or each.numel() > MOST_ELEMENTS for each in (*given, *made)):
            return False
        return func in _CONSTANTS or all(_value(each) is not None or self._is_known_on_host(each) for each in given)

    def _is_known_on_host(self, tensor: torch.Tensor) -> bool:
        if self._is_on_gpu(tensor):
            return False
        storage = tensor.untyped_storage()
        unknown = self._unknown_on_host.get(storage._cdata)
        return unknown is None or unknown() is not storage

    def _note(self, func: Any, args: Any, kwargs: Any, made: list[torch.Tensor], given: list[torch.Tensor]) -> None:
        arguments = self._standing_for_all(args, kwargs)
        shapes = [tensor.shape for tensor in made]
        of_the_batch = any(map(self.is_of_the_batch, given))

        @functools.cache
        def results() -> list[torch.Tensor] | list[None]:
            found = tree_leaves(self._computed(func, *arguments))
            alike = [getattr(result, "shape", None) for result in found] == shapes
            return found if alike else [None] * len(shapes)

        sources = {storage._cdata for tensor in given for storage in storages_of(tensor)}
        for position, tensor in enumerate(made):
            value = _Value(functools.partial(_item, results, position), of_the_batch)
            setattr(tensor, _NAME, value)
            for source in sources:
                self._readers.setdefault(source, []).append(weakref.ref(value))
        if not all(map(self._is_on_gpu, given)):
            results()  # now, since the user's CPU tensors may change

    def _standing_for_all(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return tree_map_only(torch.Tensor, self._standing_for, (args, kwargs))  # type: ignore[no-any-return]

    def _standing_for(self, tensor: torch.Tensor) -> Any:
        """What stands for an argument until it is computed; what a constant is modelled on has a shape alone."""
        if not self._is_on_gpu(tensor):
            return tensor
        value = _value(tensor)
        return torch.empty(tensor.shape, dtype=tensor.dtype) if value is None else value

    def _computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What the operator returns on the CPU; `_FAILED` where that cannot be."""
        try:
            args, kwargs = tree_map_only(_Value, self._tensor_of, (args, kwargs))
            args, kwargs = tree_map_only(torch.device, lambda _: _CPU, (args, kwargs))
            with _not_followed():
                return func(*args, **kwargs)
        except Exception:  # an argument is not known after all, or the CPU does not have this operator for its dtype
            return _FAILED

    def _tensor_of(self, value: _Value) -> torch.Tensor:
        tensor = value.tensor()
        if tensor is None or tensor.untyped_storage()._cdata in self._lost:
            raise ValueError("not known")
        return tensor

    def _change(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], is_known: bool) -> None:
        """Something is written in place: what is to be computed from what was there before is computed first."""
        written = [tensor for tensor in _written(func, args, kwargs) if _value(tensor) is not None]
        for tensor in written:
            for storage in storages_of(tensor):
                for reader in self._readers.pop(storage._cdata, ()):
                    if (value := reader()) is not None:
                        value.tensor()
        if is_known and self._computed(func, *self._standing_for_all(args, kwargs)) is not _FAILED:
            return
        for tensor in written:
            if (known := self.of(tensor)) is not None:
                storage = known.untyped_storage()
                self._lost[storage._cdata] = storage


@contextmanager
def _not_followed() -> Iterator[None]:
    """What runs in the body is no part of the job."""
    with torch._C._PreserveDispatchKeyGuard(), torch._C._DisableTorchDispatch():
        torch._C._dispatch_tls_set_dispatch_key_excluded(OVERRIDES_KEY, True)
        yield


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tree_leaves(args[position] if position < len(args) else kwargs.get(argument.name))


def _value(tensor: Any) -> _Value | None:
    return getattr(tensor, _NAME, None)


def _item(results: Callable[[], list[Any]], position: int) -> torch.Tensor | None:
    return results()[position]  # type: ignore[no-any-return]


def _concerns(args: tuple[Any, ...]) -> bool:
    """Whether an argument is a tensor of which something is known, or a list with one."""
    for arg in args:
        if _value(arg) is not None:
            return True
        if isinstance(arg, (list, tuple)) and any(_value(item) is not None for item in arg):
            return True
    return False
