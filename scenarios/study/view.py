"""Progress of a study: on a terminal one bar for all runs, everywhere one line per ended run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from scenarios.study.cell import CellEnd
from scenarios.study.study import Cell

Told = tuple[Callable[[Cell], None], Callable[[Cell, CellEnd], None]]
"""Two callbacks: for every cell that begins, and for every cell that ends."""


@contextmanager
def cells_view(console: Console, total: int) -> Iterator[Told]:
    """A view of `total` cells."""
    begun = time.monotonic()
    running: list[str] = []
    count = 0
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=total)

        def draw() -> None:
            progress.update(bar, completed=count, description=", ".join(running))

        def started(cell: Cell) -> None:
            running.append(cell.name)
            draw()

        def ended(cell: Cell, end: CellEnd) -> None:
            nonlocal count
            count += 1
            running.remove(cell.name)
            draw()
            result = f"failed: {end.reason}" if end.reason else "finished"
            left = (time.monotonic() - begun) / count * (total - count)
            rest = f"; about {max(1.0, left / 60):.0f} min left" if count < total else ""
            progress.console.print(
                f"[{count}/{total}] {cell.name} {result} ({end.seconds:.0f} s){rest}",
                highlight=False, soft_wrap=True, markup=False,
            )  # fmt: skip

        yield started, ended
