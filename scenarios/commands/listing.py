"""Lists of what comes with casam: name, minutes, what it is, and what to look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol


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


def listed(items: Sequence[Listed]) -> Iterator[str]:
    """One line each, and a second for what to look at; minutes are those of two CPU cores."""
    width = max(len(item.name) for item in items)
    yield f"{'':<{width}}  minutes"
    for item in items:
        minutes = "-" if item.minutes is None else f"{item.minutes:g}"
        yield f"{item.name:<{width}}  {minutes:>7}  {item.description}"
        if item.look_at:
            yield f"{'':<{width}}  {'':>7}  look at: {item.look_at}"
