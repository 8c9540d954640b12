"""A page as its reader sees it: tags and text."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from scenarios.report.page import page
from scenarios.report.reading import read_all
from tests.scenarios.report.making import write_run


class Outline(HTMLParser):
    """Tags with their attributes, ids, and the text outside of styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def shown(html: str) -> str:
    return " ".join(Outline(html).text.split())


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> str:
    """The page of a run whose summary was changed."""
    folder = write_run(tmp_path / "one")
    content = json.loads((folder / "summary.json").read_text())
    change(content)
    (folder / "summary.json").write_text(json.dumps(content))
    return shown(page(read_all([folder]), full=True))
