"""What is known of a job while its steps run, whichever engine runs them: step, phase, module, source line."""

from __future__ import annotations

import gc
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import CodeType
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from willfit._trace.known import KnownValues
from willfit._trace.trace import JobSummary, Phase, Role, Trace

_STANDARD_LIBRARY = os.path.dirname(os.__file__)
_NEVER_SHOWN = tuple(
    f"{directory}{os.sep}"
    for directory in (os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(__file__)))
)
"""PyTorch and willfit, which may be installed among other libraries."""


class Follower(ABC):
    """Follows a job through its steps. An engine is one that also knows what was allocated."""

    is_gpu = True
    """Whether the job is followed on a GPU, to which its tensors are moved."""

    def __init__(self, compute_capability: tuple[int, int], multiprocessors: int) -> None:
        super().__init__()
        self.compute_capability = compute_capability
        self.multiprocessors = multiprocessors
        self.step = 0
        self.assumptions: dict[str, None] = {}
        self.last_operator: Any = ""
        self.state: dict[Any, Any] = {}
        """What a rule keeps for the length of the run: workspaces already taken, seeds already made."""
        self.convolution_workspace = 0
        """Upper bound on what cuDNN takes for one convolution."""
        self.made_with_gpu = torch.cuda.is_available()
        """Whether there was a GPU where the job was made: what is switched off there is so on purpose."""
        self.known = KnownValues(self.has_no_values)
        self.shares_data = True
        """Whether the job's copy may have the user's own large tensors on the CPU, as nothing changes them there."""
        self.after_backward: Callable[[], None] = lambda: None
        """Called when a backward pass has ended: the gradients are there."""
        self._phase: Phase = "placement"
        self._modules: list[str] = []
        self._module_names: dict[int, str] = {}
        self._thread = threading.get_ident()

    # -- what an engine does ----------------------------------------------------------------------------------

    @abstractmethod
    def place(self, meta: torch.Tensor, role: Role, module: str, original: torch.Tensor) -> torch.Tensor:
        """A tensor of the job on its device, laid out as ``meta``; what shares a storage there shares one here."""

    @abstractmethod
    def as_parameter(self, tensor: torch.Tensor, kind: type[torch.nn.Parameter], requires_grad: bool) -> torch.Tensor:
        """A placed tensor as a parameter of this class, without attributes of its own."""

    def copy_on_cpu(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a tensor of the user's on the CPU, which belongs to the job's copy."""
        copied = tensor.detach().clone()
        self.own_cpu_tensor(copied)
        return copied

    def has_no_values(self, tensor: torch.Tensor) -> bool:
        """Whether this is a tensor of the job's that no kernel computes, so that what it holds means nothing."""
        return False

    @abstractmethod
    def own_cpu_tensor(self, tensor: torch.Tensor) -> None:
        """A CPU tensor that belongs to the job's copy: it may be changed in place."""

    @abstractmethod
    def mark_role(self, tensors: Iterable[Any], role: Role, module: str | None = None) -> None:
        """What these tensors' storages turned out to be, and whose they are if not of the module that made them."""

    @abstractmethod
    def mark_live_temporaries(self, role: Role) -> None:
        """Everything alive that has no other role gets this one."""

    @abstractmethod
    def trace(self, steps: int, job: JobSummary) -> Trace:
        """What was recorded."""

    @abstractmethod
    def _phase_changed(self) -> None:
        """The job has entered a phase."""

    @abstractmethod
    def _module_changed(self) -> None:
        """Another module runs now, or none."""

    def collect_garbage(self) -> None:
        """Free what is in cycles, at the end of a phase, so that a run is the same each time."""
        gc.collect(1)

    def backward_begins(self) -> None:  # noqa: B027 - most need nothing here
        """Called on the thread that calls backward, before the first node runs."""

    def follow_sources_up_to(self, code: CodeType) -> None:  # noqa: B027
        """The function that calls the user's step: lines beyond it have no part in it."""

    def is_followed_here(self) -> bool:
        """Whether what happens on this thread is the job's."""
        return threading.get_ident() == self._thread

    # -- where the job is -------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Where in a step the job is."""
        return self._phase

    def enter(self, phase: Phase, step: int | None = None) -> None:
        """The job enters a phase."""
        if step is not None:
            self.step = step
        elif phase == self._phase:
            return
        self._phase = phase
        self._phase_changed()

    def name_modules(self, names: dict[int, str]) -> None:
        """Paths of the job's modules, by id."""
        self._module_names = names

    def name_of(self, module: torch.nn.Module) -> str:
        """The module's path in the model, for messages; its class where it has none."""
        return self._module_names.get(id(module)) or type(module).__name__

    def enter_module(self, module: torch.nn.Module) -> None:
        """A module's forward begins."""
        self._modules.append(self.name_of(module))
        self._module_changed()

    @contextmanager
    def in_module(self, path: str) -> Iterator[None]:
        """What happens inside is a module's of that path."""
        self._modules.append(path)
        self._module_changed()
        try:
            yield
        finally:
            self._modules.pop()
            self._module_changed()

    def leave_module(self) -> None:
        """The innermost module's forward ends, by an exception too."""
        if self._modules:
            self._modules.pop()
        self._module_changed()

    @contextmanager
    def module_depth_kept(self) -> Iterator[None]:
        """Drop modules that were entered inside and never left."""
        depth = len(self._modules)
        yield
        del self._modules[depth:]

    def assume(self, sentence: str) -> None:
        """Note what was decided or not modelled, once."""
        self.assumptions[sentence] = None


@contextmanager
def phases_and_modules(follower: Follower) -> Iterator[None]:
    """Tell a follower, while the body runs, of backward passes and of modules that run."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.autograd, "_engine_run_backward", _backward(follower)))
        _follow_modules(follower, stack)
        yield


def _backward(follower: Follower) -> Callable[..., Any]:
    own = torch.autograd.graph._engine_run_backward

    def run(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not follower.is_followed_here():
            return own(outputs, *args, **kwargs)
        before = follower.phase
        nested = before == "backward"
        if not nested:
            follower.mark_live_temporaries("activations")
            follower.mark_role(outputs, "temporaries")
            follower.enter("backward")
            follower.backward_begins()
        try:
            with follower.module_depth_kept():
                return own(outputs, *args, **kwargs)
        finally:
            if not nested:
                follower.after_backward()
                follower.collect_garbage()
                follower.enter("optimizer step")

    return run


def _follow_modules(follower: Follower, stack: ExitStack) -> None:
    def enter(module: torch.nn.Module, _: Any) -> None:
        if follower.is_followed_here():
            if follower.phase == "optimizer step":
                follower.enter("forward")
            follower.enter_module(module)

    def leave(module: torch.nn.Module, _: Any, __: Any) -> None:
        if follower.is_followed_here():
            follower.leave_module()

    stack.callback(register_module_forward_pre_hook(enter).remove)
    stack.callback(register_module_forward_hook(leave, always_call=True).remove)


# -- source lines --------------------------------------------------------------------------------------------


def shows_where(filename: str) -> bool:
    """Whether a line of this file tells users where they are: their own files and those of libraries, not PyTorch's."""
    if filename.startswith(_NEVER_SHOWN):
        return False
    is_library = "site-packages" in filename and "site-packages/torch" not in filename
    return is_library or not filename.startswith(_STANDARD_LIBRARY)


def line(filename: str, number: int) -> str:
    """A source line for people: ``"models/train.py:12"``."""
    return f"{'/'.join(filename.replace(chr(92), '/').rsplit('/', 2)[-2:])}:{number}"


def calling_line(outermost: CodeType | None, depth: int) -> tuple[CodeType, int] | None:
    """The innermost line that shows where, of those that called, up to the function whose code is ``outermost``."""
    frame = sys._getframe(depth)
    while frame is not None:
        code = frame.f_code
        if code is outermost:
            return None
        is_user = _user_code.get(code)
        if is_user is None:
            is_user = _user_code[code] = shows_where(code.co_filename)
        if is_user:
            return code, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return None


_user_code: dict[CodeType, bool] = {}
