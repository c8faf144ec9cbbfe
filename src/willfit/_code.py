"""What code reads by name, as its instructions tell."""

from __future__ import annotations

import dis
import functools
import types
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reads:
    """What a piece of code and the functions and classes defined in it read."""

    globals: tuple[str, ...]
    """Names of globals and builtins: ``self.head`` is no mention of a global ``head``."""
    imports: tuple[str, ...]
    """Names of modules that it imports when it runs; of those beside its own, as in ``from . import x``, "."."""
    names: frozenset[str]
    """All names that it uses, those of attributes included."""


@functools.cache
def reads(code: types.CodeType) -> Reads:
    """What this code reads.

    >>> read = reads(compile("import math.x; print(head.tail)", "", "exec"))
    >>> read.globals, read.imports, sorted(read.names)
    (('print', 'head'), ('math.x',), ['head', 'math', 'math.x', 'print', 'tail'])
    """
    globals_: dict[str, None] = {}
    imports: dict[str, None] = {}
    names = set(code.co_names)
    instructions = [each for each in dis.get_instructions(code) if each.opname != "EXTENDED_ARG"]
    for position, each in enumerate(instructions):
        if each.opname == "LOAD_NAME" or "GLOBAL" in each.opname:
            globals_[each.argval] = None
        elif each.opname == "IMPORT_NAME":
            level = instructions[position - 2].argval  # pushed before the names that are wanted of the module
            imports["." if level else each.argval] = None
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = reads(constant)
            globals_ |= dict.fromkeys(inner.globals)
            imports |= dict.fromkeys(inner.imports)
            names |= inner.names
    return Reads(tuple(globals_), tuple(imports), frozenset(names))
