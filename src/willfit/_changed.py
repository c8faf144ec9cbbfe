"""Which targets of a project a change concerns: those whose files it has."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatch
from modulefinder import ModuleFinder
from pathlib import Path

from willfit._checks import files_of
from willfit._project import FILE, Target
from willfit._target import where


def changed(targets: Iterable[Target], files: Iterable[str], root: Path) -> tuple[Target, ...]:
    """The targets that depend on one of these files, whose paths are relative to the root of the project.

    A target depends on the file of its entry, on what that imports of the project (as far as the text of the files
    tells: nothing is run), on its ``files``, and on pyproject.toml.
    """
    paths = {(root / file).resolve() for file in files}
    if (root / FILE).resolve() in paths:
        return tuple(targets)
    return tuple(target for target in targets if paths & _imported(target, root) or _matches(target, paths, root))


def _matches(target: Target, paths: Iterable[Path], root: Path) -> bool:
    top = root.resolve()
    relative = [path.relative_to(top).as_posix() for path in paths if path.is_relative_to(top)]
    return any(fnmatch(path, pattern) for path in relative for pattern in target.files)


def _imported(target: Target, root: Path) -> set[Path]:
    home = target.entry.rpartition(":")[0]
    candidates = [root / path for path in files_of(home)]
    found = {path.resolve() for path in candidates}
    path = next((each for each in candidates if each.is_file()), None)
    if path is None:
        return found
    directory, module = where(path)
    finder = ModuleFinder(path=[str(directory), str(root), str(root / "src")])  # hence the project's own modules alone
    with suppress(ImportError, SyntaxError):  # of which the check itself will tell
        finder.import_hook(module)
    files = [getattr(module, "__file__", None) for module in finder.modules.values()]
    return found | {Path(file).resolve() for file in files if file}
