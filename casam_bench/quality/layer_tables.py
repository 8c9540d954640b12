"""Ways of learning at equal seconds, as rows of a CSV file and as tables (casam_bench.quality.layer_seconds).

Differences are paired by task and seed; their 95 % intervals are Student's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from casam_bench.bench import Figures, markdown
from casam_core.model.validation import clearly_above_zero

Cell = Mapping[str, Any]


def image_iou(images: Sequence[Sequence[Sequence[float]]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """iou_N of the images with instances."""
    return np.array([np.mean([iou for _, iou in image]) for image in images if image])


@dataclass(frozen=True)
class Row:
    """One way on one task and seed after one budget of processor seconds: mean IoU on its test images.

    kept: 1 if the layer passed the fallback's test on its validation images, else 0. jittered: with boxes
    whose sides were moved by up to 10 %.
    """

    kind: str
    task: str
    seed: int
    way: str
    bytes: int
    seconds: float
    steps: int
    frozen: float
    layer: float
    frozen_jittered: float
    layer_jittered: float
    kept: int

    @property
    def iou(self) -> float:
        """Of what the product would use."""
        return self.layer if self.kept else self.frozen

    @property
    def jittered(self) -> float:
        """The same, with jittered boxes."""
        return self.layer_jittered if self.kept else self.frozen_jittered

    @property
    def place(self) -> tuple[str, int]:
        """Rows of one task and seed are paired."""
        return self.task, self.seed


def rows_of(cells: Iterable[Cell], kind: str) -> list[Row]:
    """The rows of cells of one kind of task: one for each budget."""
    return [
        Row(
            kind=kind,
            task=cell["task"],
            seed=cell["seed"],
            way=cell["way"],
            bytes=cell["bytes"],
            seconds=float(budget),
            steps=at["steps"],
            frozen=mean_of(cell["frozen"]["test"]),
            layer=mean_of(at["test"]),
            frozen_jittered=mean_of(cell["frozen"]["jittered"]),
            layer_jittered=mean_of(at["jittered"]),
            kept=int(clearly_above_zero(image_iou(at["val"]) - image_iou(cell["frozen"]["val"]))),
        )
        for cell in cells
        for budget, at in cell["at"].items()
    ]


def mean_of(images: Sequence[Sequence[Sequence[float]]]) -> float:
    """Mean IoU over images, to the digits that a table keeps."""
    return round(float(image_iou(images).mean()), 5)


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """(mean, half width of its 95 % interval); nan for fewer than two."""
    n = len(differences)
    if n < 2:
        return float(np.mean(differences)), float("nan")
    half = special.stdtrit(n - 1, 0.975) * np.std(differences, ddof=1) / np.sqrt(n)
    return float(np.mean(differences)), float(half)


@dataclass(frozen=True)
class Standing:
    """One way after one budget, over tasks and seeds.

    above, half: IoU above the default after as many seconds, and half the width of its interval. worst: the
    smallest gain of a task (mean of its seeds) over frozen SAM. unsafe: the same if every layer were kept.
    """

    way: str
    seconds: float
    bytes: int
    rows: int
    steps: float
    iou: float
    jittered: float
    above: float
    half: float
    worst: float
    unsafe: float
    kept: float


def standings(rows: Sequence[Row], default: str) -> list[Standing]:
    """By way and budget, in the order of the rows."""
    defaults = {(row.place, row.seconds): row.iou for row in rows if row.way == default}
    found = []
    for way, seconds in dict.fromkeys((row.way, row.seconds) for row in rows):
        own = [row for row in rows if (row.way, row.seconds) == (way, seconds)]
        pairs = [row.iou - defaults[key] for row in own if (key := (row.place, seconds)) in defaults]
        above, half = interval(pairs) if pairs else (float("nan"), float("nan"))
        found.append(
            Standing(
                way=way,
                seconds=seconds,
                bytes=own[0].bytes,
                rows=len(own),
                steps=float(np.mean([row.steps for row in own])),
                iou=float(np.mean([row.iou for row in own])),
                jittered=float(np.mean([row.jittered for row in own])),
                above=above,
                half=half,
                worst=min(by_task([(row.task, row.iou - row.frozen) for row in own]).values()),
                unsafe=min(by_task([(row.task, row.layer - row.frozen) for row in own]).values()),
                kept=float(np.mean([row.kept for row in own])),
            )
        )
    return found


def by_task(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Mean of each task."""
    grouped: dict[str, list[float]] = {}
    for task, value in values:
        grouped.setdefault(task, []).append(value)
    return {task: float(np.mean(of_task)) for task, of_task in grouped.items()}


HEAD = (
    "| way | bytes (float32) | seconds | pairs | steps | IoU | points above the first | worst task, points "
    "| without the fallback | layers kept | jittered boxes |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def table_of_ways(rows: Sequence[Row], default: str) -> str:
    """Markdown: a line per way and budget, and one of frozen SAM."""
    frozen = list({row.place: row for row in rows}.values())
    iou, jittered = (np.mean([getattr(r, name) for r in frozen]) for name in ("frozen", "frozen_jittered"))
    lines = [HEAD, f"| frozen SAM | 0 | | {len(frozen)} | | {iou:.3f} | | | | | {jittered:.3f} |"]
    for s in standings(rows, default):
        above = "" if s.way == default else f"{100 * s.above:+.1f} ± {100 * s.half:.1f}"
        lines.append(
            f"| {s.way} | {s.bytes:,} | {s.seconds:g} | {s.rows} | {s.steps:.0f} | {s.iou:.3f} | {above} "
            f"| {100 * s.worst:+.1f} | {100 * s.unsafe:+.1f} | {100 * s.kept:.0f} % | {s.jittered:.3f} |"
        )
    return "\n".join(lines)


def table_of_tasks(rows: Sequence[Row]) -> str:
    """Markdown: mean IoU over seeds by task and way, after the longest budget that all pairs of a way had."""
    had = Counter((row.way, row.seconds) for row in rows)
    ways = {way: max((n, s) for (w, s), n in had.items() if w == way)[1] for way, _ in had}
    last = [row for row in rows if row.seconds == ways[row.way]]
    lines = []
    for task in dict.fromkeys(row.task for row in last):
        mine = [row for row in last if row.task == task]
        means = [np.mean([row.iou for row in mine if row.way == way]) for way in ways]
        frozen = np.mean([row.frozen for row in mine if row.way == mine[0].way])
        lines.append([task, *(f"{iou:.3f}" for iou in (frozen, *means))])
    return markdown(["task", "frozen SAM", *ways], lines)


def figures_of(rows: Sequence[Row], default: str, kind: str) -> Figures:
    """By way and budget: IoU, points above the default, the worst task's points above frozen SAM."""
    figures: Figures = {}
    for s in standings(rows, default):
        key = f"{kind}_{s.way.replace(', ', '_').replace(' ', '_')}_{s.seconds:g}s"
        figures |= {f"iou_{key}": s.iou, f"points_{key}": 100 * s.above, f"worst_{key}": 100 * s.worst}
    return figures
