"""A confined process: what it writes goes to the folder, what it reads is there, and nothing leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import willfit

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has what it is for")
SOURCE = Path(willfit.__file__).parent.parent


@pytest.fixture
def project(tmp_path: Path) -> Path:
    here = tmp_path / "project"
    (here / "data").mkdir(parents=True)
    (here / "data" / "old.txt").write_text("old\n")
    (here / "data" / "kept.txt").write_text("kept\n")
    (tmp_path / "scratch").mkdir()
    return here


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def confined(project: Path, code: str) -> subprocess.CompletedProcess[str]:
    program = f"""
import sys
sys.path.insert(0, {str(SOURCE)!r})
import ctypes, os, pathlib, shutil, socket, subprocess, tempfile
{"import torch" if "torch" in code else ""}
from willfit._script.confined import confine
notes = confine(pathlib.Path({str(project.parent / "scratch")!r}))
{code}
"""
    return subprocess.run(
        [sys.executable, "-c", program], cwd=project, capture_output=True, text=True, check=False, timeout=120
    )


def check(project: Path, code: str) -> None:
    """Run what asserts by itself; the project is as it was."""
    before = contents(project)
    ran = confined(project, code)
    assert ran.returncode == 0, ran.stderr
    assert contents(project) == before
    assert sorted(path.name for path in project.iterdir()) == ["data"]


WRITES = {
    "a new file": 'open("new.txt", "w").write("new"); assert open("new.txt").read() == "new"',
    "an absolute path": 'p = os.path.abspath("new.txt"); open(p, "x").write("new"); assert os.path.getsize(p) == 3',
    "over an old file": 'open("data/old.txt", "w").write("new"); assert open("data/old.txt").read() == "new"',
    "to the end of an old file": """
open("data/old.txt", "a").write("new")
assert open("data/old.txt").read() == "old\\nnew"
""",
    "into an old file": """
with open("data/old.txt", "r+") as file:
    file.write("N")
assert open("data/old.txt").read() == "Nld\\n"
""",
    "by a descriptor": 'os.write(os.open("d.txt", os.O_WRONLY | os.O_CREAT), b"x"); assert os.path.exists("d.txt")',
    "folders": 'os.makedirs("out/a/b"); os.makedirs("out/a/b", exist_ok=True); assert os.listdir("out/a") == ["b"]',
    "a folder that there is": """
try:
    os.mkdir("data")
except FileExistsError:
    pass
else:
    raise AssertionError
os.makedirs("data", exist_ok=True)
""",
    "by pathlib": """
folder = pathlib.Path("out")
folder.mkdir()
(folder / "a").write_text("x")
assert [path.name for path in folder.iterdir()] == ["a"]
""",
    "among old files": """
open("data/new.txt", "w").close()
assert sorted(os.listdir("data")) == ["kept.txt", "new.txt", "old.txt"]
assert sorted(p.name for p in pathlib.Path("data").glob("*.txt")) == ["kept.txt", "new.txt", "old.txt"]
""",
    "moved": """
os.rename("data/old.txt", "moved.txt")
assert not os.path.exists("data/old.txt") and open("moved.txt").read() == "old\\n"
assert os.listdir("data") == ["kept.txt"]
""",
    "removed": """
os.remove("data/old.txt")
assert not pathlib.Path("data/old.txt").exists()
open("data/old.txt", "w").write("again")
assert open("data/old.txt").read() == "again"
""",
    "a copy": 'shutil.copy("data/old.txt", "copy.txt"); assert open("copy.txt").read() == "old\\n"',
    "replaced, as checkpoints are": """
torch.save({"a": torch.ones(2)}, "ckpt.tmp")
os.replace("ckpt.tmp", "data/kept.txt")
assert torch.load("data/kept.txt")["a"].tolist() == [1.0, 1.0]
""",
    "temporary files": "f = tempfile.NamedTemporaryFile(); assert '/scratch/' in f.name",
    "a folder and all in it": """
os.makedirs("o/p")
open("o/p/q", "w").close()
shutil.rmtree("o")
assert not os.path.exists("o")
""",
    "where there is no folder": """
try:
    open("nowhere/file", "w")
except FileNotFoundError:
    pass
else:
    raise AssertionError
""",
}


@pytest.mark.parametrize("code", WRITES.values(), ids=WRITES)
def test_what_is_written_is_there_for_the_process_and_for_nobody_else(project: Path, code: str) -> None:
    check(project, code)


REFUSED = {
    "a connection": (
        'socket.create_connection(("192.0.2.1", 80), timeout=5)',
        "willfit run lets nothing leave the machine",
    ),
    "a name": ('socket.getaddrinfo("example.org", 443)', "willfit run lets nothing leave the machine"),
    "another program": ('subprocess.run(["true"])', "willfit run starts no other program"),
    "a shell": ('os.system("true")', "willfit run starts no other program"),
}


@pytest.mark.parametrize(("code", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_leave_is_refused(project: Path, code: str, message: str) -> None:
    ran = confined(project, code)
    assert ran.returncode == 1
    assert message in ran.stderr.splitlines()[-1]


def test_a_library_in_c_cannot_write_past_python(project: Path) -> None:
    ran = confined(
        project,
        """
if notes:
    print(*notes)
    raise SystemExit(7)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.open(b"data/old.txt", os.O_WRONLY | os.O_TRUNC) == -1, "written"
assert libc.creat(b"new.txt", 0o644) == -1, "made"
assert libc.unlink(b"data/old.txt") == -1, "removed"
assert libc.open(os.fsencode(tempfile.gettempdir() + "/x"), os.O_WRONLY | os.O_CREAT, 0o644) > 0
""",
    )
    if ran.returncode == 7:
        pytest.skip(ran.stdout.strip())
    assert ran.returncode == 0, ran.stderr
    assert contents(project) == {"data/old.txt": "old\n", "data/kept.txt": "kept\n"}


def test_a_connection_within_the_machine_is_not_refused_by_python(project: Path) -> None:
    check(project, 'socket.getaddrinfo("localhost", 80); socket.socketpair()')
