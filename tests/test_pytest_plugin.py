from __future__ import annotations

import subprocess
import sys

import pytest

import willfit._device_here  # noqa: F401 - here, as what a run by pytester imports is imported anew by the next
from willfit import Device, predict

# Both the tests here and those that they write use this job.
JOB = """
import pytest, torch
from willfit import Device

TOY = Device(name="toy", total=2**30, context=2**20)
SMALL = Device(name="small", total=4 * 2**20, context=0)
model = torch.nn.Linear(64, 64)
job = (model, torch.optim.SGD(model.parameters(), lr=0.1), torch.ones(4, 64))
loss = lambda model, batch: model(batch).sum()
"""


@pytest.fixture(scope="module")
def peaks() -> dict[str, int]:
    names: dict[str, object] = {}
    exec(JOB, names)
    footprint = predict(*names["job"], loss=names["loss"], on=names["TOY"])  # type: ignore[misc, arg-type]
    return {
        "required": footprint.required,
        "reserved": footprint.peak_reserved,
        "allocated": footprint.peak_allocated,
    }


@pytest.mark.parametrize("peak", ["required", "reserved", "allocated"])
def test_the_limit_holds_to_the_byte(pytester: pytest.Pytester, peaks: dict[str, int], peak: str) -> None:
    limit = peaks[peak]
    pytester.makepyfile(
        JOB
        + f"""
@pytest.mark.willfit(on=TOY, peak="{peak}", limit={limit})
def test_exactly(willfit):
    assert willfit.check(*job, loss=loss).verdict == "fits"

@pytest.mark.willfit(on=TOY, peak="{peak}", limit="{limit} B")
def test_in_text(willfit):
    willfit.check(*job, loss=loss)

@pytest.mark.willfit(on=TOY, peak="{peak}", limit={limit - 1})
def test_one_byte_less(willfit):
    willfit.check(*job, loss=loss)
    raise AssertionError("not reached")
"""
    )
    result = pytester.runpytest()
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            f"*Failed: Linear needs * ({peak}), 1 B over the limit of *",
            "*Captured willfit call*",
            "FITS: training Linear*",
            "What holds the memory at the peak*",
        ]
    )
    result.stdout.no_fnmatch_line("*not reached*")
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")


def test_required_is_the_peak_without_a_word(pytester: pytest.Pytester, peaks: dict[str, int]) -> None:
    pytester.makepyfile(
        JOB
        + f"""
@pytest.mark.willfit(on=TOY, limit={peaks["required"] - 1})
def test_it(willfit):
    willfit.check(*job, loss=loss)
"""
    )
    pytester.runpytest().stdout.fnmatch_lines(["*Failed: * (required), 1 B over*"])


def test_a_job_that_does_not_fit_fails(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + """
@pytest.mark.willfit(on=SMALL)
def test_it(willfit):
    willfit.check(*job, loss=loss)

@pytest.mark.willfit(on=SMALL, limit="1 MiB")
def test_both(willfit):
    willfit.check(*job, loss=loss)
"""
    )
    result = pytester.runpytest()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "*Failed: Linear does not fit on small",
            "*Failed: Linear does not fit on small and needs * over the limit of 1.00 MiB",
        ]
    )


def test_predict_never_fails_a_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + """
@pytest.mark.willfit(on=SMALL, limit=1, steps=2)
def test_it(willfit):
    footprint = willfit.predict(*job, loss=loss)
    assert (footprint.verdict, footprint.device, footprint.steps) == ("does not fit", SMALL, 2)

def test_unmarked(willfit):
    assert willfit.predict(*job, loss=loss, on=TOY).device is TOY
"""
    )
    pytester.runpytest().assert_outcomes(passed=2)


def test_a_step_and_overrides(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + """
def step(model, optimizer, batch):
    loss(model, batch).backward()
    optimizer.step()

@pytest.mark.willfit(on=SMALL, limit=1)
def test_it(willfit):
    assert willfit.check(*job, step, on=TOY, limit="1 GiB", steps=1).steps == 1
    with pytest.raises(ValueError, match="unknown argument 'size': there are on, limit, peak, steps"):
        willfit.check(*job, step, size=3)
    with pytest.raises(ValueError, match="limit '24 G'"):
        willfit.check(*job, step, limit="24 G")
"""
    )
    pytester.runpytest().assert_outcomes(passed=1)


def test_the_nearest_marker_goes_first_argument_by_argument(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + """
pytestmark = pytest.mark.willfit(on=SMALL, steps=2)

@pytest.mark.willfit(limit="1 GiB")
class TestIt:
    @pytest.mark.willfit(on=TOY)
    def test_it(self, willfit):
        footprint = willfit.check(*job, loss=loss)
        assert (footprint.device, footprint.steps) == (TOY, 2)
"""
    )
    pytester.runpytest().assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("size=3", "unknown argument 'size': there are on, limit, peak, steps"),
        ("'T4'", "arguments go by keyword, as in willfit(on=\"T4\"): found 'T4'"),
        ("limit='24 G'", 'limit \'24 G\' has no unit that willfit takes: did you mean "24 GiB" or "24 GB"?'),
        ("on='T5'", "'T5' is no GPU that willfit knows*"),
        ("peak='free'", "peak must be one of required, reserved, allocated: found 'free'"),
        ("steps=0", "steps must be a number of optimizer steps, 1 or more: found 0"),
    ],
)
def test_wrong_markers_are_refused_at_collection(pytester: pytest.Pytester, arguments: str, message: str) -> None:
    pytester.makepyfile(
        test_it=f"""
import pytest

def test_before():
    raise AssertionError("no test runs")

@pytest.mark.willfit({arguments})
def test_wrong():
    pass
"""
    )
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: test_it.py::test_wrong: marker willfit: {message}"])


def test_a_tight_fit_passes_with_a_warning(pytester: pytest.Pytester, peaks: dict[str, int]) -> None:
    pytester.makepyfile(
        JOB
        + f"""
@pytest.mark.willfit(on=Device(name="snug", total={peaks["reserved"]}, context=0))
def test_it(willfit):
    assert willfit.check(*job, loss=loss).verdict == "tight"
"""
    )
    result = pytester.runpytest("-Wdefault")  # the filter of this run would make an error of it
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*WillfitWarning: Linear is a tight fit on snug"])


def test_nothing_to_check_against(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + """
@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr("willfit._device_here.current_device", lambda: None)

def test_it(willfit):
    with pytest.raises(ValueError, match="nothing to check against"):
        willfit.check(*job, loss=loss)

@pytest.mark.willfit(limit="1 GiB")
def test_a_limit_needs_no_gpu(willfit):
    assert willfit.check(*job, loss=loss).verdict is None
"""
    )
    pytester.runpytest().assert_outcomes(passed=2)


def test_with_a_limit_alone_the_gpu_here_does_not_count(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + """
@pytest.mark.willfit(limit="1 GiB")
def test_it(willfit, monkeypatch):
    monkeypatch.setattr("willfit._device_here.current_device", lambda: SMALL)
    assert willfit.check(*job, loss=loss).verdict == "does not fit"
"""
    )
    pytester.runpytest().assert_outcomes(passed=1)


def test_the_marker_is_registered(pytester: pytest.Pytester) -> None:
    pytester.runpytest("--markers").stdout.fnmatch_lines(["@pytest.mark.willfit(on=None, limit=None, peak=*"])


def test_unused_it_imports_neither_torch_nor_the_rest(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
import sys

def test_it():
    heavy = {"torch", "willfit._devices", "willfit._predict", "willfit._footprint"}
    assert not heavy & set(sys.modules)
    assert "willfit.pytest_plugin" in sys.modules
"""
    )
    result = pytester.runpytest_subprocess("-p", "no:anyio")
    result.assert_outcomes(passed=1)


def test_the_plugin_alone_imports_only_pytest() -> None:
    code = "import sys, pytest; old = set(sys.modules); import willfit.pytest_plugin; print(*set(sys.modules) - old)"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert {name.partition(".")[0] for name in printed.split()} <= {"willfit", *sys.stdlib_module_names}
    assert "willfit._devices" not in printed


def test_a_device_of_ones_own_is_taken(peaks: dict[str, int]) -> None:
    toy = Device(name="toy", total=2**30, context=2**20)
    assert peaks["required"] == peaks["reserved"] + toy.context
