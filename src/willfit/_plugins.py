"""The packages that extend willfit, found and loaded at first use."""

from __future__ import annotations

import importlib.metadata
from functools import cache

import pluggy

from willfit import hookspecs
from willfit._errors import UsageError

_GROUP = "willfit"


@cache
def plugins() -> pluggy.PluginManager:
    """Every plugin that is installed.

    Raises:
        UsageError: one of them cannot be imported, or has a hook that willfit does not know.
    """
    manager = pluggy.PluginManager(_GROUP)
    manager.add_hookspecs(hookspecs)
    for point in importlib.metadata.entry_points(group=_GROUP):
        try:
            manager.load_setuptools_entrypoints(_GROUP, point.name)
            manager.check_pending()
        except Exception as error:
            raise UsageError(
                f"the plugin {point.name!r} ({point.value}) cannot be loaded: {type(error).__name__}: {error}; "
                "mend or uninstall the package that it comes from"
            ) from error
    return manager
