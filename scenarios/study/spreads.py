"""How figures of several runs spread, and how sure a difference between two of them is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from casam_core.metrics.intervals import CONFIDENCE, Estimate


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
    """95 % interval of mine.mean - other.mean over the same `units`, without the values of the units.

    Their correlation is unknown. sd(a - b) <= sd(a) + sd(b) holds for any correlation, so the interval is
    usually too wide and never too narrow for this reason. None if a standard deviation is missing.
    """
    if mine.sd is None or other.sd is None or units < 2:
        return None
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, units - 1)) * (mine.sd + other.sd) / units**0.5
    return mine.mean - other.mean - half, mine.mean - other.mean + half
