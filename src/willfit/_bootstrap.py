"""The first lines of a process that willfit starts, which may run under another Python than the one that asks.

Its packages are its own, but for willfit and the light ones that willfit needs: those come from the Python that asks.

    python _bootstrap.py MODULE FOLDER NAME=DIRECTORY ...
"""

import importlib
import importlib.util
import os
import sys


def _load(name: str, directory: str) -> None:
    spec = importlib.util.spec_from_file_location(
        name, os.path.join(directory, "__init__.py"), submodule_search_locations=[directory]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    sys.path.pop(0)  # this file's directory
    entry, folder, *packages = sys.argv[1:]
    sys.argv[1:] = []
    for package in packages:
        _load(*package.split("=", 1))
    importlib.import_module(entry).main(folder)
