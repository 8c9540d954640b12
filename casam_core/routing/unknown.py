"""The margin of an image: its score under the nearest task minus that task's threshold.

An image with a margin below zero is routed; above zero it is unknown. Institutions release histograms of
margins over fixed bins. So the separation of known and unknown images can be measured over all institutions
without their individual scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

BINS = 512
SCALE, RANGE = 0.01, 20.0
"""Bins are equal in asinh(margin / SCALE): 0.0008 wide about zero, 8 % wide far from it."""


def margin_histogram(margins_N: Sequence[float]) -> NDArray[np.int64]:
    """Counts over BINS fixed bins; margins outside the range count in the outer bins."""
    position = (np.arcsinh(np.asarray(margins_N, np.float64) / SCALE) / RANGE + 1) / 2 * BINS
    index = np.clip(position, 0, BINS - 1).astype(np.int64)
    return np.bincount(index, minlength=BINS).astype(np.int64)


def bin_edge(number: int) -> float:
    """The margin at the lower edge of a bin; `number` is in 0..BINS."""
    return float(SCALE * np.sinh((2 * number / BINS - 1) * RANGE))


def total(histograms: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The sum of several histograms; zeros if there are none."""
    return margin_histogram([]) + sum(histograms)


def auroc(known: NDArray[np.int64], unknown: NDArray[np.int64]) -> float | None:
    """Probability that an unknown image has a higher margin than a known one; a tie in a bin counts half.

    None if there are no known or no unknown images.

    >>> auroc(known=margin_histogram([-2.0, -1.0]), unknown=margin_histogram([-1.0, 3.0]))
    0.875
    """
    pairs = float(known.sum()) * float(unknown.sum())
    if pairs == 0:
        return None
    below = np.concatenate([[0], np.cumsum(known)[:-1]])
    return float((unknown * (below + known / 2)).sum() / pairs)


def fpr_at_tpr(known: NDArray[np.int64], unknown: NDArray[np.int64], tpr: float = 0.95) -> float | None:
    """False positive rate: the share of known images at or above the cut that finds `tpr` of the unknown.

    The cut is the highest bin with at least that share of unknown images in it or above. None if there are no
    known or no unknown images.
    """
    if not known.sum() or not unknown.sum():
        return None
    at_or_above = np.cumsum(unknown[::-1])[::-1]
    cut = int(np.flatnonzero(at_or_above >= tpr * unknown.sum())[-1])
    return float(known[cut:].sum() / known.sum())
