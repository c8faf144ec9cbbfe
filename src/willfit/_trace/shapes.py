"""What operators make, by what their arguments look like: PyTorch is asked the first time, and remembered after that.

A model repeats its blocks and a run its steps, so that the same question comes hundreds of times, while PyTorch's own
Python implementations of shapes are slow.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from willfit._trace.fake import META, FakeCudaTensor, run_on_meta
from willfit._trace.overrides import overload


class _Layout(NamedTuple):
    """What a tensor looks like; strides count elements."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self) -> torch.Tensor:
        return torch.empty_strided(self.sizes, self.strides, dtype=self.dtype, device=META)


class Shapes:
    """Runs operators on fake tensors for what they make, which is on meta."""

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}
        """The layout of what a call returned, or a list or tuple of them as that was."""
        self._is_new: dict[Any, bool] = {}
        """Of operators that were met: whether what they return is no view."""

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the operator returns. Raises what it raises."""
        is_new = self._is_new.get(func)
        if is_new is None:
            is_new = self._is_new[func] = _makes_new_tensors(func)
        if not is_new:
            if func in _IN_PLACE and _changes_nothing_but_values(args):
                return args[0] if func._schema.returns else None
            return run_on_meta(func, args, kwargs)
        try:
            key = (func, torch.get_default_dtype(), *map(_described, args), *map(_described, kwargs.items()))
            made = self._made.get(key)
        except (_NotDescribableError, TypeError):  # the latter for what has no hash
            return run_on_meta(func, args, kwargs)
        if made is not None:
            with torch._C._DisableTorchDispatch():
                return made.tensor() if isinstance(made, _Layout) else type(made)(each.tensor() for each in made)
        out = run_on_meta(func, args, kwargs)
        self._remember(key, func, args, out)
        return out

    def _remember(self, key: Any, func: Any, args: tuple[Any, ...], out: Any) -> None:
        tensors = [out] if not isinstance(out, (tuple, list)) else out
        if not all(isinstance(each, torch.Tensor) and each.layout is torch.strided for each in tensors):
            return
        storages = {each.untyped_storage()._cdata for each in tensors}
        given = {each.untyped_storage()._cdata for each in tree_leaves(args) if isinstance(each, torch.Tensor)}
        if storages & given or len(storages) < len(tensors):
            self._is_new[func] = False  # though its schema does not say so, as _unsafe_view's does not
            return
        layouts = [_Layout(each.shape, each.stride(), each.dtype) for each in tensors]
        with torch._C._DisableTorchDispatch():
            if all(_is_told_by(layout, each) for layout, each in zip(layouts, tensors, strict=True)):
                self._made[key] = type(out)(layouts) if isinstance(out, (tuple, list)) else layouts[0]


def _is_told_by(layout: _Layout, tensor: torch.Tensor) -> bool:
    """Whether there is no more to a tensor than its layout: it begins where its storage does, and ends there."""
    return (
        tensor.storage_offset() == 0 and tensor.untyped_storage().nbytes() == layout.tensor().untyped_storage().nbytes()
    )


def _makes_new_tensors(func: Any) -> bool:
    """Whether an operator is PyTorch's, changes none of its arguments, and returns tensors that are not views of them.

    Operators of other libraries may depend on anything.
    """
    schema = func._schema
    return bool(
        func.namespace == "aten"
        and not schema.is_mutable
        and schema.returns
        and all(each.alias_info is None for each in schema.returns)
    )


class _NotDescribableError(Exception):
    """An argument on which a shape depends in a way that is not looked into."""


def _described(value: Any) -> Any:
    """All of an argument that shapes depend on."""
    kind = type(value)
    if kind is FakeCudaTensor and value.layout is torch.strided:
        return value.shape, value.stride(), value.dtype
    if isinstance(value, torch.Tensor):  # on the CPU: of one that stands for a Python number the dtype counts less
        raise _NotDescribableError
    if kind is tuple or isinstance(value, list):
        return tuple(map(_described, value))
    return kind, value  # since 1 == 1.0 == True


# -- in place ----------------------------------------------------------------------------------------------------------


def _foreach(names: str) -> list[str]:
    return [f"_foreach_{name}" for name in names.split()]


_IN_PLACE = frozenset(
    op
    for name in (
        *("add_.Tensor", "mul_.Tensor", "sub_.Tensor", "div_.Tensor", "add_.Scalar", "mul_.Scalar", "div_.Scalar"),
        *_foreach("add_.Scalar add_.List add_.ScalarList mul_.Scalar mul_.ScalarList mul_.List mul_.Tensor sub_.List"),
        *_foreach("div_.Scalar div_.ScalarList div_.List div_.Tensor neg_ sqrt_ lerp_.Scalar lerp_.List maximum_.List"),
        *_foreach("addcmul_.Scalar addcmul_.ScalarList addcdiv_.Scalar addcdiv_.ScalarList zero_ copy_ reciprocal_"),
        "_foreach_pow_.Scalar",
    )
    if (op := overload(name)) is not None
)


def _changes_nothing_but_values(args: tuple[Any, ...]) -> bool:
    """Whether it is plain that an operator in place can do what it is asked to, and makes nothing."""
    if not isinstance(args[0], torch.Tensor):
        return True
    tensor, other = args[:2]
    if not isinstance(other, torch.Tensor) or other.dim() == 0 or other.shape == tensor.shape:
        return bool(tensor.is_floating_point())
    return False
