"""Storages born and freed on the fake GPU, written down as events in order."""

from __future__ import annotations

import weakref
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from types import CodeType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from willfit._trace.fake import META, FakeCudaTensor, storages_of
from willfit._trace.following import Follower, calling_line, line
from willfit._trace.kernels import Call, Rule, rules
from willfit._trace.shapes import Shapes
from willfit._trace.trace import Allocation, JobSummary, Mark, Phase, Role, Trace, Transfers

_CPU = torch.device("cpu")


class Recorder(TorchDispatchMode, Follower):
    """Runs operators on fake CUDA tensors without computing, and notes every allocation and free.

    Operators whose tensors are all on the CPU run for real: learning rates, step counts and the like keep their values.
    """

    # PyTorch's C++ then knows that tensors are fake, and leaves the CUDA driver alone
    # (torch/csrc/utils/device_lazy_init.cpp)
    _mode_key = torch._C._TorchDispatchModeKey.FAKE
    shape_env = None
    static_shapes = True

    def __init__(self, compute_capability: tuple[int, int], multiprocessors: int) -> None:
        TorchDispatchMode.__init__(self)
        Follower.__init__(self, compute_capability, multiprocessors)
        self._streams: tuple[list[int], list[int]] = ([0], [0])
        self._moved: dict[tuple[int, bool], int] = {}
        """Bytes by step, and whether they went to the host."""
        self.paged = 0
        """Bytes of managed memory, beside what the allocator gives."""
        self.draws_on_host = False
        """Whether an operator on the CPU drew random numbers."""
        self._rules: dict[Any, Rule] = rules()
        self._shapes = Shapes()
        self._events = array("q")
        self._marks: list[Mark] = [Mark(0, 0, "placement")]
        self._sizes: list[int] = []
        self._roles: list[Role] = []
        self._places: list[tuple[int, Phase, str, Any, tuple[CodeType, int] | None, int]] = []
        self._live: dict[int, tuple[int, Any]] = {}
        self._cpu_born: dict[int, Any] = {}
        self._standins: dict[int, tuple[Any, torch.Tensor]] = {}
        self._user_grads: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self._boundaries: tuple[list[int], list[str]] = ([0], [""])
        self._outermost: CodeType | None = None

    # -- operators --------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if FakeCudaTensor not in types:
            device = kwargs.get("device")
            if device is None or device.type == "cpu":
                if func is torch.ops.aten._to_copy.default and args[0].device.type != "cpu":
                    return self.run(func, args, kwargs)
                return self.run_on_cpu(func, args, kwargs)
        rule = self._rules.get(func)
        if rule is None and _is_composed(func):  # autograd, which would take it apart, is not there in inference mode
            with self:
                return func.decompose(*args, **kwargs)
        out = self.run(func, args, kwargs) if rule is None else rule(Call(self, func, args, kwargs))
        self.known.after(func, args, kwargs, out)
        return out

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], order: Sequence[int] | None = None) -> Any:
        """Run an operator on meta tensors and record its new outputs, as allocated in this order of them."""
        self.last_operator = func
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": META}
        args = self._adopt_all(func, args)
        try:
            out = self._shapes.run(func, args, kwargs)
        except NotImplementedError:
            if func._schema.returns:
                raise
            return None  # it changes its arguments in place and makes no tensor
        if isinstance(out, torch.Tensor):
            return out if type(out) is FakeCudaTensor else self._born(out, func)
        if order is not None:
            wrapped = {position: self._wrapped(out[position], func) for position in order}
            return tuple(wrapped[position] for position in range(len(out)))
        return self._wrapped(out, func)

    def _wrapped(self, out: Any, func: Any) -> Any:
        if isinstance(out, torch.Tensor):
            return out if type(out) is FakeCudaTensor else self._born(out, func)
        if isinstance(out, (tuple, list)):
            return type(out)(self._wrapped(item, func) for item in out)
        return out

    def run_on_cpu(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator whose tensors are on the CPU for real, unless it would change the user's."""
        if func._schema.is_mutable and self._changes_the_users(func, args, kwargs):
            return self.run(func, self._adopt_all(func, args, scalars=True), kwargs)
        self.draws_on_host = self.draws_on_host or torch.Tag.nondeterministic_seeded in func.tags
        out = func(*args, **without_pinning(kwargs))
        given: set[int] | None = None
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                if storage._cdata not in self._cpu_born:
                    if given is None:
                        inputs = () if func is _FRESH else _dense((args, kwargs))
                        given = {t.untyped_storage()._cdata for t in inputs}
                    if storage._cdata not in given:  # else it is a view of the user's
                        self._cpu_born[storage._cdata] = storage
        return out

    def _changes_the_users(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[position] if position < len(args) else kwargs.get(argument.name)
                if any(tensor.untyped_storage()._cdata not in self._cpu_born for tensor in _dense(value)):
                    return True
        return False

    def has_no_values(self, tensor: torch.Tensor) -> bool:
        """Fake tensors have none."""
        return type(tensor) is FakeCudaTensor

    def own_cpu_tensor(self, tensor: torch.Tensor) -> None:
        """A CPU tensor that belongs to the job's copy: it may be changed in place."""
        self.own_cpu_storage(tensor.untyped_storage())

    def own_cpu_storage(self, storage: torch.UntypedStorage) -> None:
        """Likewise, for all tensors over this storage."""
        self._cpu_born[storage._cdata] = storage

    # -- tensors that are not the job's own -------------------------------------------------------------------

    def _adopt_all(self, func: Any, args: tuple[Any, ...], scalars: bool = False) -> tuple[Any, ...]:
        """The arguments, with tensors from outside of the job replaced by fakes that stand for them on the GPU."""
        for arg in args:
            if isinstance(arg, torch.Tensor):
                if type(arg) is not FakeCudaTensor and (scalars or arg.dim()) and not self._is_host_argument(func, arg):
                    break
            elif (
                isinstance(arg, (list, tuple))
                and arg
                and any(isinstance(item, torch.Tensor) and type(item) is not FakeCudaTensor for item in arg)
                and any(type(item) is FakeCudaTensor or item is None for item in arg)
            ):
                break
        else:
            return args
        return tuple(
            tree_map_only(
                torch.Tensor,
                lambda t: (
                    t
                    if type(t) is FakeCudaTensor or not (scalars or t.dim()) or self._is_host_argument(func, t)
                    else self.adopt(t)
                ),
                arg,
            )
            for arg in args
        )

    def _is_host_argument(self, func: Any, tensor: torch.Tensor) -> bool:
        """True where PyTorch takes a CPU tensor beside CUDA ones: copies from the host."""
        return func in _COPIES_FROM_HOST and tensor.device.type == "cpu"

    def adopt(self, tensor: torch.Tensor) -> torch.Tensor:
        """A fake that stands for a tensor found outside of the job; it counts as on the GPU as long as that lives."""
        key = id(tensor)
        if key not in self._standins:
            self.assume(
                "the step uses tensors that belong neither to the model nor to the batch: "
                "counted as being on the GPU from their first use on"
            )
            with torch._C._DisableTorchDispatch():
                meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)
            fake = self._born(meta, "adopted", role="inputs")
            self._standins[key] = weakref.ref(tensor, lambda _: self._standins.pop(key, None)), fake
            if tensor.is_leaf and tensor.requires_grad:
                self._user_grads.append((tensor, tensor.grad))
        return self._standins[key][1]

    def restore_gradients(self) -> None:
        """Give tensors from outside of the job the gradients that they had."""
        for tensor, grad in self._user_grads:
            tensor.grad = grad

    # -- allocations ------------------------------------------------------------------------------------------

    def allocate(self, nbytes: int, role: Role = "temporaries", op: Any = None) -> int:
        """Note an allocation of so many bytes; returns its handle. None is made for 0 bytes, as on CUDA."""
        handle = len(self._sizes)
        self._sizes.append(nbytes)
        self._roles.append(role)
        self._places.append(
            (self.step, self._phase, self._module(), op or self.last_operator, self._source(), self.stream)
        )
        if nbytes:
            self._events.append(handle + 1)
        return handle

    def free(self, handle: int) -> None:
        """Note that an allocation is given back."""
        if self._sizes[handle]:
            self._events.append(-(handle + 1))

    def moved(self, nbytes: int, *, to_host: bool) -> None:
        """Data crossed the link between the host and the GPU."""
        self._moved[self.step, to_host] = self._moved.get((self.step, to_host), 0) + nbytes

    def empty_cache(self) -> None:
        """Note a call of torch.cuda.empty_cache()."""
        self._events.append(0)

    def events_from(self, position: int) -> array[int]:
        """What was recorded from this event on, as in `Trace.events`."""
        return self._events[position:]

    def request(self, allocation: int) -> tuple[int, int]:
        """The bytes and the stream of an allocation."""
        return self._sizes[allocation], self._places[allocation][-1]

    def _born(self, meta: torch.Tensor, op: Any, role: Role = "temporaries") -> torch.Tensor:
        for storage in storages_of(meta):
            key = storage._cdata
            if key not in self._live:
                handle = self.allocate(storage.nbytes(), role, op)
                self._live[key] = (handle, weakref.ref(storage, partial(self._died, key, handle)))
        return FakeCudaTensor.wrap(meta)

    def _died(self, key: int, handle: int, _: Any) -> None:
        if self._live.pop(key, None) is not None:
            self.free(handle)

    def place(self, meta: torch.Tensor, role: Role, module: str, original: torch.Tensor) -> torch.Tensor:
        """Allocate a tensor of the job on the GPU, and return the fake one."""
        with self.in_module(module):
            return self._born(meta, "placement", role)

    def as_parameter(self, tensor: torch.Tensor, kind: type[torch.nn.Parameter], requires_grad: bool) -> torch.Tensor:
        """A fake tensor that passes for a parameter of this class."""
        tensor._is_param = True  # what isinstance(x, nn.Parameter) looks at
        if kind is not torch.nn.Parameter:
            tensor._willfit_class = kind  # type: ignore[attr-defined]
        return tensor.requires_grad_(requires_grad)

    def release_all(self) -> None:
        """Forget live storages, so that what the trace leaves behind is not noted as frees, and the job's copy.

        A gradient that is left may know its values by way of this recorder; its parameter owns it out of the garbage
        collector's sight.
        """
        self._live.clear()
        self._standins.clear()
        self.state.clear()
        self.after_backward = lambda: None

    # -- roles ------------------------------------------------------------------------------------------------

    def mark_role(self, tensors: Iterable[Any], role: Role, module: str | None = None) -> None:
        """What these tensors' storages turned out to be, and whose they are if not of the module that made them."""
        for tensor in tensors:
            if type(tensor) is FakeCudaTensor:
                for storage in storages_of(tensor):
                    if (entry := self._live.get(storage._cdata)) is not None:
                        self._roles[entry[0]] = role
                        if module is not None:
                            step, phase, _, *rest = self._places[entry[0]]
                            self._places[entry[0]] = step, phase, module, *rest

    def mark_live_temporaries(self, role: Role) -> None:
        """Everything alive that has no other role gets this one."""
        roles = self._roles
        for handle, _ in self._live.values():
            if roles[handle] == "temporaries":
                roles[handle] = role

    # -- where the job is -------------------------------------------------------------------------------------

    def _phase_changed(self) -> None:
        self._marks.append(Mark(len(self._events), self.step, self._phase))

    @property
    def stream(self) -> int:
        """The stream that the job is on; a node of autograd runs on the one of its forward (Node::stream)."""
        numbers, streams = self._streams
        if len(streams) > 1 and self._phase == "backward":
            node = torch._C._current_autograd_node()
            if node is not None and (number := node._sequence_nr()) < numbers[-1]:
                return streams[bisect_right(numbers, number) - 1]
        return streams[-1]

    def change_stream(self, stream: int) -> None:
        """The job goes on, on another stream."""
        numbers, streams = self._streams
        numbers.append(torch._C._autograd._get_sequence_nr())
        streams.append(stream)

    def follow_sources_up_to(self, code: CodeType) -> None:
        """The function that calls the user's step: lines beyond it have no part in it."""
        self._outermost = code

    def _module_changed(self) -> None:
        numbers, names = self._boundaries
        numbers.append(torch._C._autograd._get_sequence_nr())
        names.append(self._modules[-1] if self._modules else "")

    def _module(self) -> str:
        if self._modules:
            return self._modules[-1]
        node = torch._C._current_autograd_node() if self._phase == "backward" else None
        if node is None:
            return ""
        numbers, names = self._boundaries
        number = node._sequence_nr()
        return names[bisect_right(numbers, number) - 1] if number < numbers[-1] else ""

    def _source(self) -> tuple[CodeType, int] | None:
        return None if self._phase == "placement" else calling_line(self._outermost, 3)

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
                stream,
            )
            for size, role, (step, phase, module, op, source, stream) in zip(
                self._sizes, self._roles, self._places, strict=True
            )
        )
        return Trace(
            allocations,
            array("q", self._events),
            tuple(self._marks),
            job,
            tuple(self.assumptions),
            self.convolution_workspace,
            steps,
            transfers=tuple(
                Transfers(self._moved.get((number, True), 0), self._moved.get((number, False), 0), self.paged)
                for number in range(1, steps + 1)
            ),
            is_repeatable=not self.draws_on_host,
            reads_batch=self.known.batch_was_read,
        )


@cache
def _is_composed(func: Any) -> bool:
    """Whether all that an operator does is to call others: not one that has kernels, and does so where it has none."""
    keys: Any = torch._C.DispatchKey
    has_kernel = getattr(func, "has_kernel_for_dispatch_key", None)  # a higher-order operator has no such question
    return has_kernel is not None and has_kernel(keys.CompositeImplicitAutograd) and not has_kernel(keys.CPU)


def without_pinning(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of an operator on the CPU; pinned memory needs a GPU, and is none of its."""
    return {**kwargs, "pin_memory": False} if kwargs.get("pin_memory") else kwargs


def _dense(value: Any) -> Iterator[torch.Tensor]:
    return (t for t in tree_leaves(value) if isinstance(t, torch.Tensor) and t.layout == torch.strided)


_FRESH = torch.ops.aten.lift_fresh.default  # its argument has just been made, as by torch.tensor(0.0)
_COPIES_FROM_HOST = frozenset((torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default))
