"""Which verifier is taken, and what is refused; verifiers that others add."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import willfit
from willfit import JobError, Measurement, UnavailableError, UsageError, VerificationFailed, verify
from willfit._verify import verifier
from willfit._verify.verifier import JobToVerify, Verifier


def parts() -> tuple[Any, ...]:
    model = nn.Linear(64, 64, bias=False)
    return model, torch.optim.SGD(model.parameters(), lr=0.1), torch.zeros(8, 64)


def total(model: Any, batch: Any) -> Any:
    return model(batch).sum()


class Scales(Verifier):
    """Finds what was predicted, ``factor`` times."""

    faithfulness = 100

    def __init__(self, name: str, factor: float = 1.0, why_not: str = "") -> None:
        self.name = name
        self.factor = factor
        self.why_not = why_not

    def unavailable(self, job: JobToVerify) -> str:
        return self.why_not

    def measure(self, job: JobToVerify) -> Measurement:
        predicted = willfit.predict(job.model, job.optimizer, job.batch, loss=job.loss, on=job.on, steps=job.steps)
        phases = tuple(
            willfit.PhasePeak(
                each.step,
                each.phase,
                round(each.peak_allocated * self.factor),
                round(each.peak_reserved * self.factor),
                round(each.allocated_at_end * self.factor),
            )
            for each in predicted.phases
        )
        return Measurement(predicted, phases, "scales")


class Plugins:
    """In place of those that are installed."""

    def __init__(self, *found: Verifier) -> None:
        self.hook = self
        self.found = found

    def willfit_verifiers(self) -> list[list[Verifier]]:
        return [list(self.found)]


def plugged(monkeypatch: pytest.MonkeyPatch, *found: Verifier) -> None:
    monkeypatch.setattr(verifier, "plugins", lambda: Plugins(*found))


def test_the_most_faithful_that_can_be_used_is_taken_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plugged(monkeypatch, Scales("oracle", why_not="it sleeps"), Scales("scales"))
    found = verify(*parts(), loss=total, on="T4")
    assert found.verifier == "scales"
    assert found.passed_over == ("oracle: it sleeps",)
    assert "not taken: oracle: it sleeps" in str(found)


def test_one_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plugged(monkeypatch, Scales("scales"))
    assert verify(*parts(), loss=total, on="T4", using="cpu").verifier == "cpu"
    with pytest.raises(UsageError, match=r"no verifier 'gpu': they are scales, cuda, emulated, cpu"):
        verify(*parts(), loss=total, using="gpu")


def test_one_of_willfit_s_own_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    plugged(monkeypatch, Scales("cpu", 2.0))
    found = verify(*parts(), loss=total, on="T4", using="cpu")
    assert found.error == -0.5


def test_where_none_can_be_used_each_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {name: Scales(name, why_not=f"no {name}") for name in ("cuda", "emulated", "cpu")}
    plugged(monkeypatch, *own.values())
    with pytest.raises(UnavailableError, match=r"(?s)- cuda: no cuda.*- emulated: no emulated.*- cpu: no cpu"):
        verify(*parts(), loss=total, on="T4")


def test_a_disagreement_is_raised_by_check_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plugged(monkeypatch, Scales("scales", 1.05))
    found = verify(*parts(), loss=total, on="T4")
    assert not found.agrees
    with pytest.raises(VerificationFailed, match="DISAGREES"):
        found.check()
    assert verify(*parts(), loss=total, on="T4", tolerance="5%").check().agrees


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"tolerance": "two"}, UsageError, "tolerance must be a share"),
        ({"on": "T5"}, UsageError, "T5"),
        ({"steps": 0}, UsageError, "steps must be"),
        ({"loss": total, "step": total}, UsageError, "both given"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        verify(*parts(), using="cpu", **options)


def test_a_job_that_is_none_is_refused() -> None:
    with pytest.raises(JobError, match=r"not a torch\.nn\.Module"):
        verify("model", None, torch.zeros(1), using="cpu")  # type: ignore[arg-type]
    with pytest.raises(JobError, match="does not take this batch"):
        verify(parts()[0], None, {"y": torch.zeros(1, 64)}, using="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_a_watch_is_refused() -> None:
    with pytest.raises(UnavailableError, match="watch measures a GPU of this process, and it has none"):
        willfit.watch(*parts(), loss=total)
    with pytest.raises(UnavailableError, match=r"- cuda: (this process has no GPU|this build of PyTorch has no CUDA)"):
        verify(*parts(), loss=total, using="cuda")
