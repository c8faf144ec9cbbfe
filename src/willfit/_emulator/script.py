"""A training script that knows nothing of willfit, run on an emulated GPU up to its second optimizer step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch

from willfit._emulator.messages import Ran, Request
from willfit._emulator.values import Answers, EmulatedFollower
from willfit._script.running import OUTERMOST, run_script
from willfit._script.watched import ScriptFollower, Watched
from willfit._trace.masks import masks_as_under_tracing
from willfit._trace.trace import Trace


class _ScriptFollower(ScriptFollower, EmulatedFollower):
    """Follows a script on a GPU whose kernels write nothing."""


def run_emulated_script(
    where: Path, request: Request, seconds: dict[str, float], done: Callable[[Ran], NoReturn]
) -> Ran:
    """Run the request's script in this process, which is of no use afterwards.

    At its second optimizer step ``done`` ends the process, so that nothing of the script's runs on the way out.
    Where the script ends by itself before, this returns.

    Raises `JobError` for what the script raised, and where no optimizer stepped.
    """
    device = request.device
    start = time.perf_counter()
    follower = _ScriptFollower(torch.device("cuda", 0), device.compute_capability, device.multiprocessors)
    follower.made_with_gpu = True
    follower.follow_sources_up_to(OUTERMOST)

    def ran(trace: Trace) -> Ran:
        stats, recording = torch.cuda.memory_stats(), follower.record()
        return Ran(
            trace=trace,
            phases=tuple(recording.phases),
            peak_allocated=stats["allocated_bytes.all.peak"],
            peak_reserved=stats["reserved_bytes.all.peak"],
            retries=stats["num_alloc_retries"],
            out_of_memory=None,
            seconds={**seconds, "run the script": time.perf_counter() - start},
        )

    watched = Watched(follower, request.steps, lambda trace: done(ran(trace)))
    return ran(run_script(request.script, where, follower, watched, _engine(follower)))


@contextmanager
def _engine(follower: EmulatedFollower) -> Iterator[None]:
    with follower.at_work(), Answers(follower).given(), masks_as_under_tracing(follower):
        yield
