"""The file of baselines: what is written is read again, and what is no such file is never taken for one."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import TOY

from willfit import UsageError
from willfit._pytest.baseline import SCHEMA, Baseline, baseline_of, read, write
from willfit._trace.trace import ROLES

texts = st.text(max_size=8)
sizes = st.integers(0, 2**50)


@st.composite
def baselines(draw: st.DrawFn) -> Baseline:
    roles = draw(st.dictionaries(st.sampled_from(ROLES), st.dictionaries(texts, sizes, max_size=3), max_size=4))
    return Baseline(
        fingerprint=draw(st.dictionaries(texts, texts, max_size=3)),
        peak_at=draw(texts),
        peak_allocated=sum(sum(modules.values()) for modules in roles.values()),
        peak_reserved=draw(sizes),
        required=draw(sizes),
        roles=roles,
    )


files = st.dictionaries(st.tuples(texts, texts), st.lists(baselines(), min_size=1, max_size=2).map(tuple), min_size=1)


@given(files)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    path = tmp_path_factory.mktemp("baselines") / "test_it.willfit.json"
    write(path, content)
    assert read(path) == content


def test_it_is_made_to_be_reviewed_and_merged(tmp_path: Path) -> None:
    path = tmp_path / "test_it.willfit.json"
    baseline = baseline_of(TOY, {"torch": "2.13.0", "device": "toy"})
    write(path, {("test_b", "check"): (baseline,), ("test_a[1]", "check"): (baseline,)})
    text = path.read_bytes().decode("ascii")
    assert text.endswith("}\n")
    assert "\r" not in text
    json.loads(text, parse_float=lambda number: pytest.fail(f"{number} is no integer"))
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    write(path, dict(reversed(read(path).items())))
    assert path.read_bytes().decode() == text, "the order of the tests does not matter"


def test_a_baseline_has_the_bytes_of_the_footprint() -> None:
    baseline = baseline_of(TOY, {})
    assert (baseline.peak_allocated, baseline.peak_reserved, baseline.required) == (
        *(TOY.peak_allocated, TOY.peak_reserved, TOY.required),
    )
    sums = {role: sum(modules.values()) for role, modules in baseline.roles.items()}
    assert sums == {role: size for role, size in TOY.bill.items() if size}
    # two linear layers of 64 x 64 and one of 64 x 1 in float32; blocks of the allocator are multiples of 512 bytes
    assert baseline.roles["parameters"] == {"blocks.*": 2 * (64 * 64 * 4 + 512), "head": 512 + 512}
    assert baseline.roles["inputs"] == {"(outside of modules)": 4 * 64 * 4}
    assert baseline.peak_at == "backward of step 1"


def test_no_file_is_no_baselines(tmp_path: Path) -> None:
    assert read(tmp_path / "test_it.willfit.json") == {}


def test_a_file_without_baselines_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "test_it.willfit.json"
    write(path, {("test", "check"): (baseline_of(TOY, {}),)})
    write(path, {})
    assert not path.exists()
    write(path, {})


GOOD: dict[str, Any] = {
    "fingerprint": {"torch": "2.13.0"},
    "peak_at": "backward of step 1",
    "peak_allocated": 1024,
    "peak_reserved": 2048,
    "required": 4096,
    "roles": {"parameters": {"head": 512}, "inputs": {"(outside of modules)": 512}},
}


def content(entry: Any) -> str:
    return json.dumps({"schema": SCHEMA, "tests": {"test_it": {"check": [entry]}}})


def test_the_good_one_is_good(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(content(GOOD), encoding="utf-8")
    assert read(tmp_path / "x")["test_it", "check"][0].required == 4096


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value: line 1 column 1"),
        ("{", "Expecting property name"),
        ("<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> other", "it has the marks of a merge conflict; Expecting value"),
        ("[]", '"schema" is None, not 1'),
        ("{}", '"schema" is None, not 1'),
        ('{"schema": 1}', "'tests' is missing"),
        ('{"schema": 1, "tests": []}', "has no attribute 'items'"),
        ('{"schema": "1", "tests": {}}', "\"schema\" is '1', not 1"),
        (content(7), "argument after"),
        (content({**GOOD, "more": 1}), "unexpected keyword argument 'more'"),
        (content({key: GOOD[key] for key in GOOD if key != "required"}), "missing 1 required keyword-only argument"),
        (content({**GOOD, "required": 1.5}), "1.5 is no size in bytes"),
        (content({**GOOD, "required": True}), "True is no size in bytes"),
        (content({**GOOD, "peak_reserved": -1}), "-1 is no size in bytes"),
        (content({**GOOD, "peak_allocated": 1025}), "the roles add up to 1024, not to the peak_allocated of 1025"),
        (content({**GOOD, "roles": {"weights": {"head": 1024}}}), "there is no role 'weights'"),
        (content({**GOOD, "fingerprint": {"torch": 2}}), "a fingerprint is not text alone"),
    ],
)
def test_what_is_no_file_of_baselines_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "test_it.willfit.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as raised:
        read(path)
    assert str(raised.value).startswith("test_it.willfit.json is no file of baselines: ")
    assert message in str(raised.value)
    assert "restore it from version control" in str(raised.value)


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test_it.willfit.json"
    path.write_text('{"schema": 2, "something": "new"}', encoding="utf-8")
    with pytest.raises(UsageError, match=r"was written by a newer willfit \(schema 2, this one reads 1\): update"):
        read(path)


def test_a_directory_and_other_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="x cannot be read: 'utf-8' codec"):
        read(tmp_path / "x")


def test_writing_leaves_the_old_file_where_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "test_it.willfit.json"
    baseline = baseline_of(TOY, {})
    write(path, {("test", "check"): (baseline,)})
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("willfit._pytest.baseline.json.dump", full)
    with pytest.raises(OSError, match="No space left"):
        write(path, {("other", "check"): (baseline,)})
    assert path.read_bytes() == before
    monkeypatch.undo()
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write(path, {("other", "check"): (baseline,)})
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [path.name], "nothing else is left"


@pytest.mark.skipif(os.name != "posix", reason="modes and links are those of POSIX")
def test_modes_and_links_are_kept(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "test_it.willfit.json"
    entry = (baseline_of(TOY, {}),)
    write(real, {("test", "check"): entry})
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(real.stat().st_mode) == 0o666 & ~umask
    real.chmod(0o640)
    link.symlink_to(real)
    write(link, {("other", "check"): entry})
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert read(real).keys() == {("other", "check")}
