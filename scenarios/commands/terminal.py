"""How commands print tables and lists."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Protocol

from rich.console import Console


def console() -> Console:
    """A console on the real stdout: text that other code prints during a live display does not come back
    to it. A file or a pipe has no window, so tables there are 160 columns wide."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)


def plain_columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as lines of left-aligned columns. Nothing is cut, so that scripts can read whole digests."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


class Listed(Protocol):
    """A scenario or a study."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def minutes(self) -> float | None: ...
    @property
    def look_at(self) -> str: ...


def listing(items: Sequence[Listed]) -> Iterator[str]:
    """One line for each item, and a second line for what to look at. Minutes are for two CPU cores."""
    width = max(len(item.name) for item in items)
    yield f"{'':<{width}}  minutes"
    for item in items:
        minutes = "-" if item.minutes is None else f"{item.minutes:g}"
        yield f"{item.name:<{width}}  {minutes:>7}  {item.description}"
        if item.look_at:
            yield f"{'':<{width}}  {'':>7}  look at: {item.look_at}"
