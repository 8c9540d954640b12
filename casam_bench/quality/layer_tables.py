"""Tables of ways of learning: IoU over seconds and bytes (casam_bench.quality.layer_seconds).

Differences are paired by task and seed; their 95 % intervals are Student's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from scipy import stats

from casam_bench.bench import Figures

Cell = Mapping[str, Any]
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


def pareto(cells: Sequence[Cell], default: str, kind: str, show: Show) -> Figures:
    """Of every way after every budget: IoU, points above the default, the worst loss against frozen SAM."""
    by_place = {(cell["task"], cell["seed"], cell["way"]): cell for cell in cells}
    ways = list(dict.fromkeys(cell["way"] for cell in cells))
    budgets = sorted({float(b) for cell in cells for b in cell["at"]})
    table = Table(title=f"{kind} tasks: test IoU, points above {default} [95 %], worst task against frozen")
    for name in ("way", "bytes", "cells", *(f"{b:g} s" for b in budgets), "steps", "jittered", "point"):
        table.add_column(name, justify="left" if name == "way" else "right")
    figures: Figures = {}
    for way in ways:
        own = [cell for cell in cells if cell["way"] == way]
        row = []
        for budget in budgets:
            both = [
                (cell, by_place.get((cell["task"], cell["seed"], default)))
                for cell in own
                if f"{budget:g}" in cell["at"]
            ]
            if not both:
                row.append("-")
                continue
            iou = [kept(cell, budget) for cell, _ in both]
            losses = [kept(cell, budget) - image_iou(cell["frozen"]["test"]).mean() for cell, _ in both]
            above, half = interval([kept(c, budget) - kept(d, budget) for c, d in both if d is not None])
            key = f"{kind}_{way.split(' (')[0].replace(' ', '_').replace(',', '')}_{budget:g}s"
            figures |= {f"iou_{key}": float(np.mean(iou)), f"points_{key}": 100 * above}
            figures[f"worst_{key}"] = 100 * float(min(losses))
            row.append(f"{np.mean(iou):.3f} {100 * above:+.1f}±{100 * half:.1f} {100 * min(losses):+.1f}")
        steps = np.mean([list(cell["at"].values())[-1]["steps"] for cell in own])
        last = max(float(b) for b in own[0]["at"])
        prompts = [f"{np.mean([kept(cell, last, p) for cell in own]):.3f}" for p in ("jittered", "point")]
        table.add_row(way, f"{own[0]['bytes']:,}", str(len(own)), *row, f"{steps:.0f}", *prompts)
    frozen = {(c["task"], c["seed"]): c for c in cells}.values()
    base = float(np.mean([image_iou(c["frozen"]["test"]).mean() for c in frozen]))
    prompts = [f"{np.mean([kept(c, 0, p) for c in frozen]):.3f}" for p in ("jittered", "point")]
    blank = [f"{base:.3f}", *[""] * (len(budgets) - 1)]
    table.add_row("frozen SAM", "0", str(len(frozen)), *blank, "0", *prompts)
    show(table)
    return figures | {f"iou_{kind}_frozen": base}
