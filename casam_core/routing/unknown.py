"""How unknown an image looks: its score under the nearest task minus that task's threshold.

Below zero the image is routed, above it is unknown. Institutions count these margins over fixed bins, so
that known and unknown images can be told apart across institutions without anybody's scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

BINS = 512
SCALE, RANGE = 0.01, 20.0
"""Bins are equal in asinh(margin / SCALE): 0.0008 wide about zero, 8 % wide far from it."""


def margin_histogram(margins_N: Sequence[float]) -> NDArray[np.int64]:
    """counts over BINS fixed bins; margins beyond the range fall into the outer ones."""
    position = (np.arcsinh(np.asarray(margins_N, np.float64) / SCALE) / RANGE + 1) / 2 * BINS
    index = np.clip(position, 0, BINS - 1).astype(np.int64)
    return np.bincount(index, minlength=BINS).astype(np.int64)


def bin_edge(number: int) -> float:
    """The margin at which a bin begins, 0 to BINS; the outer bins also hold what lies beyond."""
    return float(SCALE * np.sinh((2 * number / BINS - 1) * RANGE))


def total(histograms: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Counts over several histograms; zeros without any."""
    return margin_histogram([]) + sum(histograms)


def auroc(known: NDArray[np.int64], unknown: NDArray[np.int64]) -> float | None:
    """Probability that an unknown image has the higher margin than a known one; within a bin, half.

    None without images on either side.

    >>> auroc(known=margin_histogram([-2.0, -1.0]), unknown=margin_histogram([-1.0, 3.0]))
    0.875
    """
    pairs = float(known.sum()) * float(unknown.sum())
    if pairs == 0:
        return None
    below = np.concatenate([[0], np.cumsum(known)[:-1]])
    return float((unknown * (below + known / 2)).sum() / pairs)


def fpr_at_tpr(known: NDArray[np.int64], unknown: NDArray[np.int64], tpr: float = 0.95) -> float | None:
    """Share of known images in or above the highest bin from which on `tpr` of the unknown ones lie.

    None without images on either side.
    """
    if not known.sum() or not unknown.sum():
        return None
    at_or_above = np.cumsum(unknown[::-1])[::-1]
    cut = int(np.flatnonzero(at_or_above >= tpr * unknown.sum())[-1])
    return float(known[cut:].sum() / known.sum())
