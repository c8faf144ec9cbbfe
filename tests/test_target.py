from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from willfit._errors import TargetError, UsageError
from willfit._target import imported, user_frames

BUILD = "def build():\n    return 'model', 'optimizer', 'batch'\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def call(target: str) -> tuple[object, ...]:
    with imported(target) as build:
        return build()


def refusal(target: str) -> str:
    with pytest.raises(TargetError) as caught:
        call(target)
    return str(caught.value)


def test_a_function_of_a_file(here: Path) -> None:
    (here / "train.py").write_text(BUILD)
    for target in ("train.py:build", "./train.py:build", f"{here / 'train.py'}:build"):
        assert call(target) == ("model", "optimizer", "batch")


def test_a_function_of_a_module(here: Path) -> None:
    (here / "jobs").mkdir()
    (here / "jobs" / "__init__.py").touch()
    (here / "jobs" / "small.py").write_text(BUILD)
    assert call("jobs.small:build") == ("model", "optimizer", "batch")


def test_a_method_of_a_class(here: Path) -> None:
    (here / "train.py").write_text("class Job:\n    @staticmethod\n    def build():\n        return [1, 2, 3, None]\n")
    assert call("train.py:Job.build") == (1, 2, 3, None)


def test_a_step_is_the_fourth_value(here: Path) -> None:
    (here / "train.py").write_text("def build():\n    return 1, 2, 3, print\n")
    assert call("train.py:build") == (1, 2, 3, print)


def test_a_file_is_not_run_as_main(here: Path) -> None:
    (here / "train.py").write_text(BUILD + "if __name__ == '__main__':\n    raise SystemExit('ran')\n")
    assert call("train.py:build")


def test_a_file_imports_its_neighbours_also_when_called(here: Path) -> None:
    (here / "code").mkdir()
    (here / "code" / "first_neighbour.py").write_text("a = 1")
    (here / "code" / "second_neighbour.py").write_text("b = 2")
    (here / "code" / "train.py").write_text(
        "import first_neighbour as first\ndef build():\n"
        "    import second_neighbour as second\n    return first.a, second.b, 3\n"
    )
    assert call("code/train.py:build") == (1, 2, 3)


def test_a_file_in_a_package_has_its_relative_imports(here: Path) -> None:
    (here / "own_package" / "inner").mkdir(parents=True)
    for directory in ("own_package", "own_package/inner"):
        (here / directory / "__init__.py").touch()
    (here / "own_package" / "sizes.py").write_text("width = 7")
    (here / "own_package" / "inner" / "train.py").write_text(
        "from ..sizes import width\ndef build():\n    return width, __name__, 3\n"
    )
    assert call("own_package/inner/train.py:build") == (7, "own_package.inner.train", 3)


def test_dataclasses_and_pickle_find_the_module(here: Path) -> None:
    (here / "train.py").write_text(
        "from __future__ import annotations\nimport pickle\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Batch:\n    x: int\ndef build():\n    return 1, 2, pickle.loads(pickle.dumps(Batch(3))).x\n"
    )
    assert call("train.py:build") == (1, 2, 3)


def test_a_file_may_have_the_name_of_a_module_that_is_there(here: Path) -> None:
    import json

    (here / "json.py").write_text(BUILD)
    assert call("json.py:build") == ("model", "optimizer", "batch")
    assert sys.modules["json"] is json


@pytest.mark.parametrize("content", [BUILD, "raise ValueError", "import sys; sys.path.insert(0, 'other')\n" + BUILD])
def test_the_path_is_put_back(here: Path, content: str) -> None:
    (here / "train.py").write_text(content)
    before = [entry for entry in sys.path if entry != "other"]
    with suppress(TargetError):
        call("train.py:build")
    after = [entry for entry in sys.path if entry != "other"]
    sys.path[:] = before
    assert after == before
    assert "train" not in sys.modules


def test_a_directory_that_was_on_the_path_stays(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "train.py").write_text(BUILD)
    monkeypatch.syspath_prepend(here)
    before = list(sys.path)
    call("train.py:build")
    assert sys.path == before


@pytest.mark.parametrize("target", ["", "train", "train.py", ":build", "train.py:", "train.py:2nd", "train.py:build()"])
def test_what_is_no_target(target: str) -> None:
    assert "path/to/train.py:build or package.train:build" in refusal(target)


def test_a_file_that_is_not_there(here: Path) -> None:
    message = refusal("nowhere/train.py:build")
    assert "nowhere/train.py" in message
    assert str(here) in message


def test_a_module_that_is_not_there() -> None:
    assert "there is no module 'no_such_package'" in refusal("no_such_package.train:build")


def test_a_function_that_is_not_there(here: Path) -> None:
    (here / "train.py").write_text("from os import getcwd\nLIMIT = 3\ndef bild(): ...\ndef _hidden(): ...\n")
    message = refusal("train.py:build")
    assert "no 'build' in train" in message
    assert message.endswith("its functions are bild")


def test_what_is_not_callable(here: Path) -> None:
    (here / "train.py").write_text("build = 3")
    assert "not a function: found int" in refusal("train.py:build")


def test_a_function_that_takes_arguments(here: Path) -> None:
    (here / "train.py").write_text("def build(size): ...")
    assert "'size'" in refusal("train.py:build")
    (here / "train2.py").write_text("def build(size=3):\n    return 1, 2, size")
    assert call("train2.py:build") == (1, 2, 3)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("None", "NoneType"),
        ("{}", "dict"),
        ("1, 2", "2 values (int, int)"),
        ("1, 2, 3, None, 5", "5 values"),
        ("1, 2, 3, 4", "the step is a function, found int"),
    ],
)
def test_a_function_that_returns_something_else(here: Path, value: str, found: str) -> None:
    (here / "train.py").write_text(f"def build():\n    return {value}\n")
    message = refusal("train.py:build")
    assert found in message
    assert "optimizer, batch" in message


def test_a_missing_import_of_the_users_is_no_missing_target(here: Path) -> None:
    (here / "train.py").write_text("import no_such_library\n")
    message = refusal("train.py:build")
    assert "ModuleNotFoundError while it was imported: No module named 'no_such_library'" in message
    assert "no_such_library" in refusal("train:build")


def test_an_error_of_the_users_is_the_cause_with_the_users_lines(here: Path) -> None:
    (here / "train.py").write_text(
        "import json\ndef build():\n    return parse('{')\ndef parse(text):\n    return json.loads(text)\n"
    )
    with pytest.raises(TargetError, match="raised JSONDecodeError when it was called: Expecting property") as caught:
        call("train.py:build")
    assert caught.value.__cause__ is not None
    lines = user_frames(caught.value.__cause__)
    assert "return parse('{')" in lines
    assert "return json.loads(text)" in lines
    assert "_target.py" not in lines
    assert lines.count("File ") == 3  # build, parse, and where json raised
    assert "decoder.py" in lines


def test_a_syntax_error_shows_the_line(here: Path) -> None:
    (here / "train.py").write_text("def build()\n    pass\n")
    with pytest.raises(TargetError) as caught:
        call("train.py:build")
    assert caught.value.__cause__ is not None
    assert "def build()\n" in user_frames(caught.value.__cause__)


def test_a_target_that_exits_is_told_to_guard_its_main(here: Path) -> None:
    (here / "train.py").write_text("import argparse\nargparse.ArgumentParser().parse_args(['--nothing'])\n")
    assert 'if __name__ == "__main__":' in refusal("train.py:build")


def test_a_keyboard_interrupt_passes(here: Path) -> None:
    (here / "train.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt), imported("train.py:build"):
        pass


def test_a_target_that_wants_a_gpu_is_told_that_it_needs_none(here: Path) -> None:
    (here / "train.py").write_text("def build():\n    raise AssertionError('Torch not compiled with CUDA enabled')\n")
    assert "on the CPU or on meta" in refusal("train.py:build")


def test_a_target_error_is_a_usage_error() -> None:
    assert issubclass(TargetError, UsageError)
