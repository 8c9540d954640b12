"""A page of plain text in two forms: Markdown, and facts for --json.

The page holds texts that others wrote (names, descriptions), so `plain` keeps only harmless characters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rows:
    """A table: its headings and its lines."""

    headings: Sequence[str]
    lines: Sequence[Sequence[str]]


Block = str | Rows | list[str]
"""A paragraph, a table, or a list."""

Page = list[tuple[str, list[Block]]]
"""(heading, blocks) of every section."""


def plain(text: str) -> str:
    """A text that others wrote, on one line and without control characters or markup."""
    return re.sub(r"[^\w .,:;()\[\]{}/+*=%\"'>-]", " ", " ".join(text.split()), flags=re.ASCII)


def as_markdown(page: Page) -> str:
    """The page as Markdown."""
    lines: list[str] = []
    for number, (heading, blocks) in enumerate(page):
        lines += [f"{'#' if number == 0 else '##'} {heading}", ""]
        for block in blocks:
            if isinstance(block, str):
                lines += [block, ""]
            elif isinstance(block, list):
                lines += [*(f"- {item}" for item in block), ""]
            else:
                lines.append(f"| {' | '.join(block.headings)} |")
                lines.append(f"|{' --- |' * len(block.headings)}")
                lines += [f"| {' | '.join(line)} |" for line in block.lines]
                lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def as_facts(page: Page) -> list[dict[str, object]]:
    """The page for --json: a table is a list of its lines by heading."""
    return [
        {
            "heading": heading,
            "blocks": [
                [dict(zip(block.headings, line, strict=True)) for line in block.lines]
                if isinstance(block, Rows)
                else block
                for block in blocks
            ],
        }
        for heading, blocks in page
    ]
