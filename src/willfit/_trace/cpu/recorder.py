"""Operators on CPU tensors that nobody computes: their outputs are given memory, which is never touched.

The tensors are plain ones on the CPU, so that dispatcher and autograd do what they do there. Memory that is not touched
takes none of the machine's; what is small and known (step counts, learning rates, masks) is computed, so that Python's
branches on it go the right way.
"""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Iterable
from types import CodeType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from willfit._copying import MOST_BYTES
from willfit._trace.cpu.kernels import CpuCall, cpu_rules
from willfit._trace.cuda import values
from willfit._trace.following import Follower, calling_line, line
from willfit._trace.trace import Allocation, JobSummary, Mark, Phase, Role, Trace

_META = torch.device("meta")
_aten = torch.ops.aten
_COMPOSITES = (torch._C.DispatchKey.CompositeExplicitAutograd, torch._C.DispatchKey.CompositeImplicitAutograd)


class CpuRecorder(TorchDispatchMode, Follower):
    """The symbolic engine for the CPU: notes every storage that is born and that dies."""

    is_gpu = False

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        Follower.__init__(self, (0, 0), 0)
        self._events = array("q")
        self._marks: list[Mark] = [Mark(0, 0, "placement")]
        self._sizes: list[int] = []
        self._roles: list[Role] = []
        self._places: list[tuple[int, Phase, str, Any, tuple[CodeType, int] | None]] = []
        self._live: dict[int, tuple[int, Any]] = {}
        self._known: dict[int, Any] = {}
        self._outermost: CodeType | None = None
        self._rules = cpu_rules()

    # -- operators --------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.last_operator = func
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if func is _aten._local_scalar_dense.default and not self._is_known(given[0]):
            return values.value_of(self, given[0])
        if all(self._is_known(tensor) for tensor in given) and (given or self._is_small(func, args, kwargs)):
            out = func(*args, **kwargs)
            self._note_outputs(func, out, known=True)
            return out
        out = self._given(func, args, kwargs)
        self.known.after(func, args, kwargs, out)
        return out

    def _given(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operator returns that nobody computes."""
        if func.is_view or torch.Tag.inplace_view in func.tags:
            return func(*args, **kwargs)
        rule = self._rules.get(func)
        if rule is not None:
            return rule(CpuCall(self, func, args, kwargs))
        if func._schema.is_mutable:
            for tensor in tree_leaves(written := _written(func, args, kwargs)):
                self._known.pop(tensor.untyped_storage()._cdata, None)
            return written[0] if len(func._schema.returns) == 1 else tuple(written[: len(func._schema.returns)]) or None
        if _is_composite(func):
            return self.run_composite(func, args, kwargs)
        return self.run(func, args, kwargs)

    def run_composite(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operator by the others that it is made of."""
        with self:
            return func._op_dk(next(key for key in _COMPOSITES if _has_kernel(func, key)), *args, **kwargs)

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The outputs of an operator, which nobody computes."""
        return tree_map_only(torch.Tensor, lambda meta: self.born(meta, func), self.on_meta(func, args, kwargs))

    @staticmethod
    def on_meta(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operator's outputs on meta."""
        if any(argument.name == "device" for argument in func._schema.arguments):
            kwargs = {**kwargs, "device": _META}
        args, kwargs = tree_map_only(torch.Tensor, _as_meta, (args, kwargs))
        with torch._C._DisableTorchDispatch():
            return func(*args, **kwargs)

    def born(self, meta: torch.Tensor, op: Any) -> torch.Tensor:
        """An output, laid out like one on meta."""
        tensor = _unbacked(meta)
        self._born(tensor, op, "temporaries")
        return tensor

    def _is_small(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether what an operator makes of nothing is so small that it may as well be computed."""
        out = self.on_meta(func, args, kwargs)
        return all(t.untyped_storage().nbytes() <= MOST_BYTES for t in tree_leaves(out) if isinstance(t, torch.Tensor))

    def _is_known(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor holds what it would hold in a real run."""
        storage = tensor.untyped_storage()
        entry = self._known.get(storage._cdata)
        return entry is not None and entry() is storage

    # -- tensors ----------------------------------------------------------------------------------------------

    def _note_outputs(self, func: Any, out: Any, known: bool) -> None:
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self._born(tensor, func, "temporaries")
                if known:
                    self.own_cpu_tensor(tensor)

    def _born(self, tensor: torch.Tensor, op: Any, role: Role) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        entry = self._live.get(key)
        if entry is None or entry[1]() is not storage:
            handle = self.allocate(storage.nbytes(), role, op)
            self._live[key] = (handle, weakref.ref(storage, lambda _: self._died(key, handle)))

    def _died(self, key: int, handle: int) -> None:
        if key in self._live and self._live[key][0] == handle:
            del self._live[key]
        self.free(handle)

    def allocate(self, nbytes: int, role: Role = "temporaries", op: Any = None) -> int:
        """Note that so many bytes are given; returns their handle."""
        self._sizes.append(nbytes)
        self._roles.append(role)
        source = None if self._phase == "placement" else calling_line(self._outermost, 3)
        module = self._modules[-1] if self._modules else ""
        self._places.append((self.step, self._phase, module, op or self.last_operator, source))
        if nbytes:
            self._events.append(len(self._sizes))
        return len(self._sizes) - 1

    def free(self, handle: int) -> None:
        """Note that they are given back."""
        if self._sizes[handle]:
            self._events.append(-(handle + 1))

    def place(self, meta: torch.Tensor, role: Role, module: str, original: torch.Tensor) -> torch.Tensor:
        """A tensor of the job, whose memory is never touched."""
        placed = _unbacked(meta)
        self._modules.append(module)
        try:
            self._born(placed, "placement", role)
        finally:
            self._modules.pop()
        return placed

    def copy_on_cpu(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy with its values."""
        with torch._C._DisableTorchDispatch():
            copied = tensor.detach().clone()
        self._born(copied, "placement", "temporaries")
        self.own_cpu_tensor(copied)
        return copied

    def as_parameter(self, tensor: torch.Tensor, kind: type[torch.nn.Parameter], requires_grad: bool) -> torch.Tensor:
        """A parameter over the placed tensor."""
        return torch.Tensor._make_subclass(kind, tensor, requires_grad)

    def has_no_values(self, tensor: torch.Tensor) -> bool:
        """Whether nobody computes what a tensor holds."""
        return not self._is_known(tensor)

    def own_cpu_tensor(self, tensor: torch.Tensor) -> None:
        """A tensor that holds what it would hold in a real run."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        self._known[key] = weakref.ref(storage, lambda _: self._known.pop(key, None))

    def release_all(self) -> None:
        """Forget live storages, so that what the trace leaves behind is not noted as frees."""
        self._live.clear()
        self._sizes.clear()

    # -- where the job is -------------------------------------------------------------------------------------

    def mark_role(self, tensors: Iterable[Any], role: Role, module: str | None = None) -> None:
        """What these tensors' storages turned out to be, and whose they are if not of the module that made them."""
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                entry = self._live.get(tensor.untyped_storage()._cdata)
                if entry is not None:
                    self._roles[entry[0]] = role
                    if module is not None:
                        step, phase, _, *rest = self._places[entry[0]]
                        self._places[entry[0]] = step, phase, module, *rest

    def mark_live_temporaries(self, role: Role) -> None:
        """Everything alive that has no other role gets this one."""
        for handle, _ in self._live.values():
            if self._roles[handle] == "temporaries":
                self._roles[handle] = role

    def _phase_changed(self) -> None:
        self._marks.append(Mark(len(self._events), self.step, self._phase))

    def _module_changed(self) -> None:
        """Nothing: modules of backward are not told apart on the CPU."""

    def follow_sources_up_to(self, code: CodeType) -> None:
        """The function that calls the user's step: lines beyond it have no part in it."""
        self._outermost = code

    def trace(self, steps: int, job: JobSummary) -> Trace:
        """What was recorded."""
        allocations = tuple(
            Allocation(
                size,
                role,
                step,
                phase,
                module,
                str(op),
                "" if source is None else line(source[0].co_filename, source[1]),
            )
            for size, role, (step, phase, module, op, source) in zip(
                self._sizes, self._roles, self._places, strict=True
            )
        )
        return Trace(
            allocations,
            array("q", self._events),
            tuple(self._marks),
            job,
            tuple(self.assumptions),
            steps=steps,
            target="cpu",
        )


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operator writes into, which are what it returns."""
    return [
        args[i] if i < len(args) else kwargs.get(argument.name)
        for i, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def _unbacked(meta: torch.Tensor) -> torch.Tensor:
    """A CPU tensor laid out like one on meta; its memory is given out and not touched."""
    with torch._C._DisableTorchDispatch():
        out = torch.empty(0, dtype=meta.dtype, device="cpu")
        storage = torch.UntypedStorage(meta.untyped_storage().nbytes(), device="cpu")
        out.set_(storage, meta.storage_offset(), meta.size(), meta.stride())
        return out


def _as_meta(tensor: torch.Tensor) -> torch.Tensor:
    with torch._C._DisableTorchDispatch():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=_META)


def _is_composite(func: Any) -> bool:
    """Whether an operator has no kernel of its own on the CPU, and is made of others; oneDNN's are not."""
    if "mkldnn" in func.name():
        return False
    return not _has_kernel(func, torch._C.DispatchKey.CPU) and any(_has_kernel(func, key) for key in _COMPOSITES)


def _has_kernel(func: Any, key: Any) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key))
