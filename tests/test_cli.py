from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import willfit
from willfit import _remedies
from willfit._devices import all_devices, find_device
from willfit._trace.trace import ROLES
from willfit.cli import main

DOCS = Path(__file__).parent.parent / "docs" / "schema.md"

JOB = """
import torch

print("built by the user")


def build(features=1024):
    model = torch.nn.Linear(features, features, bias=False, device="meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, torch.zeros(8, features), step


def step(model, optimizer, batch):
    loss = model(batch).sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def adam():
    model, _, batch, step = build(4096)  # 64 MiB of weights, of gradients, of each average, and of temporaries
    return model, torch.optim.AdamW(model.parameters()), batch, step


def too_large():
    return build(100_000)  # 37 GiB of weights


def too_large_for_all():
    return build(400_000)


def raising():
    def step(model, optimizer, batch):
        return model(helper(batch))

    return *build()[:3], step


def helper(batch):
    return batch["input_ids"]


def leaving():
    def step(model, optimizer, batch):
        raise SystemExit(0)

    return *build()[:3], step


def interrupted():
    raise KeyboardInterrupt


def shouting():
    import os

    os.system("echo from a child process")
    os.write(1, b"past sys.stdout\\n")
    return build()
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(JOB)
    return tmp_path


def child(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "willfit", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
        timeout=120,
    )


def footprint() -> willfit.Footprint:
    namespace: dict[str, Any] = {"__name__": "train"}
    exec(JOB, namespace)
    return willfit.predict(*namespace["build"](), on="T4")


# -- exit codes --------------------------------------------------------------------------------------------------------


def test_a_job_that_fits_exits_0_with_the_bill_on_stdout_and_nothing_else() -> None:
    ran = child("check", "train.py:build", "--on", "T4")
    assert (ran.returncode, ran.stderr) == (0, "")
    first, _, bill = ran.stdout.partition("\n")
    assert first == "built by the user"
    assert bill.startswith("FITS: training Linear with SGD needs ")
    assert "\x1b" not in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 80


def test_a_job_that_does_not_fit_exits_1_with_the_bill(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "train.py:too_large", "--on", "T4"]) == 1
    out, err = capsys.readouterr()
    assert "DOES NOT FIT: training Linear with SGD needs " in out
    assert "Where memory runs out" in out
    assert err == ""


def test_a_tight_fit_exits_0_with_a_warning_and_1_if_strict(capsys: pytest.CaptureFixture[str]) -> None:
    exact = f"{footprint().peak_reserved} B"
    assert main(["check", "train.py:build", "--on", "T4", "--capacity", exact]) == 0
    out, err = capsys.readouterr()
    assert "TIGHT: " in out
    assert err == "willfit: warning: it fits, but tightly. That leaves only 0 B.\n"
    assert main(["check", "train.py:build", "--on", "T4", "--capacity", exact, "--strict"]) == 1


def test_strict_lets_a_job_pass_that_fits() -> None:
    assert main(["check", "train.py:build", "--on", "T4", "--strict"]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--nothing"],
        ["verify"],  # a TARGET is missing
        ["check", "train.py:build", "--format", "xml"],
        ["check", "train.py:build", "--steps", "0"],
        ["check", "train.py:build", "--steps", "two"],
        ["check", "train.py:build", "--st", "3"],  # options are not to be shortened: the next version may have another
        ["devices", "extra"],
    ],
)
def test_wrong_options_exit_2_with_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: willfit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train.py:build", "--on", "T5"], "'T5' is no GPU that willfit knows"),
        (["train.py:build", "--on", "24 G"], "24 GiB"),
        (["train.py:build", "--on", "T4", "--capacity", "14"], "14 GiB"),
        (["nowhere.py:build", "--on", "T4"], "there is no file 'nowhere.py' here"),
        (["train.py:bild", "--on", "T4"], "there is no 'bild' in train"),
        (["train.py:helper", "--on", "T4"], "takes some"),
        (["train.py", "--on", "T4"], "is no TARGET"),
    ],
)
def test_wrong_usage_exits_2_with_one_message(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *arguments]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert err.startswith("willfit: error: ")
    assert "Traceback" not in err
    assert "FITS" not in out


def test_a_wrong_gpu_is_refused_before_the_target_is_imported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "train.py:build", "--on", "T5"]) == 2
    assert capsys.readouterr().out == ""


def test_a_target_that_raises_exits_2_with_its_own_lines(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "broken.py").write_text("def build():\n    return 1 / 0\n")
    assert main(["check", "broken.py:build", "--on", "T4"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith('broken.py", line 2, in build')
    assert lines[1].strip() == "return 1 / 0"
    told = "'broken.py:build' raised ZeroDivisionError when it was called: division by zero"
    assert lines[-1] == f"willfit: error: {told}"


def test_a_step_that_raises_exits_3_with_its_own_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "train.py:raising", "--on", "T4"]) == 3
    err = capsys.readouterr().err
    assert 'return batch["input_ids"]' in err
    assert "return model(helper(batch))" in err
    assert f"willfit{os.sep}_" not in err
    assert "willfit: error: the training step raised" in err
    assert "Traceback" not in err


def test_a_step_that_exits_with_0_does_not_fit_by_that(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "train.py:leaving", "--on", "T4"]) == 3
    assert "sys.exit(0)" in capsys.readouterr().err


def test_a_bug_exits_3_and_says_that_it_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def predict(*_: object, **__: object) -> None:
        raise AssertionError("an invariant")

    monkeypatch.setattr("willfit._predict.predict", predict)
    assert main(["check", "train.py:build", "--on", "T4"]) == 3
    err = capsys.readouterr().err
    assert "AssertionError: an invariant" in err
    assert "a bug in willfit" in err


def test_an_interrupt_exits_130_quietly() -> None:
    ran = child("check", "train.py:interrupted", "--on", "T4")
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "built by the user\n", "")


# -- output ------------------------------------------------------------------------------------------------------------


def test_json_is_all_that_is_on_stdout(here: Path) -> None:
    ran = child("check", "train.py:shouting", "--on", "T4", "--format", "json")
    assert ran.returncode == 0
    for line in ("built by the user", "from a child process", "past sys.stdout"):
        assert line in ran.stderr
    assert json.loads(ran.stdout) == json.loads(json.dumps(footprint().to_dict())) | {
        "sources": json.loads(ran.stdout)["sources"]
    }


def test_it_is_the_same_for_every_hash_seed() -> None:
    texts = {child("check", "train.py:build", "--on", "T4", PYTHONHASHSEED=seed).stdout for seed in ("0", "1")}
    assert len(texts) == 1


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}, {"COLUMNS": "40"}])
def test_a_pipe_gets_plain_text_of_80_columns(environment: dict[str, str]) -> None:
    ran = child("devices", **environment)
    assert ran.returncode == 0
    assert "\x1b" not in ran.stdout
    assert 60 < max(map(len, ran.stdout.splitlines())) <= 80


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_a_terminal_gets_colour_unless_it_must_not(environment: dict[str, str], coloured: bool) -> None:
    import pty

    leader, follower = pty.openpty()
    surroundings = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm"} | environment
    with subprocess.Popen([sys.executable, "-m", "willfit", "devices"], stdout=follower, env=surroundings) as process:
        os.close(follower)
        written = b""
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:  # how Linux says that the other end is closed
                piece = b""
            if not piece:
                break
            written += piece
    os.close(leader)
    assert process.returncode == 0
    assert (b"\x1b[" in written) is coloured


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f'"{sys.executable}" -m willfit devices'
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_names_that_stdout_cannot_take_are_escaped(here: Path) -> None:
    (here / "greek.py").write_text(
        "import torch\nfrom train import step\nclass Ωmega(torch.nn.Linear): ...\n"
        "def build():\n    model = Ωmega(8, 8)\n"
        "    return model, torch.optim.SGD(model.parameters(), lr=1), torch.zeros(8, 8), step\n",
        encoding="utf-8",
    )
    ran = child("check", "greek.py:build", "--on", "T4", PYTHONIOENCODING="ascii")
    assert ran.returncode == 0, ran.stderr
    assert "\\u03a9mega" in ran.stdout


def test_the_version() -> None:
    ran = child("--version")
    assert (ran.returncode, ran.stdout) == (0, f"willfit {willfit.__version__}\n")


@pytest.mark.parametrize("arguments", [["--version"], ["devices"], ["devices", "--format", "json"], ["check", "-h"]])
def test_what_needs_no_torch_does_not_import_it(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom willfit.cli import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


# -- which GPUs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("willfit._device_here.current_device", lambda: None)


def test_advice_follows_the_bill_where_it_does_not_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {name: _remedies._OWN[name] for name in ("optimizer", "micro-batches", "LoRA")}
    monkeypatch.setattr(_remedies, "_OWN", own)  # as each change takes a prediction
    assert main(["check", "train.py:too_large", "--on", "T4"]) == 1
    found = capsys.readouterr().out
    assert found.index("DOES NOT FIT") < found.index("makes it fit on T4")
    assert "Would save nothing" not in found
    assert main(["check", "train.py:too_large", "--on", "T4", "--all"]) == 1
    assert "Does not apply" in capsys.readouterr().out
    assert main(["check", "train.py:too_large", "--on", "T4", "--no-advise"]) == 1
    assert "it fit on" not in capsys.readouterr().out


def test_a_job_that_fits_is_advised_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "train.py:build", "--on", "T4"]) == 0
    assert "take less" not in capsys.readouterr().out
    assert main(["check", "train.py:build", "--on", "T4", "--advise"]) == 0
    assert "What would take less on T4" in capsys.readouterr().out


def test_the_largest_batch_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "train.py:build", "--on", "T4", "--capacity", "100 MiB", "--max-batch"]) == 0
    assert re.search(r"^[0-9]+ samples in a batch fit on T4", capsys.readouterr().out, re.MULTILINE)
    assert main(["check", "train.py:too_large", "--on", "T4", "--max-batch"]) == 1
    assert "not even one sample fits on T4" in capsys.readouterr().out
    assert main(["check", "train.py:build", "--on", "T4", "--max-seq-len"]) == 3
    assert "no tensors of tokens" in capsys.readouterr().err


def test_a_sweep_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "train.py:build", "--on", "T4", "--method", "full,fused", "--batch", "1,8"]) == 0
    _, *lines = capsys.readouterr().out.rstrip("\n").split("\n")  # the first is the user's own
    assert lines[0].split() == ["method", "batch", "tokens", "T4"]
    assert [line.split()[:2] for line in lines[1:]] == [["full", "1"], ["full", "8"], ["fused", "1"], ["fused", "8"]]
    assert main(["sweep", "train.py:too_large", "--on", "T4", "--format", "csv"]) == 1
    assert capsys.readouterr().out.startswith("method,batch_size,sequence_length,device,verdict,")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--on", "T4,"], "must be names between commas"),
        (["--on", "T4", "--batch", "0"], "must be a whole number, at least 1"),
        (["--on", "T5"], "T5"),
        (["--on", "T4", "--method", "lorra"], "method 'lorra' is nothing that can be tried"),
        ([], "--on"),
    ],
)
def test_a_wrong_sweep_exits_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["sweep", "train.py:build", *arguments])
    except SystemExit as error:  # as argparse leaves
        status = int(error.code or 0)
    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_it_says_which_ones_would_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "train.py:too_large"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^FITS \d+ of the \d+ GPUs that willfit knows: training Linear with SGD\.$", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 80
    table, _, rest = out.partition("It does not fit")
    assert re.search(r"^  H200 +fits ", table, re.MULTILINE)
    assert re.search(r"\bT4\b", rest)


@pytest.mark.usefixtures("no_gpu")
def test_a_job_that_fits_none_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "train.py:too_large_for_all"]) == 1
    assert "FITS 0 of the " in capsys.readouterr().out


@pytest.mark.usefixtures("no_gpu")
def test_the_answers_for_all_are_those_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "train.py:too_large", "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in answer["devices"]}
    assert list(rows) == [device.name for device in all_devices()]
    for name in ("RTX 4090", "A100-80GB", "H200", "B200"):
        fits = rows[name]["verdict"] == "fits"
        assert main(["check", "train.py:too_large", "--on", name, "--format", "json"]) == (0 if fits else 1)
        alone = json.loads(capsys.readouterr().out)
        same = ("verdict", "capacity", "context")
        figures = ("required", "peak_allocated", "peak_reserved", "missing") if alone["verdict"] == "fits" else ()
        assert {key: rows[name][key] for key in same + figures} == {key: alone[key] for key in same + figures}


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_on_which_the_step_raises_does_not_hide_the_others(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "picky.py").write_text(
        "import torch\nfrom train import build as plain, step as usual\n"
        "def step(model, optimizer, batch):\n"
        "    if torch.cuda.get_device_capability() < (8, 0):\n"
        "        raise RuntimeError('FlashAttention only supports Ampere GPUs or newer.')\n"
        "    usual(model, optimizer, batch)\n"
        "def build():\n    return *plain()[:3], step\n"
    )
    assert main(["check", "picky.py:build", "--format", "json"]) == 0
    sys.modules.pop("train", None)
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["devices"]}
    assert rows["T4"]["verdict"] is None
    assert "only supports Ampere" in rows["T4"]["error"]
    assert rows["A100-80GB"]["verdict"] == "fits"
    assert rows["A100-80GB"]["error"] is None


@pytest.mark.usefixtures("no_gpu")
def test_a_step_that_raises_everywhere_exits_3() -> None:
    assert main(["check", "train.py:raising"]) == 3


# -- the schema --------------------------------------------------------------------------------------------------------


def documented(heading: str) -> set[str]:
    """The keys that a table of docs/schema.md describes."""
    section = DOCS.read_text(encoding="utf-8").partition(f"{heading}\n")[2].partition("\n#")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {key for cell in cells for key in re.findall(r"`([^`]+)`", cell)}


def test_the_footprint_is_as_documented(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "train.py:too_large", "--on", "T4", "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert set(found) == documented("## The footprint") | {"advice"}
    assert set(found["transfers"]) == documented("### `transfers`")
    assert set(found["device"]) == documented("### `device`")
    assert set(found["job"]) == documented("### `job`")
    assert set(found["out_of_memory"]) == documented("### `out_of_memory`")
    assert all(set(each) == documented("### `phases[]`") for each in found["phases"])
    either = documented("### `modules[]`, `sources[]`")
    assert all(set(each) == either - {"source"} for each in found["modules"])
    assert all(set(each) == either - {"module"} for each in found["sources"])


def test_the_figures_of_the_json_agree_with_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "train.py:too_large", "--on", "T4", "--format", "json", "--no-advise"]) == 1
    found = json.loads(capsys.readouterr().out)
    t4 = find_device("T4")
    assert set(found["bill"]) == set(ROLES)
    assert sum(found["bill"].values()) == found["peak_allocated"] == max(p["peak_allocated"] for p in found["phases"])
    assert found["required"] == found["peak_reserved"] + t4.context
    assert found["missing"] == found["peak_reserved"] - t4.capacity > 0
    assert found["verdict"] == "does not fit"
    assert found["out_of_memory"]["requested"] > found["out_of_memory"]["free"]
    assert len(found["timeline"]) <= 1000
    assert max(allocated for _, allocated, _ in found["timeline"]) == found["peak_allocated"]


def test_advice_is_as_documented(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["check", "train.py:adam", "--on", "T4", "--capacity", "300 MiB", "--format", "json"]
    assert main(arguments) == 1
    advice = json.loads(capsys.readouterr().out)["advice"]
    assert set(advice) == documented("## Advice")
    assert advice["options"][0]["titles"] == ["fused AdamW"]
    options = documented("### `options[]`, `partial[]`")
    assert all(set(each) == options for each in (*advice["options"], *advice["partial"]))


def test_the_largest_batch_is_as_documented(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["check", "train.py:build", "--on", "T4", "--capacity", "100 MiB", "--max-batch", "--format", "json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == documented("## The largest batch")
    assert found["footprint"]["verdict"] in ("fits", "tight")
    assert found["beyond"]["verdict"] == "does not fit"
    assert f"batch: {found['size']} x 1024" == f"batch: {found['footprint']['job']['batch']}"


def test_a_sweep_is_as_documented(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "train.py:build", "--on", "T4,L4", "--batch", "1,8", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"schema", "cells"}
    assert len(found["cells"]) == 4
    assert all(set(cell) == documented("### `cells[]`") for cell in found["cells"])


@pytest.mark.usefixtures("no_gpu")
def test_the_answers_for_all_are_as_documented(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "train.py:build", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == documented("## Which GPUs it fits")
    assert all(set(row) == documented("### `devices[]`") for row in found["devices"])


def test_the_devices_are_as_documented(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found] == [device.name for device in all_devices()]
    assert all(set(each) == documented("## The GPUs") for each in found)
    t4 = next(each for each in found if each["name"] == "T4")
    assert (t4["total"], t4["compute_capability"]) == (15_655_829_504, [7, 5])
