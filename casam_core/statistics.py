"""How sure a mean is: standard deviation and bootstrap interval over resampling units.

Images of one patient or slide resemble each other; the unit that is drawn anew is the whole group. An
institution computes this at home: means, counts and intervals leave it, the units' values do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

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
