"""The uncertainty of a mean: standard deviation and bootstrap interval over units.

Images of one patient or slide are similar, so the bootstrap resamples whole groups. An institution computes
this itself and releases only means, counts and intervals, not the values of units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 2000
DRAWN_AT_ONCE = 2**18
"""Units in a batch of resamples, to bound the memory; it does not change the draws."""


@dataclass(frozen=True)
class Estimate:
    """A mean over images. sd: over units. low, high: 95 % percentile bootstrap interval (Efron 1979).

    sd, low and high are None for fewer than two units.
    """

    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Statistics:
    """Intervals for the test images of one task at one institution.

    units: the number of patients or slides, else of images. gain: IoU minus that of frozen SAM on the same
    images (a paired comparison).
    """

    units: int
    iou: Estimate
    gain: Estimate


def estimate(values_N: Sequence[float], units_N: Sequence[str], rng: np.random.Generator) -> Estimate:
    """The mean over all values, and its interval from resampled units; each value has the same weight."""
    sums_U, counts_U = by_unit(values_N, units_N)
    mean = float(sums_U.sum() / counts_U.sum())
    if len(sums_U) < 2:
        return Estimate(mean)
    # A local import, here and below: it takes half a second, and every message starts a process.
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
    """(sums_U, counts_U): sum and number of the values of every unit, with units sorted by name."""
    _, index_N = np.unique(np.asarray(units_N), return_inverse=True)
    sums_U = np.bincount(index_N, weights=np.asarray(values_N, np.float64))
    return sums_U.astype(np.float64), np.bincount(index_N).astype(np.float64)
