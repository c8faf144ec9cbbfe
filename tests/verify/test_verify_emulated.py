"""Verification on an emulated GPU: whole steps of PyTorch's own CUDA code, at the card's capacity."""

from __future__ import annotations

import sysconfig
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import machine
import willfit
from willfit import UnavailableError, verify
from willfit._emulator import interpreter
from willfit._trace.kernels import Call


def job() -> tuple[Any, ...]:
    model = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Dropout(0.1), nn.Linear(1024, 10))
    batch = {"x": torch.zeros(256, 512), "y": torch.zeros(256, dtype=torch.long)}
    return model, torch.optim.AdamW(model.parameters()), batch


def classify(model: Any, batch: Any) -> Any:
    return cross_entropy(model(batch["x"]), batch["y"])


LINE = f"test_verify_emulated.py:{classify.__code__.co_firstlineno + 1}"


def test_whole_steps_agree_to_the_byte() -> None:
    there = machine.interpreter()
    if not machine.same_version():
        pytest.skip(f"torch {there.torch} runs there, and another version predicts here")
    found = verify(*job(), loss=classify, on="A100-80GB", using="emulated", tolerance=0)
    assert found.agrees, str(found)
    assert found.verifier == "emulated"
    assert (3, "optimizer step") in {(each.step, each.phase) for each in found.phases}
    assert all(each.measured.peak_reserved for each in found.phases)
    assert dict(found.measurement.versions)["torch"] == there.torch
    assert "emulated A100-80GB" in str(found)


def test_where_the_engines_differ_the_first_difference_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if dropout were not known to keep a mask."""
    machine.interpreter()
    from willfit._trace import kernels

    def without_mask(call: Call) -> Any:
        out = call.recorder.run(torch.ops.aten.mul.Scalar, (call.args[0], 2.0), {})
        return out, out

    willfit.predict(*job(), loss=classify, on="T4", steps=1)  # which registers the rules
    assert "native_dropout" in kernels._rules
    monkeypatch.setitem(kernels._rules, "native_dropout", without_mask)
    found = verify(*job(), loss=classify, on="T4", using="emulated", tolerance=0)
    difference = found.first_difference
    assert difference is not None
    assert (difference.step, difference.phase, difference.module) == (1, "forward", "2")
    assert difference.op == "aten.native_dropout"
    assert difference.source.endswith(LINE)
    assert f"operator {difference.op}" in " ".join(str(found).split())


def test_a_tight_card_is_measured_at_its_capacity() -> None:
    machine.interpreter()
    free = willfit.predict(*job(), loss=classify, on="T4")
    found = verify(*job(), loss=classify, on="T4", capacity=free.peak_reserved - 2 * 2**20, using="emulated")
    assert (found.predicted.verdict == "does not fit") == (found.measurement.out_of_memory is not None)
    assert found.same_outcome


@pytest.mark.parametrize(
    ("missing", "says"),
    [("not Linux", "its emulator needs Linux"), ("a compiler", "no C compiler here"), ("CUDA", "built for the CPU")],
)
def test_what_is_missing_is_said(missing: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    sysconfig.get_config_vars()  # read once, and by the name of the system that this is
    if missing == "not Linux":
        monkeypatch.setattr("sys.platform", "darwin")
    elif missing == "a compiler":
        machine.interpreter()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # so that it is not there already
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CC", raising=False)
    else:
        if torch.version.cuda:
            pytest.skip("this PyTorch is built for CUDA")
        monkeypatch.delenv(interpreter.VARIABLE, raising=False)
    with pytest.raises(UnavailableError, match=f"emulated: .*{says}"):
        verify(*job(), loss=classify, on="T4", using="emulated")


def test_a_card_that_is_not_nvidia_s_is_refused() -> None:
    with pytest.raises(UnavailableError, match="not a GPU of NVIDIA's"):
        verify(*job(), loss=classify, on="MI300X", using="emulated")
