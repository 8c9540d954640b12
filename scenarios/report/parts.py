"""What a page is made of: plain data that templates/blocks.html turns into HTML.

Every chart carries its text alternative: a sentence per picture, and a table with the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from markupsafe import Markup

Tone = Literal["", "good", "bad", "warn", "soft", "trained", "waited", "refused", "failed", "away"]
"""How a cell, card or notice is coloured. The words beside it say the same: colour alone says nothing."""


@dataclass(frozen=True)
class Cell:
    """A table cell that is more than its text. notes: further short lines."""

    text: str
    tone: Tone = ""
    notes: tuple[str, ...] = ()


Row = tuple[str | Cell, ...]


@dataclass(frozen=True)
class Table:
    """The first cell of a row names it. words: columns (by place) of running text; all others hold "
    "numbers."""

    kind: ClassVar[str] = "table"
    caption: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]
    words: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Panel:
    """One picture of a chart. text: what it shows, in a sentence with its numbers."""

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
    """help: how to read it. table: the same numbers."""

    kind: ClassVar[str] = "chart"
    title: str
    help: str
    panels: tuple[Panel, ...]
    table: Table
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True)
class Card:
    """One headline figure. detail: what to compare it with. help: what it means, in plain words."""

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
    """One sentence that must not be overlooked, or a plain paragraph (tone '')."""

    kind: ClassVar[str] = "notice"
    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Code:
    """Text to copy."""

    kind: ClassVar[str] = "code"
    title: str
    text: str
    folded: bool = False


Block = Table | Chart | Cards | Notice | Code


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading of its own. name: its anchor, unique within a run."""

    name: str
    title: str
    help: str = ""
    blocks: Sequence[Block] = field(default_factory=tuple)
