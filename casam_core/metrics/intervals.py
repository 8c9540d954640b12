"""How sure a mean is: standard deviation and bootstrap interval over resampling units.

Images of one patient or slide resemble each other; the unit that is drawn anew is the whole group. An
institution computes this at home: means, counts and intervals leave it, the units' values do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 2000
DRAWN_AT_ONCE = 2**18
"""Units in a batch of resamples: memory must not grow with images. The draws are the same."""


@dataclass(frozen=True)
class Estimate:
    """A mean over images. sd: over units. low, high: 95 % percentile bootstrap interval (Efron 1979).

    All three are None where fewer than two units cannot tell.
    """

    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Statistics:
    """One task's test images at one institution. units: patients, slides, else images.

    gain: IoU minus frozen SAM's on the same images (a paired comparison).
    """

    units: int
    iou: Estimate
    gain: Estimate


def estimate(values_N: Sequence[float], units_N: Sequence[str], rng: np.random.Generator) -> Estimate:
    """The mean over all values, with units drawn anew; a unit counts as often as it has values."""
    sums_U, counts_U = by_unit(values_N, units_N)
    mean = float(sums_U.sum() / counts_U.sum())
    if len(sums_U) < 2:
        return Estimate(mean)
    # Imported where it is used, here and below: it takes half a second, and every message starts a process.
    from scipy.stats import bootstrap

    drawn = bootstrap(
        (sums_U, counts_U),
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, DRAWN_AT_ONCE // len(sums_U)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=rng,
    ).confidence_interval
    return Estimate(mean, float(np.std(sums_U / counts_U, ddof=1)), float(drawn.low), float(drawn.high))


def by_unit(
    values_N: Sequence[float], units_N: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(sums_U, counts_U) of the values of every unit, in the units' order of name."""
    _, index_N = np.unique(np.asarray(units_N), return_inverse=True)
    sums_U = np.bincount(index_N, weights=np.asarray(values_N, np.float64))
    return sums_U.astype(np.float64), np.bincount(index_N).astype(np.float64)


@dataclass(frozen=True)
class Spread:
    """A mean of n values. sd, low, high, p: sample deviation, Student's 95 % interval, and the two-sided p
    value of a true mean of 0; None for fewer than two values."""

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def student(values_N: Sequence[float]) -> Spread:
    """Over seeds: of figures, or of the differences between two ways under the same seeds (a paired test).

    Values that are all alike have an interval of no width: p is 1 where they are 0, else 0.
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
    """p values that hold for all tests together (Holm 1979), in the given order; None stays None."""
    order = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        adjusted[i] = highest
    return adjusted


def apart(mine: Estimate, other: Estimate, units: int) -> tuple[float, float] | None:
    """95 % interval of mine.mean - other.mean over the same `units`, of which only this is known.

    The values' correlation is not: sd(a - b) <= sd(a) + sd(b) holds for every one, so the interval is never
    too narrow for that, and mostly too wide. None where a deviation is missing.
    """
    if mine.sd is None or other.sd is None or units < 2:
        return None
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, units - 1)) * (mine.sd + other.sd) / units**0.5
    return mine.mean - other.mean - half, mine.mean - other.mean + half
