"""Tables of ways of learning: IoU over seconds and bytes (casam_bench.quality.layer_seconds).

Differences are paired by task and seed; their 95 % intervals are Student's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table
from scipy import stats

from casam_bench.bench import Figures

Cell = Mapping[str, Any]
Place = tuple[str, int]
Show = Callable[[Table], None]


def image_iou(images: Sequence[Sequence[Sequence[float]]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """iou_N of the images with instances."""
    return np.array([np.mean([iou for _, iou in image]) for image in images if image])


def kept(cell: Cell, budget: float, part: str = "test") -> float:
    """IoU of what a way keeps within `budget` seconds: the best by validation, frozen SAM included."""
    candidates = [cell["frozen"], *(at for b, at in cell["at"].items() if float(b) <= budget)]
    best = max(candidates, key=lambda found: image_iou(found["val"]).mean())
    return float(image_iou(best[part]).mean())


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """(mean, half width of its 95 % interval); nan for fewer than two."""
    n = len(differences)
    half = np.nan if n < 2 else stats.t.ppf(0.975, n - 1) * np.std(differences, ddof=1) / np.sqrt(n)
    return float(np.mean(differences)), float(half)


@dataclass(frozen=True)
class Standing:
    """One way after one budget, over tasks and seeds.

    iou: mean. above, half: points above the default and half the width of the interval. worst: points of the
    worst task and seed above frozen SAM.
    """

    iou: float
    above: float
    half: float
    worst: float

    @property
    def text(self) -> str:
        """A cell of the table."""
        return f"{self.iou:.3f} {self.above:+.1f}±{self.half:.1f} {self.worst:+.1f}"


def standing(own: Sequence[Cell], defaults: Mapping[Place, Cell], budget: float) -> Standing | None:
    """None if this way was not measured after this budget. defaults: the cells of the default."""
    measured = [cell for cell in own if f"{budget:g}" in cell["at"]]
    if not measured:
        return None
    pairs = [(cell, defaults[place(cell)]) for cell in measured if place(cell) in defaults]
    above, half = interval([kept(cell, budget) - kept(other, budget) for cell, other in pairs])
    gains = [kept(cell, budget) - kept(cell, 0) for cell in measured]
    iou = float(np.mean([kept(cell, budget) for cell in measured]))
    return Standing(iou, 100 * above, 100 * half, 100 * min(gains))


def place(cell: Cell) -> Place:
    """Cells of one task and seed are paired."""
    return cell["task"], cell["seed"]


def standings(cells: Sequence[Cell], default: str) -> dict[str, dict[float, Standing]]:
    """By way and budget."""
    defaults = {place(cell): cell for cell in cells if cell["way"] == default}
    found: dict[str, dict[float, Standing]] = {}
    for way in dict.fromkeys(cell["way"] for cell in cells):
        own = of_way(cells, way)
        at = {float(b): standing(own, defaults, float(b)) for b in own[0]["at"]}
        found[way] = {budget: known for budget, known in at.items() if known is not None}
    return found


def of_way(cells: Sequence[Cell], way: str) -> list[Cell]:
    """The cells of one way."""
    return [cell for cell in cells if cell["way"] == way]


def pareto(cells: Sequence[Cell], default: str, kind: str, show: Show) -> Figures:
    """Of every way after every budget: IoU, points above the default, the worst loss against frozen SAM."""
    found = standings(cells, default)
    frozen = list({place(cell): cell for cell in cells}.values())
    show(table_of(cells, frozen, found, f"{kind} tasks: test IoU, points above {default}, worst task"))
    figures = {f"iou_{kind}_frozen": mean_of(frozen, 0, "test")}
    for way, at in found.items():
        name = way.split(" (")[0].replace(", ", "_").replace(" ", "_")
        for budget, known in at.items():
            key = f"{kind}_{name}_{budget:g}s"
            figures |= {f"iou_{key}": known.iou, f"points_{key}": known.above, f"worst_{key}": known.worst}
    return figures


def table_of(
    cells: Sequence[Cell],
    frozen: Sequence[Cell],
    found: Mapping[str, Mapping[float, Standing]],
    title: str,
) -> Table:
    """A row per way; the last column is the IoU with jittered boxes after the last budget."""
    budgets = sorted({budget for at in found.values() for budget in at})
    table = Table(title=title)
    for name in ("way", "bytes", "cells", *(f"{b:g} s" for b in budgets), "steps", "jittered"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for way, at in found.items():
        own = of_way(cells, way)
        steps = np.mean([cell["at"][f"{max(at):g}"]["steps"] for cell in own])
        texts = [at[b].text if b in at else "-" for b in budgets]
        table.add_row(
            way, f"{own[0]['bytes']:,}", str(len(own)), *texts, f"{steps:.0f}", jittered(own, max(at))
        )
    blank = [""] * (len(budgets) - 1)
    tight = f"{mean_of(frozen, 0, 'test'):.3f}"
    table.add_row("frozen SAM", "0", str(len(frozen)), tight, *blank, "0", jittered(frozen, 0))
    return table


def jittered(cells: Sequence[Cell], budget: float) -> str:
    """Mean IoU with jittered boxes."""
    return f"{mean_of(cells, budget, 'jittered'):.3f}"


def mean_of(cells: Sequence[Cell], budget: float, part: str) -> float:
    """Mean over cells of what is kept within a budget."""
    return float(np.mean([kept(cell, budget, part) for cell in cells]))
