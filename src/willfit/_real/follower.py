"""Follows a job that runs on real tensors: torch.profiler sees the memory, notes tell what happened in between."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import CodeType
from typing import Any
from unittest.mock import patch

import torch

from willfit._errors import JobError
from willfit._real import history
from willfit._real.timeline import NOTE, RUN, timeline
from willfit._real.writer import Before, Note, Recording, Writer
from willfit._trace.fake import storages_of
from willfit._trace.following import Follower, calling_line, line, phases_and_modules
from willfit._trace.trace import JobSummary, Role, Trace


class RealFollower(Follower):
    """An engine: runs a job on a device, emulated or not, and writes down what its allocator did."""

    def __init__(
        self, device: torch.device, compute_capability: tuple[int, int] = (0, 0), multiprocessors: int = 0
    ) -> None:
        super().__init__(compute_capability, multiprocessors)
        self.device, self.is_gpu = device, device.type == "cuda"
        self.before = Before()
        self.recording: Recording | None = None
        """What was recorded; there once `record` was called."""
        self.draws_on_host = False
        """Whether an operator on the CPU drew random numbers, as far as operators are met."""
        self._notes: list[Note] = []
        self._placed: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        """During placement, the storage on the device for each on meta, by its address."""
        self._profile: Any = None
        self._scope: Any = torch._C._profiler._RecordFunctionFast(RUN)
        self._outermost: CodeType | None = None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While the body runs, memory is recorded, and phases and modules are followed."""
        with ExitStack() as stack:
            if self.device.type == "cuda":
                history.start()
                stack.callback(history.stop)
            self._profile = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            )
            with patch.dict(os.environ, {"KINETO_LOG_LEVEL": os.environ.get("KINETO_LOG_LEVEL", "99")}):
                self._profile.start()  # which says so on stderr otherwise
            stack.callback(self._stop_profile)
            stack.callback(self.release)
            self._scope.__enter__()
            own_empty_cache = torch.cuda.empty_cache
            stack.callback(setattr, torch.cuda, "empty_cache", own_empty_cache)
            torch.cuda.empty_cache = self._noted(own_empty_cache)
            stack.enter_context(phases_and_modules(self))
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield

    def _stop_profile(self) -> Any:
        """What the profiler saw; None if it was stopped before."""
        profile, self._profile = self._profile, None
        if profile is None:
            return None
        self._scope.__exit__(None, None, None)
        profile.stop()
        return profile.profiler.kineto_results

    # -- notes ------------------------------------------------------------------------------------------------

    def _note(self, note: Note) -> None:
        """Put a note into the profiler's stream of events, at this moment."""
        with torch._C._profiler._RecordFunctionFast(f"{NOTE}{len(self._notes)}"):
            self._notes.append(note)

    def _noted(self, empty_cache: Any) -> Any:
        def noted() -> None:
            self._note(("empty cache",))
            empty_cache()

        return noted

    def _phase_changed(self) -> None:
        self._placed.clear()
        self._note(("phase", self.step, self._phase))

    def _module_changed(self) -> None:
        module = self._modules[-1] if self._modules else ""
        self._note(("module", module, torch._C._autograd._get_sequence_nr()))

    def backward_begins(self) -> None:
        """The nodes of a backward pass have no Python lines: that which called it stands for them."""
        source = calling_line(self._outermost, 3)
        self._note(("source", "" if source is None else line(source[0].co_filename, source[1])))

    def follow_sources_up_to(self, code: CodeType) -> None:
        """The function that calls the user's step: lines beyond it have no part in it."""
        self._outermost = code

    def is_followed_here(self) -> bool:
        """On the thread that runs the steps, and on autograd's own, where checkpointed modules run again."""
        return super().is_followed_here() or torch._C._current_graph_task_id() != -1

    # -- tensors ----------------------------------------------------------------------------------------------

    def place(self, meta: torch.Tensor, role: Role, module: str, original: torch.Tensor) -> torch.Tensor:
        """Allocate a tensor of the job on the device."""
        storage = meta.untyped_storage()
        _, real = self._placed.get(storage._cdata, (None, None))
        if real is None:
            real = torch.empty(storage.nbytes(), dtype=torch.uint8, device=self.device).untyped_storage()
            if original.device.type not in ("cpu", "meta"):  # others share no storage, and are not kept
                self._placed[storage._cdata] = storage, real
            self._note(("placed", role, module, real.data_ptr()))
        placed = torch.empty(0, dtype=meta.dtype, device=self.device)
        return placed.set_(real, meta.storage_offset(), meta.size(), meta.stride())

    def as_parameter(self, tensor: torch.Tensor, kind: type[torch.nn.Parameter], requires_grad: bool) -> torch.Tensor:
        """A parameter over the storage of a placed tensor."""
        return torch.Tensor._make_subclass(kind, tensor, requires_grad)

    def own_cpu_tensor(self, tensor: torch.Tensor) -> None:
        """Nothing: the job's copy is all that runs."""

    def mark_role(self, tensors: Iterable[Any], role: Role, module: str | None = None) -> None:
        """What these tensors' storages turned out to be, and whose they are if not of the module that made them."""
        on_device = [t for t in tensors if isinstance(t, torch.Tensor) and t.device.type == self.device.type]
        addresses = [storage.data_ptr() for tensor in on_device for storage in storages_of(tensor)]
        self._note(("role", role, addresses, module))

    def mark_live_temporaries(self, role: Role) -> None:
        """Everything alive that has no other role gets this one."""
        self._note(("live", role))

    # -- what was recorded ------------------------------------------------------------------------------------

    def record(self) -> Recording:
        """Stop recording, and put together what was recorded; where memory ran out, up to there."""
        if self.recording is None:
            results = self._stop_profile()
            past = None
            if self.device.type == "cuda":
                past = history.read(self.device.index or 0, self._outermost)
            failed = past is not None and past.out_of_memory is not None
            events = timeline(results, self.device.type, failed)
            self.recording = Writer(self._notes, self.compute_capability, self.before).write(events, past)
        return self.recording

    def release(self) -> None:
        """Let go of all that belongs to the job's copy."""
        self.after_backward = lambda: None
        self._placed.clear()
        self.state.clear()

    def trace(self, steps: int, job: JobSummary) -> Trace:
        """What was recorded."""
        recording = self.record()
        return Trace(
            tuple(recording.allocations),
            recording.events,
            tuple(recording.marks),
            job,
            tuple(self.assumptions),
            self.convolution_workspace,
            steps,
            is_repeatable=not self.draws_on_host,
        )


class CopyingFollower(RealFollower):
    """An engine whose kernels compute: what is placed has the user's values, or zeros where they are on meta."""

    def __init__(
        self, device: torch.device, compute_capability: tuple[int, int] = (0, 0), multiprocessors: int = 0
    ) -> None:
        super().__init__(device, compute_capability, multiprocessors)
        self.shares_data = False

    def place(self, meta: torch.Tensor, role: Role, module: str, original: torch.Tensor) -> torch.Tensor:
        """Allocate a tensor of the job on the device, with its values."""
        placed = super().place(meta, role, module, original)
        with torch.no_grad():
            if original.device.type == "meta":
                placed.zero_()
            else:
                placed.copy_(original.detach())
        return placed


def until_memory_runs_out(run: Callable[[], Trace]) -> Trace | None:
    """The trace of a run; None where memory ran out on the way. Any other exception is raised."""
    try:
        return run()
    except torch.OutOfMemoryError:
        return None
    except JobError as error:
        if not isinstance(error.__cause__, torch.OutOfMemoryError):
            raise
        return None
