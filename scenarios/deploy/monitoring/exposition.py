"""Prometheus' text format 0.0.4: families of samples as lines of text.

The format has three kinds of lines, so it needs no library in the environment of a site. Tests read it with
the rules of the format.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Family:
    """One metric. labels: names of its labels. samples: by the labels' values, in the same order."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()
    samples: Mapping[tuple[str, ...], float] = field(default_factory=dict)


def exposed(families: Iterable[Family]) -> str:
    """The families as text; those without samples are left out."""
    return "".join(line + "\n" for family in families if family.samples for line in lines_of(family))


def lines_of(family: Family) -> Iterator[str]:
    """The lines of one family; samples in the order of their labels, so that equal facts are equal text."""
    yield f"# HELP {family.name} {escaped(family.help)}"
    yield f"# TYPE {family.name} {family.kind}"
    for values, number in sorted(family.samples.items()):
        pairs = zip(family.labels, values, strict=True)
        labels = ",".join(f'{label}="{escaped(value, quotes=True)}"' for label, value in pairs)
        yield f"{family.name}{{{labels}}} {float(number)!r}" if labels else f"{family.name} {float(number)!r}"


def escaped(text: str, *, quotes: bool = False) -> str:
    """The text on one line. quotes: as the value of a label."""
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
