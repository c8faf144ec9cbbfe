"""A training script run on fake tensors, in a confined process of its own: how it is started, and what it does."""

from __future__ import annotations

import faulthandler
import os
import pickle
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import willfit
from willfit._children import Failed, failed_with, paths_imported_from, result_of, start, watch
from willfit._devices import Device
from willfit._errors import TraceError, UnavailableError
from willfit._parallel import end_with_the_parent
from willfit._trace.trace import Trace

_REQUEST, _TRACE = "request", "trace"
_MODULE = "willfit._script.symbolic"
_SETTINGS = {
    "WILLFIT": "off",  # guards in the script stand aside
    "PYTHONWARNINGS": "ignore",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # else torch.compile starts processes, though nothing is compiled
    "CUDA_VISIBLE_DEVICES": "",  # a GPU that is here has no part in it
}

_NOT_SEEN = (
    "the script ran on fake tensors: data on the host are real, those on the GPU have no values; kernels of its own "
    "that allocate by themselves are not seen"
)


@dataclass(frozen=True)
class _Request:
    command: tuple[str, ...]
    device: Device
    steps: int
    path: tuple[str, ...]


def trace_of_script(command: tuple[str, ...], device: Device, steps: int) -> Trace:
    """What a script, with its arguments, does on a GPU until each of its optimizers has made so many steps.

    Raises:
        JobError: it raised, or no optimizer stepped.
        UnavailableError: this is Windows.
        TraceError: an operator cannot run on fake tensors, or the process crashed.
    """
    if sys.platform == "win32":
        raise UnavailableError(
            "a script is confined to a folder by means that Windows lacks: run it under WSL, or let a function of it "
            "return (model, optimizer, batch) and give that to `willfit check`"
        )
    with tempfile.TemporaryDirectory(prefix="willfit-") as folder:
        where = Path(folder)
        (where / _REQUEST).write_bytes(pickle.dumps(_Request(command, device, steps, tuple(paths_imported_from()))))
        packages = {"willfit": str(Path(willfit.__file__).parent)}
        ended = watch(start(sys.executable, _MODULE, folder, packages, {**os.environ, **_SETTINGS}))
        if ended:
            raise TraceError(f"the process that ran the script on fake tensors {ended}")
        trace: Trace = result_of(where / _TRACE)
        return trace


def main(folder: str) -> None:
    """In the process: run the script that the folder's request names, and write down its trace."""
    warnings.simplefilter("ignore")
    faulthandler.enable()
    end_with_the_parent()
    where = Path(folder)
    request: _Request = pickle.loads((where / _REQUEST).read_bytes())
    sys.path.extend(path for path in request.path if path not in sys.path)

    def done(result: Trace | Failed) -> NoReturn:
        (where / _TRACE).write_bytes(pickle.dumps(result))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    try:
        import willfit._trace.cuda  # noqa: F401 - its import registers the rules
        from willfit._script.on_fakes import ScriptRecorder, on_fake_gpu
        from willfit._script.refusals import refused
        from willfit._script.running import OUTERMOST, run_script
        from willfit._script.watched import Watched

        device = request.device
        recorder = ScriptRecorder(device.compute_capability, device.multiprocessors)
        recorder.made_with_gpu = True
        recorder.assume(_NOT_SEEN)
        recorder.follow_sources_up_to(OUTERMOST)
        watched = Watched(recorder, request.steps, done)
        engine = on_fake_gpu(recorder, device)
        done(run_script(request.command, where, recorder, watched, engine, refused))
    except Exception as error:
        done(failed_with(error))
