"""Progress of a run: on a terminal one bar per institution, elsewhere plain lines.

Server and institutions print lines `casam | who | what | done/total` or `casam | server | text`. All other
output of Flower and Ray goes only to the run's log.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

LINE = re.compile(r"casam \| (?P<who>[^|]+) \| (?P<what>[^|]+?)(?: \| (?P<done>\d+)/(?P<total>\d+))?\s*$")


class View(Protocol):
    """Shows one line of output, or ignores it."""

    def __call__(self, line: str) -> None: ...


@contextmanager
def live_view(console: Console) -> Iterator[View]:
    """A view for this console."""
    if not console.is_terminal:
        yield lambda line: _plain(console, line)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bars: dict[str, TaskID] = {}

        def show(line: str) -> None:
            found = LINE.search(line)
            if not found:
                return
            who, what = found["who"], found["what"]
            if found["total"] is None:
                progress.console.print(what, highlight=False)
                return
            text = f"{who:<20} {what}"
            if who not in bars:
                bars[who] = progress.add_task(text, total=int(found["total"]))
            progress.update(
                bars[who], description=text, completed=int(found["done"]), total=int(found["total"])
            )

        yield show


def _plain(console: Console, line: str) -> None:
    found = LINE.search(line)
    if found:
        amount = f" {found['done']}/{found['total']}" if found["total"] else ""
        who = "" if found["who"] == "server" else f"{found['who']}: "
        console.print(f"{who}{found['what']}{amount}", highlight=False, soft_wrap=True)


@contextmanager
def logged(show: View, path: Path) -> Iterator[View]:
    """A view that first appends every line to the file `path`."""
    with path.open("a") as log:

        def on_line(line: str) -> None:
            log.write(line.rstrip("\n") + "\n")
            log.flush()
            show(line)

        yield on_line


class LineWriter(io.TextIOBase):
    """A text stream that hands every printed line to a view."""

    def __init__(self, show: View) -> None:
        self._show = show
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._show(line)
        return len(text)
