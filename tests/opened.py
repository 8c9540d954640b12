"""Which files does some code open?"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_watched: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watched is not None:
        _watched.append(str(arguments[0]))


sys.addaudithook(_watch)  # cannot be taken back: one for all tests, deaf unless asked


@contextlib.contextmanager
def opened_below(root: Path) -> Iterator[set[str]]:
    """Fills a set with the paths, from `root`, that are opened within the block."""
    global _watched
    found: set[str] = set()
    _watched = []
    try:
        yield found
        found |= {Path(name).relative_to(root).as_posix() for name in _watched if str(root) in name}
    finally:
        _watched = None
