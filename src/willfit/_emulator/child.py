"""The process that emulates a GPU: gets a job, runs it under PyTorch's own CUDA code, writes down what memory did."""

from __future__ import annotations

import dataclasses
import faulthandler
import gc
import os
import pickle
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from willfit._children import Failed, failed_with
from willfit._emulator.messages import FREE, JOB, LIMITED, REQUEST, Ran, Request
from willfit._parallel import end_with_the_parent


def main(folder: str) -> None:
    """Do what the request in the folder says, each run in a process of its own, which starts with an empty GPU."""
    start = time.perf_counter()
    warnings.simplefilter("ignore")
    faulthandler.enable()
    end_with_the_parent()
    os.environ.pop("LD_PRELOAD")  # processes that the user's code starts need no GPU
    where = Path(folder)
    request: Request = pickle.loads((where / REQUEST).read_bytes())
    sys.path.extend(path for path in request.path if path not in sys.path)
    import torch  # noqa: F401 - once for all runs

    seconds = {"import torch": time.perf_counter() - start}
    free = _in_a_fork(where, FREE, request, None, seconds)
    if request.capacity is not None and isinstance(free, Ran) and free.peak_reserved > request.capacity:
        _in_a_fork(where, LIMITED, request, request.capacity, seconds)


def _in_a_fork(where: Path, name: str, request: Request, limit: int | None, seconds: dict[str, float]) -> Ran | Failed:
    """A run in a process that has PyTorch, and has not looked for a GPU yet."""
    child = os.fork()
    if child == 0:
        end_with_the_parent()

        def done(result: Ran | Failed) -> NoReturn:
            (where / name).write_bytes(pickle.dumps(result))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

        done(_result(where, request, limit, seconds, done))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):  # end as it did, so that the parent can say how
        if os.WTERMSIG(status) != signal.SIGKILL:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    result: Ran | Failed = pickle.loads((where / name).read_bytes())
    return result


def _result(
    where: Path, request: Request, limit: int | None, seconds: dict[str, float], done: Callable[[Ran], NoReturn]
) -> Ran | Failed:
    if limit is not None:
        os.environ["WILLFIT_GPU_LIMIT"] = str(limit)
    start = time.perf_counter()
    try:
        if request.script:
            from willfit._emulator.script import run_emulated_script

            return run_emulated_script(where, request, seconds, done)
        with _job(where, request) as job:
            return _run(request, job, limit, {**seconds, "receive the job": time.perf_counter() - start})
    except SystemExit as error:
        return Failed("JobError", f"the training step called sys.exit({error.code!r}): it could not be predicted", "")
    except Exception as error:
        return failed_with(error)


@contextmanager
def _job(where: Path, request: Request) -> Iterator[Any]:
    """The job that was sent, or that of the target; what a target put on the GPU itself is placed like all else."""
    import torch

    from willfit._emulator.wire import Job, pack, unpack
    from willfit._target import imported

    if request.target is None:
        yield unpack((where / JOB).read_bytes())
        return
    with imported(request.target) as build:
        model, optimizer, batch, *step = build()
        job = Job(model, optimizer, batch, step[0] if step else None, None, made_with_gpu=True)
        if torch.cuda.is_initialized():
            job = unpack(pack(job))
            gc.collect()
            torch.cuda.empty_cache()
        yield job


def _run(request: Request, job: Any, limit: int | None, seconds: dict[str, float]) -> Ran:
    import torch

    from willfit._emulator.values import Answers, EmulatedFollower
    from willfit._job import check_job, default_step
    from willfit._real.follower import until_memory_runs_out
    from willfit._real.writer import Before
    from willfit._run import Run
    from willfit._trace.made_before import autocast_contexts_enabled
    from willfit._trace.masks import masks_as_under_tracing
    from willfit._trace.surroundings import Dice, nothing_left_behind

    check_job(job.model, job.optimizer, job.step, job.loss, request.steps)
    device = request.device
    start = time.perf_counter()
    follower = EmulatedFollower(torch.device("cuda", 0), device.compute_capability, device.multiprocessors)
    follower.made_with_gpu = job.made_with_gpu
    follower.before = Before(capacity=limit)
    for note in job.notes:
        follower.assume(note)
    with (
        nothing_left_behind(),
        follower.at_work(),
        Answers(follower).given(),
        autocast_contexts_enabled(follower),
        masks_as_under_tracing(follower),
    ):
        dice = Dice()
        run = Run(follower, job.model, job.optimizer, job.batch, job.step or default_step(job.loss))
        trace = until_memory_runs_out(lambda: run.steps(request.steps))
        if trace is not None and dice.were_cast():
            trace = dataclasses.replace(trace, is_repeatable=False)
        stats = torch.cuda.memory_stats()
        recording = follower.record()
    return Ran(
        trace=trace,
        phases=tuple(recording.phases),
        peak_allocated=stats["allocated_bytes.all.peak"],
        peak_reserved=stats["reserved_bytes.all.peak"],
        retries=stats["num_alloc_retries"],
        out_of_memory=recording.out_of_memory if trace is None else None,
        seconds={**seconds, "run the steps": time.perf_counter() - start},
    )
