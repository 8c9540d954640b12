"""Statistics of a study: means with intervals over seeds, and differences paired by seed.

A difference is always cell minus baseline under the same seed, with every other axis equal. This removes the
effect that a seed has on both (splits, images, weights). p values are corrected for all tests of one kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from casam_core.errors import StudyError
from casam_core.metrics.intervals import CONFIDENCE, Estimate
from scenarios.study.frames import FIGURES, RUN_COLUMNS, SITE_COLUMNS
from scenarios.study.study import Comparison, Study

COMPARED = (
    "last_iou",
    "avg_iou",
    "worst_iou",
    "unseen_iou",
    "ff_iou",
    "site_ff_iou",
    "fwt_iou",
    "plasticity_iou",
    "routing_accuracy",
    "bytes_up",
)
"""Figures of a run whose differences are tested."""


NO_MEANS = ("bytes_up", "iou_mean")
"""Figures that are no means over a run's scores: they stay comparable where scores are unknown."""

COMPARISON = ("comparison", "value", "baseline")
FOUND = ("scope", "institution", "task", "figure", "seeds")
NUMBERS = (
    "baseline_mean",
    "mean",
    "difference",
    "sd",
    "low",
    "high",
    "p",
    "p_holm",
    "own_low",
    "own_high",
)
COLUMNS = {*RUN_COLUMNS, *SITE_COLUMNS, *COMPARISON, *FOUND, *NUMBERS}
"""Of all tables. An axis of this name would take their place."""


def check_axes(study: Study) -> None:
    """Raises StudyError if an axis has the name of a column of the tables."""
    for axis in study.labels():
        if axis in COLUMNS:
            raise StudyError(f"axis {axis!r}: a column of the tables has this name; choose another one")


def summary_rows(study: Study, runs: pd.DataFrame) -> pd.DataFrame:
    """One row per combination and figure: mean, deviation and 95 % interval over seeds."""
    axes = list(study.labels())
    rows = [
        {**labels, "figure": figure, **spread_columns(student(values))}
        for labels, part in grouped(runs, axes)
        for figure in FIGURES
        if len(values := part[figure].dropna().to_numpy())
    ]
    numbers = ["mean", "sd", "low", "high"]
    frame = pd.DataFrame(rows, columns=[*axes, "figure", "seeds", *numbers])
    return frame.astype(dict.fromkeys(numbers, "float64"))


def difference_rows(study: Study, runs: pd.DataFrame, sites: pd.DataFrame) -> pd.DataFrame:
    """Differences of every comparison: one row per value of its axis and figure (`scope` run), and one per
    value, institution and task (`scope` institution). docs/studies.md lists the columns."""
    axes = list(study.labels())
    rows: list[dict[str, Any]] = []
    for comparison in study.comparisons:
        others = [axis for axis in axes if axis != comparison.axis]
        for scope, frame, extra, figures in (
            ("run", runs, [], COMPARED),
            ("institution", sites, ["institution", "task"], ("iou_mean",)),
        ):
            for figure in figures:
                found = list(paired(comparison, frame, [*others, *extra], figure))
                for row, p in zip(found, holm([row["p"] for row in found]), strict=True):
                    rows.append({"scope": scope, **row, "p_holm": p})
    frame = pd.DataFrame(rows, columns=[*COMPARISON, *axes, *FOUND, *NUMBERS])
    return frame.astype(dict.fromkeys(NUMBERS, "float64"))


def paired(
    comparison: Comparison, frame: pd.DataFrame, keys: Sequence[str], figure: str
) -> Iterator[dict[str, Any]]:
    """Compare every value of the axis with the baseline, if both have the figure under at least one seed."""
    axis, baseline = comparison.axis, comparison.baseline
    for labels, part in grouped(frame[frame[figure].notna()], list(keys)):
        by_value = {str(value): rows.set_index("seed") for value, rows in part.groupby(axis, sort=False)}
        base = by_value.pop(baseline, None)
        if base is None:
            continue
        for value, rows in by_value.items():
            seeds = sorted(set(base.index) & set(rows.index))
            if figure not in NO_MEANS:  # without its worst task a mean is higher, and no better
                seeds = [seed for seed in seeds if base.loc[seed, "scores"] == rows.loc[seed, "scores"]]
            if not seeds:
                continue
            mine, other = rows.loc[seeds], base.loc[seeds]
            found = student((mine[figure] - other[figure]).to_numpy())
            own = own_interval(mine, other) if figure == "iou_mean" else None
            yield {
                "comparison": axis,
                "value": value,
                "baseline": baseline,
                **labels,
                "figure": "iou" if figure == "iou_mean" else figure,
                "baseline_mean": float(other[figure].mean()),
                **spread_columns(found),
                "mean": float(mine[figure].mean()),
                "difference": found.mean,
                "p": found.p,
                "own_low": own[0] if own else None,
                "own_high": own[1] if own else None,
            }


def own_interval(mine: pd.DataFrame, other: pd.DataFrame) -> tuple[float, float] | None:
    """Interval of the difference from the institution's own statistics: the mean over seeds of its intervals.

    Seeds may draw the same images, so more seeds do not make the interval narrower.
    """
    found = [apart(*own_estimates(mine.loc[seed], other.loc[seed])) for seed in mine.index]
    known = [interval for interval in found if interval is not None]
    if len(known) < len(found):
        return None
    low, high = np.mean(known, axis=0)
    return float(low), float(high)


def own_estimates(mine: pd.Series, other: pd.Series) -> tuple[Estimate, Estimate, int]:
    """What an institution's interval is made of: two means, and the smaller number of units.

    Gains over frozen SAM vary less than scores, but their difference is that of the scores only if frozen SAM
    scores the same in both runs (means are rounded to four digits).
    """
    frozen, others = (row["iou_mean"] - row["gain_mean"] for row in (mine, other))
    what = "gain" if abs(frozen - others) < 2.5e-4 else "iou"
    one, two = (
        Estimate(float(row[f"{what}_mean"]), None if pd.isna(row[f"{what}_sd"]) else float(row[f"{what}_sd"]))
        for row in (mine, other)
    )
    return one, two, int(min(mine["units"], other["units"]))


def grouped(frame: pd.DataFrame, keys: list[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Parts with equal keys, in order of appearance; without keys, the whole frame as one part."""
    if not keys:
        if len(frame):
            yield {}, frame
        return
    for values, part in frame.groupby(keys, sort=False):
        yield dict(zip(keys, values, strict=True)), part


def spread_columns(spread: Spread) -> dict[str, Any]:
    """The columns of a Spread."""
    return {"seeds": spread.n, "mean": spread.mean, "sd": spread.sd, "low": spread.low, "high": spread.high}


@dataclass(frozen=True)
class Spread:
    """A mean of n values. sd, low, high, p: sample standard deviation, Student's 95 % interval, two-sided
    p value for a true mean of 0; None for fewer than two values."""

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def student(values_N: Sequence[float]) -> Spread:
    """Mean and interval over seeds: of a figure, or of a difference under the same seeds (a paired test).

    If all values are equal, the interval has no width; p is 1 if they are 0, else 0.
    """
    values = np.asarray(values_N, np.float64)
    n, mean = len(values), float(values.mean())
    if n < 2:
        return Spread(n, mean)
    sd = float(values.std(ddof=1))
    if sd == 0:
        return Spread(n, mean, 0.0, mean, mean, 1.0 if mean == 0 else 0.0)
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / n**0.5
    p = 2 * float(t.sf(abs(mean) / (sd / n**0.5), n - 1))
    return Spread(n, mean, sd, mean - half, mean + half, p)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """p values adjusted for multiple tests (Holm 1979), in the given order; None stays None."""
    order = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        adjusted[i] = highest
    return adjusted


def apart(mine: Estimate, other: Estimate, units: int) -> tuple[float, float] | None:
    """95 % interval of mine.mean - other.mean over `units` or more, without the values of the units.

    Their correlation is unknown. sd(a - b) <= sd(a) + sd(b) holds for any correlation, so the interval is
    usually too wide and never too narrow for this reason. None if a standard deviation is missing.
    """
    if mine.sd is None or other.sd is None or units < 2:
        return None
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, units - 1)) * (mine.sd + other.sd) / units**0.5
    return mine.mean - other.mean - half, mine.mean - other.mean + half
