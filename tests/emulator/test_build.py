"""The stand-in for CUDA's libraries is compiled where it has to be, once, and says what is missing."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import machine
from willfit import UnavailableError
from willfit._emulator import build
from willfit._emulator.build import LIBRARY, SOURCES, check_tools, runtime_for
from willfit._emulator.interpreter import Interpreter

needs_compiler = pytest.mark.skipif(
    not (shutil.which("cc") and shutil.which("nm") and sys.platform.startswith("linux")),
    reason="needs Linux, a C compiler (cc) and nm",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for variable in ("CC", "NM"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "cache" / "willfit" / "emulator"


def an_interpreter(*libraries: Path, torch: str = "2.13.0+cu130") -> Interpreter:
    return Interpreter(sys.executable, sys.version_info[:2], torch, "13.0", libraries, ())


def library_that_calls(tmp_path: Path, *functions: str, strings: str = "") -> Path:
    """A shared library with these undefined symbols."""
    source, target = tmp_path / "libtorch_cuda.c", tmp_path / "libtorch_cuda.so"
    calls = "".join(f"extern int {name}(void); int call_{name}(void) {{ return {name}(); }}\n" for name in functions)
    source.write_text(f'{calls}const char names[] = "\\0{strings}\\0";\n')
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(target)], check=True)
    return target


def exported(folder: Path) -> set[str]:
    command = ["nm", "-D", "--defined-only", str(folder / LIBRARY)]
    return {line.split()[-1] for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines()}


@needs_compiler
class TestCompiled:
    def test_what_pytorch_imports_and_nobody_defines_does_nothing(self, tmp_path: Path) -> None:
        library = library_that_calls(tmp_path, "cudaMalloc", "cublasSgemm_v2", "printf", strings="cuFancyNewThing")
        names = exported(runtime_for(an_interpreter(library)))
        assert {"cudaMalloc", "cublasSgemm_v2", "cuFancyNewThing", "cuMemCreate", "nvmlInit_v2"} <= names
        assert "printf" not in names

    def test_it_is_found_under_the_names_of_drivers(self) -> None:
        folder = runtime_for(an_interpreter())
        for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
            assert (folder / name).resolve() == folder / LIBRARY

    def test_a_second_time_nothing_is_compiled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = runtime_for(an_interpreter())
        monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled again"))
        assert runtime_for(an_interpreter()) == folder

    def test_another_pytorch_and_another_library_have_their_own(self, tmp_path: Path) -> None:
        library = library_that_calls(tmp_path, "cudaMalloc")
        folders = {
            runtime_for(an_interpreter()),
            runtime_for(an_interpreter(torch="2.15.0+cu132")),
            runtime_for(an_interpreter(library)),
        }
        os.utime(library, (1, 1))  # as after an upgrade
        assert len(folders | {runtime_for(an_interpreter(library))}) == 4

    def test_several_at_once_all_get_a_whole_one(self, cache: Path) -> None:
        with ThreadPoolExecutor(4) as pool:
            folders = set(pool.map(lambda _: runtime_for(an_interpreter()), range(4)))
        assert len(folders) == 1
        assert [path.name for path in cache.iterdir()] == [folders.pop().name], "nothing half done is left"

    def test_a_compile_error_is_shown_shortened(
        self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "wrong").mkdir()
        (tmp_path / "wrong" / "wrong.c").write_text("this is no C;\n" * 200)
        monkeypatch.setattr(build, "SOURCES", tmp_path / "wrong")
        with pytest.raises(UnavailableError, match="could not be compiled with cc") as caught:
            runtime_for(an_interpreter())
        assert "wrong.c:1" in str(caught.value)
        assert len(str(caught.value)) < 1200
        assert not list(cache.iterdir())

    def test_warnings_are_none(self, tmp_path: Path) -> None:
        for source in SOURCES.glob("*.c"):
            command = ["cc", "-c", "-Wall", "-Wextra", "-Wno-unused-parameter", str(source), "-o", str(tmp_path / "o")]
            ran = subprocess.run(command, capture_output=True, text=True, check=True)
            assert ran.stderr == ""

    @pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write anywhere")
    def test_a_cache_that_cannot_be_written_to(self, tmp_path: Path) -> None:
        (tmp_path / "cache").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
        with pytest.raises(UnavailableError, match="XDG_CACHE_HOME"):
            runtime_for(an_interpreter())

    def test_a_cache_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("")
        with pytest.raises(UnavailableError, match="name a cache directory that can be written to with XDG_CACHE_HOME"):
            runtime_for(an_interpreter())


def test_without_a_compiler_it_says_which_and_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"no C compiler here \(looked for cc, gcc, clang\).*apt install gcc"):
        check_tools(an_interpreter())


def test_without_nm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cc").write_text("#!/bin/sh\n")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="no nm, which lists the symbols of a library"):
        check_tools(an_interpreter())


@needs_compiler
def test_a_compiler_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("cc")
    monkeypatch.setenv("CC", f"{compiler} -pipe")
    assert (runtime_for(an_interpreter()) / LIBRARY).exists()


@needs_compiler
@pytest.mark.parametrize("major", [12, 13])
def test_the_layout_of_properties_is_that_of_the_headers(major: int, tmp_path: Path) -> None:
    """struct cudaDeviceProp, field by field, against NVIDIA's header where pip has brought one."""
    root = Path(machine.interpreter().libraries[0]).parents[2]
    headers = [root / "nvidia" / "cu13" / "include", root / "nvidia" / "cuda_runtime" / "include"]
    header = next((each / "driver_types.h" for each in headers if (each / "driver_types.h").exists()), None)
    if header is None or machine.interpreter().cuda.partition(".")[0] != str(major):
        pytest.skip(f"there is no header of CUDA {major} beside PyTorch")
    fields = (
        "totalGlobalMem",
        "major",
        "multiProcessorCount",
        "l2CacheSize",
        "sharedMemPerBlockOptin",
        "clusterLaunch",
    )
    declared = re.search(
        r"struct __device_builtin__ (cudaDeviceProp\s*\{.*?^\};)", header.read_text(), re.DOTALL | re.MULTILINE
    )
    assert declared
    other = 25 - major
    source = tmp_path / "layout.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\ntypedef struct { char bytes[16]; } cudaUUID_t;\n"
        f"struct {declared[1]}\n"
        f"#define CUDA_{major}(field) field\n#define CUDA_{other}(field)\n"
        f'struct ours {{\n#include "{SOURCES / "properties.inc"}"\n}};\n'
        'int main(void) { printf("%zu %zu\\n", sizeof(struct ours), sizeof(struct cudaDeviceProp));\n'
        + "".join(
            f'printf("%zu %zu\\n", offsetof(struct ours, {f}), offsetof(struct cudaDeviceProp, {f}));\n' for f in fields
        )
        + "return 0; }\n"
    )
    subprocess.run(["cc", str(source), "-o", str(tmp_path / "layout")], check=True)
    said = subprocess.run([str(tmp_path / "layout")], capture_output=True, text=True, check=True).stdout
    pairs = [line.split() for line in said.splitlines()]
    assert len(pairs) == len(fields) + 1
    assert all(ours == theirs for ours, theirs in pairs), said
