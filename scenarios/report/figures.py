"""The headline figures of runs, their differences and the matrix: what pages without charts show, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scenarios.report.parts import Cell, Heat, Notice, Row, Table, Tone, step_of
from scenarios.report.reading import Run, frozen_iou, refusals
from scenarios.report.words import (
    MINUS,
    MISSING,
    count,
    duration,
    fraction,
    listed,
    percent,
    points,
    signed,
    size,
)

EDGES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""IoU at which the colour of the matrix changes."""

SPLITS = {"test": "test", "val": "validation"}


def gain(run: Run) -> float | None:
    """Last IoU minus frozen SAM's IoU, as a fraction; None unless both are means over all tasks."""
    frozen, last = frozen_iou(run.summary), run.summary.last_iou
    if frozen is None or last is None or not run.summary.complete.get("last_iou", False):
        return None
    return last - frozen


@dataclass(frozen=True)
class Figure:
    """One row of the comparison.

    better: +1 if a higher value is better, -1 if a lower one is, 0 if neither. change: writes a difference.
    smallest: a smaller difference counts as none. mean: the aggregate of the summary whose scores it is a
    mean of, over the stream's tasks; "" for a figure of no tasks."""

    name: str
    of: Callable[[Run], float | None]
    text: Callable[[float | None], str]
    change: Callable[[float], str]
    better: int = 0
    smallest: float = 0.0005
    mean: str = ""


FIGURES = (
    Figure("IoU at the end", lambda r: r.summary.last_iou, fraction, signed, 1, mean="last_iou"),
    Figure("average IoU", lambda r: r.summary.avg_iou, fraction, signed, 1, mean="avg_iou"),
    Figure("frozen SAM's IoU", lambda r: frozen_iou(r.summary), fraction, signed, mean="frozen"),
    Figure("gain over frozen SAM, points", gain, points, points, 1, mean="last_iou"),
    Figure(
        "forgetting, points",
        lambda r: r.summary.ff_iou,
        lambda v: MISSING if v is None else f"{v:.2f}",
        lambda v: signed(v, 2),
        -1,
        0.005,
        "ff_iou",
    ),
    Figure(
        "right after learning",
        lambda r: r.summary.plasticity_iou,
        fraction,
        signed,
        1,
        mean="plasticity_iou",
    ),
    Figure("forward transfer, points", lambda r: r.summary.fwt_iou, points, points, 1, mean="fwt_iou"),
    Figure(
        "routed to their task",
        lambda r: r.summary.routing.accuracy,
        percent,
        lambda v: f"{points(v)} points",
        1,
        mean="last_iou",
    ),
    Figure(
        "wrongly treated as unknown",
        lambda r: r.summary.routing.false_unknown_rate,
        percent,
        lambda v: f"{points(v)} points",
        -1,
        mean="last_iou",
    ),
    Figure(
        "unknown images recognised",
        lambda r: r.summary.routing.unseen_unknown_rate,
        percent,
        lambda v: f"{points(v)} points",
        1,
    ),
    Figure(
        "sent by institutions",
        lambda r: sum(r.summary.bytes.up.values()),
        size,
        lambda v: change_of(v, size),
        -1,
    ),
    Figure(
        "received by institutions",
        lambda r: sum(r.summary.bytes.down.values()),
        size,
        lambda v: change_of(v, size),
        -1,
    ),
    Figure(
        "refusals",
        lambda r: refusals(r.summary),
        count,
        lambda v: signed(v, 0),
    ),
    Figure("decoder passes", lambda r: sum(r.summary.decodes), count, lambda v: change_of(v, count)),
    Figure("time", lambda r: r.summary.timing.seconds, duration, lambda v: change_of(v, duration)),
)


def change_of(value: float, text: Callable[[float], str]) -> str:
    """`+1.4 MB`"""
    return ("+" if value > 0 else MINUS) + text(abs(value))


def figures_table(runs: Sequence[Run]) -> Table:
    """The figures of several runs, each with its difference from the first run."""
    rows: list[Row] = []
    for figure in FIGURES:
        cells: list[str | Cell] = [figure.text(figure.of(runs[0]))]
        cells += [compared(figure, runs[0], run) for run in runs[1:]]
        rows.append((figure.name, *cells))
    return Table(
        "Headline figures, each with its difference from the first run. Means over other tasks, or without "
        "scores that nobody told, are not comparable",
        ("figure", *(run.label for run in runs)),
        tuple(rows),
    )


def compared(figure: Figure, first_run: Run, run: Run) -> Cell:
    """The figure with its difference from the first run."""
    first, value = figure.of(first_run), figure.of(run)
    if first is None or value is None:
        return Cell(figure.text(value))
    if figure.mean and not alike(figure.mean, first_run, run):
        return Cell(figure.text(value), "", ("not comparable",))
    difference = value - first
    if abs(difference) < figure.smallest:
        return Cell(figure.text(value), "", ("the same",))
    change = figure.change(difference)
    if not figure.better:
        return Cell(figure.text(value), "", (change,))
    good = difference * figure.better > 0
    tone: Tone = "good" if good else "bad"
    return Cell(figure.text(value), tone, (f"{change}, {'better' if good else 'worse'}",))


COLUMN = "Read a column downwards: it shows one task over time, from the stage in which it was learned."
OWN_ORDERS = (
    "Institutions learned in orders of their own, so a stage is not that of one task: what was forgotten is "
    "told by institution, and average, plasticity and transfer do not exist."
)


def alike(mean: str, one: Run, other: Run) -> bool:
    """Whether both means are over the same tasks, with every score."""
    complete = all(run.summary.complete.get(mean, True) for run in (one, other))
    return complete and set(one.summary.tasks) == set(other.summary.tasks)


def matrix(run: Run) -> Heat:
    """Heat map of stages x tasks, the frozen backbone first."""
    tasks, rows = run.summary.tasks, stage_rows(run)
    reading = OWN_ORDERS if run.own_orders else COLUMN
    missing = sum(row[j] is None for t, (_, row) in enumerate(rows) for j in range(t or len(tasks)))
    return Heat(
        "The continual matrix",
        f"IoU by stage (rows) and task (columns). {reading} The first row is SAM without any training. A "
        "darker cell (a brighter one in dark mode) is better."
        + (f" Missing: {missing}, because an institution told no scores then." if missing else ""),
        Table(
            "IoU by stage (rows) and task (columns)",
            ("after learning", *tasks),
            tuple((name, *map(cell_of, row)) for name, row in rows),
        ),
    )


def cell_of(iou: float | None) -> Cell:
    """One cell of the matrix."""
    return Cell(fraction(iou), step=None if iou is None else step_of(iou, EDGES))


def stage_rows(run: Run) -> list[tuple[str, list[float | None]]]:
    """(name, IoU by task) of the frozen backbone and of every stage."""
    tasks = run.summary.tasks
    frozen = [run.summary.zero_shot["iou"].get(task) for task in tasks]
    stages = [(run.stage_name(t), row) for t, row in enumerate(run.summary.matrix["iou"], 1)]
    return [("frozen SAM", frozen), *stages]


def empty_cells(run: Run) -> Notice | None:
    """A warning that names the incomplete figures and who shares no scores; None if all are complete."""
    defined = ("last_iou",) if run.own_orders else tuple(run.summary.complete)
    incomplete = [name for name in defined if not run.summary.complete[name]]
    if not incomplete:
        return None
    silent = [name for name, p in run.summary.privacy.items() if "metrics-not-shared" in p.refusals]
    who = f" (not shared by {listed(silent)})" if silent else ""
    return Notice(
        f"Some scores are missing{who}. These figures are means over the known scores only and cannot be "
        f"compared with complete ones: {listed([f.replace('_iou', '') for f in incomplete])}.",
        "warn",
    )


def not_learned(run: Run) -> list[str]:
    """Tasks of the stream of which the bank has no entry: frozen SAM segments their images."""
    return [task for task in run.summary.tasks if not run.summary.holders.get(task)]


def thresholds_of(run: Run) -> dict[str, float | None]:
    """By task: the threshold of its entry; None if its holders share no router."""
    return {
        str(event.facts["task"]): event.facts.get("threshold")
        for event in run.events
        if event.name == "entry" and "task" in event.facts
    }
