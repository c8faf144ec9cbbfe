"""``willfit verify`` and ``willfit accuracy`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from willfit._verify import verifier
from willfit.cli import main

JOB = """
import torch

print("built by the user")


def build():
    model = torch.nn.Linear(512, 512, bias=False)
    return model, torch.optim.SGD(model.parameters(), lr=0.1), torch.zeros(8, 512), step


def step(model, optimizer, batch):
    model(batch).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def failing():
    return *build()[:3], lambda model, optimizer, batch: model(batch["x"])
"""


@pytest.fixture(autouse=True)
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.py").write_text(JOB)
    monkeypatch.chdir(tmp_path)


def verify(*arguments: str, target: str = "train.py:build") -> int:
    return main(["verify", target, "--with", "cpu", *arguments])


def test_agreement_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify() == 0
    out = capsys.readouterr().out
    assert "AGREES: training Linear with SGD" in out
    assert "real steps in this machine's memory" in " ".join(out.split())


def test_disagreement_is_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from willfit._verify import cpu

    own = cpu._measured

    def more(job: Any) -> Any:
        trace, phases = own(job)
        return trace, tuple(type(each)(each.step, each.phase, each.peak_allocated * 2, 0, 0) for each in phases)

    monkeypatch.setattr(cpu, "_measured", more)
    assert verify() == 1
    assert "DISAGREES" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--tolerance", "two"], 2, "tolerance must be a share"),
        (["--on", "T5"], 2, "T5"),
        (["--with", "scales"], 2, "no verifier 'scales'"),
    ],
)
def test_wrong_usage_is_2(arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(*arguments) == code
    out, err = capsys.readouterr()
    assert says in err
    assert "built by the user" not in out


def test_what_cannot_be_measured_is_3(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert verify(target="train.py:failing") == 3
    monkeypatch.setattr("willfit._verify.cpu.available_memory", lambda: 1000)
    assert verify() == 3
    assert "of this machine's memory" in capsys.readouterr().err


def test_json_is_alone_on_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    assert verify("--format", "json") == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert (found["verifier"], found["agrees"], found["job"]["model"]) == ("cpu", True, "Linear")
    assert "built by the user" in err


def test_records_and_their_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify("--record") == 0
    assert "recorded in .willfit/measured.jsonl" in capsys.readouterr().err
    assert verify("--record", "other.jsonl", "--steps", "1") == 0
    assert len((tmp_path / ".willfit" / "measured.jsonl").read_text().splitlines()) == 1
    capsys.readouterr()
    assert main(["accuracy"]) == 0
    assert "cpu          peak allocated     1" in capsys.readouterr().out
    assert main(["accuracy", ".willfit/measured.jsonl", "other.jsonl", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["verifier"], row["figure"], row["count"]) == ("cpu", "peak allocated", 2)


def test_accuracy_without_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accuracy"]) == 2
    assert "`willfit verify --record` makes it" in capsys.readouterr().err
    (tmp_path / "broken.jsonl").write_text('{"verifier": "cpu"}\n')
    assert main(["accuracy", "broken.jsonl"]) == 2
    assert "broken.jsonl, line 1 is no record of a verification" in capsys.readouterr().err


def test_help_names_every_verifier(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["verify", "--help"])
    said = capsys.readouterr().out
    assert all(f"{name}:" in said for name in verifier.verifiers())
