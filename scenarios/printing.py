"""How lines reach a terminal, a pipe or a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from rich.console import Console


def console(*, stderr: bool = False) -> Console:
    """A console on the real stdout or stderr: text that other code prints during a live display does not come
    back to it. A file or a pipe has no window, so tables there are 160 columns wide.

    It prints text as it is: a name in brackets, of a folder or from an institution, is no command to it.
    """
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 160, markup=False, emoji=False)


def plain_columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as lines of left-aligned columns. Nothing is cut, so that scripts can read whole digests."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def say(screen: Console, line: str) -> None:
    """Print one line without wrapping it."""
    screen.print(line, highlight=False, soft_wrap=True)
