"""`casam compare`: one scenario under several methods and seeds, one row each, resumable.

The folder holds results.csv, appended row by row, and the run folders. A row is written only when its
run is complete; calling again does what is missing.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from casam_core.errors import RunError, ScenarioError
from casam_core.files import write_atomic
from casam_core.methods import METHODS, method_of
from casam_core.metrics.intervals import student
from scenarios.study.tuning import Runner
from scenarios.tables import Row, read_rows, write_rows

COLUMNS = (
    "method",
    "seed",
    "learning_rate",
    "last_iou",
    "avg_iou",
    "ff_iou",
    "bwt_iou",
    "unseen_iou",
    "routing_accuracy",
    "trained_parameters",
    "seconds",
)
FIGURES = COLUMNS[3:]


@dataclass(frozen=True)
class Grid:
    """What is compared: every method under every seed."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...]

    def cells(self) -> Iterable[tuple[str, int]]:
        """Seed by seed, so that an interrupted comparison has whole columns to show."""
        return [(method, seed) for seed in self.seeds for method in self.methods]


def parse_grid(methods: str, seeds: str) -> Grid:
    """From `all` or `a,b`, and `0,1,2`. Raises ScenarioError."""
    names = tuple(METHODS) if methods == "all" else tuple(name.strip() for name in methods.split(","))
    for name in names:
        method_of(name)
    try:
        return Grid(names, tuple(int(seed) for seed in seeds.split(",")))
    except ValueError as error:
        raise ScenarioError(f"--seeds: expected whole numbers like 0,1,2, found {seeds!r}") from error


def compare(
    grid: Grid, folder: Path, run: Runner, say: Callable[[str], None], rates: Mapping[str, float]
) -> list[Row]:
    """Run what is missing and return the grid's rows. rates: tuned learning rates by method."""
    path = folder / "results.csv"
    rows = read_rows(path, COLUMNS)
    for method, seed in grid.cells():
        if any(row["method"] == method and row["seed"] == str(seed) for row in rows):
            say(f"{method}, seed {seed}: already there")
            continue
        say(f"{method}, seed {seed}")
        target = folder / "runs" / f"{method}-{seed}"
        # Without a row, whatever is there is a run that was interrupted.
        shutil.rmtree(target, ignore_errors=True)
        rate = rates.get(method)
        run(method, seed, target, () if rate is None else (f"alignment.learning_rate={rate:g}",))
        summary = json.loads((target / "summary.json").read_text())
        rows.append(row_of(summary, rate))
        write_rows(path, COLUMNS, rows)
    wanted = set(grid.cells())
    return [row for row in rows if (row["method"], int(row["seed"])) in wanted]


def claim(folder: Path, identity: str) -> None:
    """Rows of one folder belong to one comparison. Raises RunError when it holds another.

    identity: all that must be equal for rows to stand in one table (scenario, code, data, tuning).
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "comparison.txt"
    if not path.exists():
        write_atomic(path, identity.encode())
    elif path.read_text() != identity:
        raise RunError(
            f"{folder} holds a comparison of another scenario, --set, --tune, data folder or version; "
            "choose another --out"
        )


def row_of(summary: dict[str, Any], rate: float | None) -> Row:
    """One row of results.csv; a figure that does not apply is empty, as is an untuned learning rate."""
    values = {
        "method": summary["method"],
        "seed": summary["seed"],
        "learning_rate": rate,
        **{
            name: summary[name] for name in ("last_iou", "avg_iou", "ff_iou", "bwt_iou", "trained_parameters")
        },
        "unseen_iou": unseen_iou(summary),
        "routing_accuracy": summary["routing"]["accuracy"],
        "seconds": summary["timing"]["seconds"],
    }
    return {name: "" if values[name] is None else str(values[name]) for name in COLUMNS}


def unseen_iou(summary: dict[str, Any]) -> float | None:
    """Mean over the tasks that nobody learned, at the last stage; None without any."""
    values = [value for value in summary["unseen"]["iou"][-1].values() if value is not None]
    return statistics.fmean(values) if values else None


def table_of(rows: Sequence[Row]) -> Table:
    """One line per method: mean over seeds, and the standard deviation where there are several."""
    table = Table(title="mean over seeds, ± standard deviation")
    table.add_column("method")
    for name in FIGURES:
        table.add_column(name, justify="right")
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        table.add_row(method, *(spread([row[name] for row in mine], name) for name in FIGURES))
    return table


def paired_table(rows: Sequence[Row]) -> Table | None:
    """Last IoU against the first method's, seed by seed; None without two methods that share two seeds.

    The 95 % interval is Student's over the seeds' differences: seeds draw splits, images and weights anew,
    so pairing takes away what they do to all methods alike.
    """
    by_method: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["last_iou"]:
            by_method.setdefault(row["method"], {})[row["seed"]] = float(row["last_iou"])
    (first, own), *others = by_method.items() or [("", {})]
    table = Table(title=f"last_iou minus that of {first}, paired by seed")
    for name in ("method", "seeds", "difference", "95 % interval"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for method, theirs in others:
        seeds = sorted(own.keys() & theirs.keys())
        if len(seeds) < 2:
            continue
        found = student([theirs[seed] - own[seed] for seed in seeds])
        cells = (f"{found.mean:+.3f}", f"{found.low:+.3f} .. {found.high:+.3f}")
        table.add_row(method, str(len(seeds)), *cells)
    return table if table.row_count else None


def spread(cells: Sequence[str], name: str) -> str:
    """`0.812 ± 0.010`, or a dash."""
    values = [float(cell) for cell in cells if cell]
    if not values:
        return "-"
    digits = {"trained_parameters": 0, "seconds": 0, "ff_iou": 2}.get(name, 3)
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) < 2 or name == "trained_parameters":
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"
