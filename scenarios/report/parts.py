"""The parts of a page: plain data that templates/blocks.html turns into HTML.

Every chart has a text alternative: a sentence for each picture, and a table with the same numbers. A heat
map is a table itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from markupsafe import Markup

Tone = Literal["", "good", "bad", "warn", "soft", "trained", "waited", "refused", "failed", "away"]
"""The colour of a cell, card or notice. The text beside it says the same, for readers without colours."""


STEPS = 7
"""Colours of a heat map; style.css names them."""


def step_of(value: float, edges: Sequence[float]) -> int:
    """Index of the value's colour: the number of the STEPS - 1 edges at or below the value."""
    return sum(value >= edge for edge in edges)


@dataclass(frozen=True)
class Cell:
    """A table cell with a colour or with notes.

    notes: more short lines. step: its colour in a heat map, 0 to STEPS - 1. href: where its text leads; a
    report leaves it empty.
    """

    text: str
    tone: Tone = ""
    notes: tuple[str, ...] = ()
    step: int | None = None
    href: str = ""


Row = tuple[str | Cell, ...]


@dataclass(frozen=True)
class Table:
    """The first cell of a row is its name. words: indices of the columns that hold text, not numbers."""

    kind: ClassVar[str] = "table"
    caption: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]
    words: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Heat:
    """A table whose cells have the colours of their steps: picture and numbers in one. help: how to
    read it.
    """

    kind: ClassVar[str] = "heat"
    title: str
    help: str
    table: Table


@dataclass(frozen=True)
class Panel:
    """One picture of a chart. text: a sentence that describes it, with its numbers."""

    svg: Markup
    text: str
    title: str = ""


@dataclass(frozen=True)
class Key:
    """One line of a chart's legend; the colour is a class of style.css."""

    colour: str
    text: str


@dataclass(frozen=True)
class Chart:
    """One or several pictures. help: how to read them. table: the same numbers."""

    kind: ClassVar[str] = "chart"
    title: str
    help: str
    panels: tuple[Panel, ...]
    table: Table
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True)
class Card:
    """One headline figure. detail: a figure to compare it with. help: its meaning in plain words."""

    title: str
    value: str
    detail: str
    help: str
    tone: Tone = ""


@dataclass(frozen=True)
class Cards:
    """Headline figures side by side."""

    kind: ClassVar[str] = "cards"
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Notice:
    """A highlighted sentence, or a plain paragraph (tone '')."""

    kind: ClassVar[str] = "notice"
    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Code:
    """Text that a reader can copy."""

    kind: ClassVar[str] = "code"
    title: str
    text: str
    folded: bool = False


@dataclass(frozen=True)
class Step:
    """One thing to do. command: as a person types it, "" if there is none."""

    text: str
    command: str = ""


@dataclass(frozen=True)
class Steps:
    """Things to do, the most important first."""

    kind: ClassVar[str] = "steps"
    steps: tuple[Step, ...]


Block = Steps | Table | Heat | Chart | Cards | Notice | Code


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading. name: its anchor, unique within a run."""

    name: str
    title: str
    help: str = ""
    blocks: Sequence[Block] = field(default_factory=tuple)
