"""The tuning of a comparison: every learning method gets the same few learning rates to choose from.

They are tried on the first seed and judged by last_iou on *validation* images alone; the test images
are read by nobody here. tuning.csv holds a row per try, appended as results.csv is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from casam_core.errors import RunError, ScenarioError
from casam_core.methods import METHODS
from scenarios.tables import Row, read_rows, write_rows

COLUMNS = ("method", "seed", "learning_rate", "val_last_iou")

Runner = Callable[[str, int, Path, Sequence[str]], None]
"""(method, seed, run folder, overrides of the scenario) -> a finished run folder."""


def parse_factors(text: str) -> tuple[float, ...]:
    """From `0.3,1,3`. Raises ScenarioError."""
    try:
        factors = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ScenarioError(f"--tune: expected factors like 0.3,1,3, found {text!r}") from error
    if not all(0 < factor < float("inf") for factor in factors):
        raise ScenarioError(f"--tune: expected factors above 0, found {text!r}")
    return factors


def tune(
    rates: Mapping[str, float],
    factors: Sequence[float],
    seed: int,
    folder: Path,
    run: Runner,
    say: Callable[[str], None],
) -> dict[str, float]:
    """The learning rate of every method that learns: the try with the best validation figure.

    rates: by method, the rate that the factors multiply. Tries that are already in tuning.csv are not
    repeated. A try that fails (a rate at which training diverges) is a row without a figure; RunError
    when all tries of a method do. Equal figures: the lower rate.
    """
    path = folder / "tuning.csv"
    rows = read_rows(path, COLUMNS)
    for method, rate in rates.items():
        if not METHODS[method].learns:
            continue
        for factor in factors:
            tried = f"{rate * factor:.6g}"
            if any((row["method"], row["learning_rate"]) == (method, tried) for row in rows):
                continue
            say(f"tuning {method}, learning rate {tried}")
            target = folder / "tuning" / f"{method}-{tried}"
            shutil.rmtree(target, ignore_errors=True)
            figure = attempt(run, method, seed, target, tried)
            row = {"method": method, "seed": str(seed), "learning_rate": tried, "val_last_iou": figure}
            rows.append(row)
            write_rows(path, COLUMNS, rows)
    return {method: best(method, rows) for method in rates if METHODS[method].learns}


def attempt(run: Runner, method: str, seed: int, target: Path, rate: str) -> str:
    """The validation figure of one try, or nothing if the run failed."""
    try:
        run(method, seed, target, ("evaluation.split=val", f"alignment.learning_rate={rate}"))
    except RunError:
        return ""
    figure = json.loads((target / "summary.json").read_text())["last_iou"]
    return "" if figure is None else str(figure)


def best(method: str, rows: Sequence[Row]) -> float:
    """The learning rate of the method's best row."""
    tried = [
        (float(row["val_last_iou"]), -float(row["learning_rate"]))
        for row in rows
        if row["method"] == method and row["val_last_iou"]
    ]
    if not tried:
        raise RunError(f"tuning {method}: no learning rate gave a finished run; try lower --tune factors")
    return -max(tried)[1]
