"""Markdown pages as tests see them: links, anchors, and blocks of shell commands.

A comment above a `sh` block says that a test really runs it: `<!-- run -->` in the fast suite, `<!-- run
slow -->` where it takes a backbone or Flower. The marked blocks of one page share a folder and run in order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

MARK = re.compile(r"<!--\s*run(?P<slow>\s+slow)?\s*-->")
SOURCES = re.compile(r"""\b(?:src|srcset|href)=["']([^"']+)["']""")


@dataclass(frozen=True)
class Link:
    """A relative target as written, and its line (from 1)."""

    target: str
    line: int


@dataclass(frozen=True)
class Block:
    """A fenced `sh` block. run: None, "fast" or "slow". line: of its first command."""

    text: str
    run: str | None
    line: int


@dataclass(frozen=True)
class Page:
    """What one page says. codes: inline code, with its line."""

    path: Path
    links: tuple[Link, ...]
    anchors: frozenset[str]
    blocks: tuple[Block, ...]
    codes: tuple[tuple[str, int], ...]


def read_page(path: Path) -> Page:
    """Parse one file."""
    tokens = MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))
    codes = [
        (child.content, line)
        for token, line in _lines(tokens)
        for child in token.children or ()
        if child.type == "code_inline"
    ]
    return Page(
        path, tuple(_links(tokens)), frozenset(_anchors(tokens)), tuple(_blocks(tokens)), tuple(codes)
    )


def _lines(tokens: Iterable[Token]) -> Iterator[tuple[Token, int]]:
    """Tokens with the line of the block they stand in."""
    line = 0
    for token in tokens:
        line = token.map[0] + 1 if token.map else line
        yield token, line


def _links(tokens: Iterable[Token]) -> Iterator[Link]:
    for token, line in _lines(tokens):
        for part in (token, *(token.children or ())):
            found: list[Any] = [part.attrs.get("href"), part.attrs.get("src")]
            if part.type in ("html_block", "html_inline"):
                found += SOURCES.findall(part.content)
            for target in found:
                if target is not None and not urlsplit(str(target)).scheme:
                    yield Link(unquote(str(target)), line)


def _anchors(tokens: list[Token]) -> Iterator[str]:
    """As GitHub makes them of headings: lower case, no punctuation, blanks to hyphens, repeats numbered."""
    seen: dict[str, int] = {}
    for before, token in pairwise(tokens):
        if before.type == "heading_open":
            text = "".join(child.content for child in token.children or ())
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            count = seen.get(slug, 0)
            seen[slug] = count + 1
            yield f"{slug}-{count}" if count else slug


def _blocks(tokens: Iterable[Token]) -> Iterator[Block]:
    mark: re.Match[str] | None = None
    for token in tokens:
        if token.type == "fence" and token.info.strip() == "sh":
            run = None if mark is None else "slow" if mark["slow"] else "fast"
            yield Block(token.content, run, (token.map or [0])[0] + 2)
        elif mark is not None:
            raise ValueError(
                f"{mark.string!r} stands above nothing that can run: expected a sh block right below it"
            )
        mark = MARK.fullmatch(token.content.strip()) if token.type == "html_block" else None


def broken_links(pages: Mapping[Path, Page], root: Path) -> list[str]:
    """Every relative link of `pages` that leads nowhere, as `page:line: why`; anchors within pages count."""
    faults = []
    for page in pages.values():
        for link in page.links:
            name, _, anchor = link.target.partition("#")
            target = (page.path.parent / name).resolve() if name else page.path
            where = f"{page.path.relative_to(root)}:{link.line}"
            if not target.exists():
                faults.append(f"{where}: {link.target}: no such file")
            elif not target.is_relative_to(root):
                faults.append(f"{where}: {link.target}: outside of the repository")
            elif anchor and target.suffix == ".md":
                there = pages[target] if target in pages else read_page(target)
                if anchor not in there.anchors:
                    faults.append(f"{where}: {link.target}: no such heading")
    return faults


def reachable(start: Path) -> set[Path]:
    """Every page that links lead to from `start`, itself included."""
    found: set[Path] = set()
    waiting = [start.resolve()]
    while waiting:
        path = waiting.pop()
        if path in found or path.suffix != ".md" or not path.exists():
            continue
        found.add(path)
        names = {link.target.partition("#")[0] for link in read_page(path).links}
        waiting += [(path.parent / name).resolve() for name in names if name]
    return found
