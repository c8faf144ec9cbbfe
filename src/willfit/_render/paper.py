"""What the text renderers write on: lines of a given width, plain unless colour is asked for."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from rich.text import Text

WIDTH: Final = 80
"""Columns that every terminal, log and code review has."""

_NARROWEST: Final = 64  # what the tables take at least

# Stands for a blank at which no line breaks, as rich breaks lines at no-break spaces too: of the private use area.
GLUE: Final = "\ue000"

_SIZE = re.compile(r"(?<=[0-9]) (?=(?:[KMG]i?)?B\b|%)")


def colour_wanted(stream: TextIO) -> bool:
    """True for a terminal, unless NO_COLOR is set (https://no-color.org) or TERM says that it is a dumb one.

    >>> colour_wanted(io.StringIO())
    False
    """
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Paper:
    """Text written line by line, wrapped at a width; in ASCII but for names that are not, so that any log takes it.

    A line never breaks between a number and its unit, nor where the text has `GLUE` for a blank.

    >>> paper = Paper(width=64)
    >>> paper.title("Assumed")
    >>> paper.item("a sentence that is longer than one line of the paper and so goes on, indented")
    >>> print(paper.text())
    <BLANKLINE>
    Assumed
      - a sentence that is longer than one line of the paper and so
        goes on, indented
    """

    def __init__(self, *, color: bool = False, width: int | None = None) -> None:
        from rich.console import Console

        self.width = max(_NARROWEST, WIDTH if width is None else width)
        self._file = io.StringIO()
        self._console = Console(
            file=self._file,
            width=self.width,
            height=100,
            force_terminal=color,
            color_system="standard" if color else None,
            legacy_windows=False,
            force_jupyter=False,
            markup=False,
            emoji=False,
            highlight=False,
            _environ={},  # what is written depends on the arguments alone
        )

    def line(self, *parts: str | tuple[str, str]) -> None:
        """A line of parts, each plain or with a style; what does not fit is folded onto the next."""
        self._console.print(self._text(parts), overflow="fold")

    def paragraph(self, *parts: str | tuple[str, str], indent: int = 0) -> None:
        """Sentences, wrapped between words and indented."""
        from rich.padding import Padding

        self._console.print(Padding(self._text(parts), (0, 0, 0, indent)), overflow="fold")

    def verbatim(self, line: str) -> None:
        """A line as it is, of a program: longer than the paper is wide if need be."""
        self._console.print(self._text((line,)), overflow="ignore", no_wrap=True, crop=False)

    def item(self, sentence: str) -> None:
        """A sentence of a bullet list."""
        from rich.table import Table

        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=3, justify="right")
        grid.add_column(overflow="fold")
        grid.add_row("-", self._text((sentence,)))
        self._console.print(grid)

    def title(self, words: str) -> None:
        """An empty line and what the lines below are about."""
        self._console.print()
        self.paragraph((words, "bold"))

    def columns(self, rows: Sequence[tuple[str, ...]], head: tuple[str, ...] = (), right: int = 1) -> None:
        """Rows of cells, indented, under a head if there is one; the last ``right`` columns are right-aligned."""
        from rich.padding import Padding
        from rich.table import Table

        table = Table(
            box=None, show_header=bool(head), header_style="dim", pad_edge=False, padding=(0, 2, 0, 0), show_edge=False
        )
        count = len(rows[0])
        for position in range(count):
            numeric = position >= count - right
            table.add_column(
                self._text((head[position],)) if head else "",
                justify="right" if numeric else "left",
                overflow="fold",
                no_wrap=numeric,
            )
        for row in rows:
            table.add_row(*(self._text((cell,)) for cell in row))
        self._console.print(Padding(table, (0, 0, 0, 2), expand=False))

    def text(self) -> str:
        """All that was written, without blanks at the ends of lines or a newline at the end."""
        return "\n".join(line.rstrip() for line in self._file.getvalue().replace(GLUE, " ").split("\n")).rstrip("\n")

    @staticmethod
    def _text(parts: Sequence[str | tuple[str, str]]) -> Text:
        from rich.text import Text

        glued = [
            _SIZE.sub(GLUE, part) if isinstance(part, str) else (_SIZE.sub(GLUE, part[0]), part[1]) for part in parts
        ]
        return Text.assemble(*glued)
