from __future__ import annotations

import pytest
from toy import JOB, TOY

PEAKS = {"required": TOY.required, "reserved": TOY.peak_reserved, "allocated": TOY.peak_allocated}


@pytest.mark.parametrize("peak", ["required", "reserved", "allocated"])
def test_the_limit_holds_to_the_byte(pytester: pytest.Pytester, peak: str) -> None:
    limit = PEAKS[peak]
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
            f"*Failed: Net needs * ({peak}), 1 B over the limit of *",
            "*- willfit: Net on toy -*",
            "FITS: training Net*",
            "What holds the memory at the peak*",
        ]
    )
    result.stdout.no_fnmatch_line("*not reached*")
    result.stdout.no_fnmatch_line("*fixture.py*")


def test_required_is_the_peak_without_a_word(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + f"""
@pytest.mark.willfit(on=TOY, limit={PEAKS["required"] - 1})
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
            "*Failed: Net does not fit on small and needs 22.00 MiB, 18.00 MiB more than it has",
            "*Failed: Net does not fit on small and needs 22.00 MiB (required), 21.00 MiB over the limit of 1.00 MiB",
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
        ("size=3", "unknown argument 'size': there are on, limit, peak, tolerance, steps, baseline"),
        ("'T4'", "arguments go by keyword, as in willfit(on=\"T4\"): found 'T4'"),
        ("limit='24 G'", 'limit \'24 G\' has no unit that willfit takes: did you mean "24 GiB" or "24 GB"?'),
        ("on='T5'", "'T5' is no GPU that willfit knows*"),
        (
            "on=['T4']",
            "on must be the name of a GPU such as \"T4\", a size, a Device or a torch.device: found [[]'T4']",
        ),
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


def test_a_tight_fit_passes_with_a_warning(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + f"""
@pytest.mark.willfit(on=Device(name="snug", total={PEAKS["reserved"]}, context=0))
def test_it(willfit):
    assert willfit.check(*job, loss=loss).verdict == "tight"
"""
    )
    result = pytester.runpytest("-Wdefault")  # the filter of this run would make an error of it
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*WillfitWarning: Net is a tight fit on snug"])


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


def test_all_wrong_markers_are_named_at_once(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
import pytest

@pytest.mark.willfit(on="T5")
def test_a():
    pass

@pytest.mark.willfit(steps="many")
@pytest.mark.parametrize("x", [1])
def test_b(x):
    pass
"""
    )
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: test_it.py::test_a: marker willfit: 'T5' is no*",
            "ERROR: test_it.py::test_b[[]1]: marker willfit: steps*",
        ]
    )


def test_a_wrong_marker_of_many_tests_is_named_once(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
import pytest

pytestmark = pytest.mark.willfit(on="T5")

@pytest.mark.parametrize("x", range(100))
def test_it(x):
    pass
"""
    )
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.stderr.lines if "T5" in line]
    assert line.startswith(
        "ERROR: test_it.py::test_it[0] and 99 more: marker willfit: 'T5' is no GPU that willfit knows"
    )


def test_markers_of_one_case_of_a_parametrized_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + """
@pytest.mark.willfit(on=TOY)
@pytest.mark.parametrize(
    "width", [32, pytest.param(64, marks=pytest.mark.willfit(on=SMALL))]
)
def test_it(willfit, width):
    willfit.check(*build(width), loss=loss)
"""
    )
    result = pytester.runpytest()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["DOES NOT FIT *::test_it[[]64]*"])


def test_a_fixture_of_the_users_may_check(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + """
@pytest.fixture
def checked(willfit):
    yield willfit.check(*job, loss=loss)

@pytest.mark.willfit(on=TOY)
def test_fits(checked):
    assert checked.verdict == "fits"

@pytest.mark.willfit(on=SMALL)
def test_does_not(checked):
    raise AssertionError("not reached")
"""
    )
    result = pytester.runpytest("-v")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*::test_does_not DOES NOT FIT*",
            "*ERROR at setup of test_does_not*",
            "E *Failed: Net does not fit on small and needs *",
        ]
    )
    result.stdout.fnmatch_lines(["*- willfit: Net on small -*"])


def test_a_fixture_that_raises_is_an_error_like_any_other(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + """
@pytest.fixture
def broken():
    raise RuntimeError("broken")

@pytest.fixture
def broken_afterwards():
    yield
    raise RuntimeError("broken afterwards")

@pytest.mark.willfit(on=TOY)
def test_before(broken, willfit):
    willfit.check(*job, loss=loss)

@pytest.mark.willfit(on=TOY)
def test_after(willfit, broken_afterwards):
    willfit.check(*job, loss=loss)
"""
    )
    result = pytester.runpytest()
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(["*E.E*", "ERROR *::test_before*", "ERROR *::test_after*"])


def test_methods_of_unittest_get_it_from_a_fixture(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + """
import unittest

class TestIt(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _take(self, willfit):
        self.willfit = willfit

    @pytest.mark.willfit(on=TOY)
    def test_fits(self):
        self.willfit.check(*job, loss=loss)

    @pytest.mark.willfit(on=SMALL)
    def test_does_not(self):
        self.willfit.check(*job, loss=loss)
"""
    )
    result = pytester.runpytest()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["DOES NOT FIT *::TestIt::test_does_not*"])


def test_subtests_fail_one_by_one(pytester: pytest.Pytester) -> None:
    if not hasattr(pytest, "Subtests"):
        pytest.importorskip("pytest_subtests", reason="pytest has no subtests before 9")
    pytester.makepyfile(
        JOB
        + """
def test_it(willfit, subtests):
    for device in (TOY, SMALL, Device(name="tiny", total=2 * 2**20, context=0)):
        with subtests.test(on=device.name):
            willfit.check(*job, loss=loss, on=device)
"""
    )
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["E *Failed: Net does not fit on small and needs *", "*- willfit: Net on small -*"])
    result.stdout.fnmatch_lines(["E *Failed: Net does not fit on tiny and needs *", "*- willfit: Net on tiny -*"])
    assert result.stdout.str().count("- willfit: Net on") == 2, "each has its own bill and no other"


def test_what_a_test_returns_is_no_business_of_willfit(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + """
@pytest.mark.willfit(on=TOY)
def test_nothing(willfit):
    return None

@pytest.mark.willfit(on=TOY)
def test_without_a_check(willfit):
    pass
"""
    )
    pytester.runpytest().assert_outcomes(passed=2)


def test_a_marker_that_checks_nothing_is_warned_of(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
import pytest

pytestmark = pytest.mark.willfit(on="T4")  # of other tests too, so that this one need not use it

@pytest.fixture
def of_the_users(willfit):
    return willfit

def test_beside():
    pass

def test_by_a_fixture(of_the_users):
    pass

@pytest.mark.willfit(limit="14 GiB")
def test_by_name(request):
    request.getfixturevalue("willfit")

@pytest.mark.willfit(limit="14 GiB")
@pytest.mark.skip
def test_skipped():
    pass

@pytest.mark.willfit(limit="14 GiB")
def test_marked():
    pass
"""
    )
    result = pytester.runpytest("-Wdefault")
    result.assert_outcomes(passed=4, skipped=1, warnings=1)
    result.stdout.fnmatch_lines(
        ["*WillfitWarning: test_marked has the marker willfit, and checks nothing: it does not use the fixture"]
    )
    pytester.runpytest("-Werror").assert_outcomes(passed=3, skipped=1, failed=1)


def test_with_warnings_as_errors_only_a_tight_fit_is_one(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + f"""
@pytest.mark.willfit(on=TOY, baseline=True)
def test_fits(willfit):
    willfit.check(*job, loss=loss)

@pytest.mark.willfit(on=Device(name="snug", total={TOY.peak_reserved}, context=0))
def test_tight(willfit):
    willfit.check(*job, loss=loss)
"""
    )
    result = pytester.runpytest("-Werror", "--strict-markers", "--strict-config")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*WillfitWarning: Net is a tight fit on snug"])


def test_checks_of_one_test_have_names_of_their_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + """
@pytest.mark.willfit(on=TOY)
def test_it(willfit):
    willfit.check(*job, loss=loss, name="lora")
    for wrong in ("lora", ""):
        with pytest.raises(ValueError, match=f"must be its own within the test, and not empty: found {wrong!r}"):
            willfit.check(*job, loss=loss, name=wrong)
"""
    )
    pytester.runpytest().assert_outcomes(passed=1)


def test_a_job_that_cannot_be_predicted_fails_as_any_test_does(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + """
@pytest.mark.willfit(on=TOY)
def test_it(willfit):
    willfit.check(*job, loss=lambda model, batch: 1 / 0)
"""
    )
    result = pytester.runpytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*JobError: the training step raised ZeroDivisionError*", "FAILED *"])


def test_verify_and_advise_are_those_of_willfit_on_the_tests_gpu(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + """
import willfit as package

class Said:
    def __init__(self, *args, **kwargs):
        self.got = args, kwargs
        self.checked = False
    def check(self):
        self.checked = True
        return self

@pytest.mark.willfit(on=TOY, steps=2)
@pytest.mark.parametrize("name", ["verify", "advise"])
def test_it(willfit, monkeypatch, name):
    monkeypatch.setattr(package, name, Said, raising=False)
    function = {"verify": willfit.verify, "advise": willfit.advise}[name]
    assert function(*job).got == ((*job, None), {"on": TOY, "steps": 2})
    said = function(*job, print, loss=loss, on=SMALL, steps=1)
    assert said.got == ((*job, print), {"on": SMALL, "steps": 1, "loss": loss})
    assert said.checked == (name == "verify")

@pytest.mark.willfit(on=TOY)
def test_disagrees(willfit, monkeypatch):
    class Disagrees(Said):
        def check(self):
            raise RuntimeError("measured 2.00 GiB, predicted 1.00 GiB")
    monkeypatch.setattr(package, "verify", Disagrees, raising=False)
    willfit.verify(*job)
"""
    )
    result = pytester.runpytest()
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["E *RuntimeError: measured 2.00 GiB, predicted 1.00 GiB"])


def test_a_job_is_verified_for_real(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + """
@pytest.mark.willfit(on=TOY, steps=2)
def test_it(willfit):
    verification = willfit.verify(*job, loss=loss, using="cpu")
    assert verification.agrees
    assert {phase.step for phase in verification.phases} == {0, 1, 2}
"""
    )
    pytester.runpytest().assert_outcomes(passed=1)


def test_advice_for_a_job_that_does_not_fit_fails_no_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + """
@pytest.mark.willfit(on=SMALL, steps=2)
def test_it(willfit):
    advice = willfit.advise(*job, loss=loss, combine=False)
    assert advice.device == SMALL
    assert (advice.footprint.verdict, advice.footprint.steps) == ("does not fit", 2)
"""
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_in_a_traceback_it_says_what_it_is_set_to(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + """
@pytest.mark.willfit(on="T4", limit="14 GiB")
def test_it(willfit):
    assert repr(willfit) == "<willfit on T4, limit 14.00 GiB>"

def test_bare(willfit):
    assert repr(willfit) == "<willfit on the GPU here>"
"""
    )
    pytester.runpytest().assert_outcomes(passed=2)
