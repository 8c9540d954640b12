"""The routing decision: the entry to use for an image, or none (frozen SAM).

The margin of an image is its score under the nearest task minus that task's threshold: below zero it is
routed, above zero it is unknown. Institutions release histograms of margins over fixed bins. So the
separation of known and unknown images can be measured over all institutions without their individual scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IDENTITY = "identity"
"""The route of an unknown image: its embedding goes unchanged to the decoder."""


@dataclass(frozen=True)
class Route:
    """task: the chosen task; None for identity. nearest, score: the lowest score and its task."""

    task: str | None
    nearest: str | None
    score: float | None

    @property
    def name(self) -> str:
        """The task's name, or `identity`."""
        return self.task if self.task is not None else IDENTITY


def decide(tasks: Sequence[str], scores: Sequence[float], thresholds: Sequence[float]) -> Route:
    """Choose the task with the lowest score; above that task's threshold the image is unknown (CA-SAM).

    Of equal scores, the task that was learned first wins. NaN is ignored. Without any valid score, the image
    is unknown.

    >>> decide(["polyp", "nuclei"], scores=[0.4, 0.1], thresholds=[0.5, 0.2]).name
    'nuclei'
    >>> unknown = decide(["polyp", "nuclei"], scores=[0.4, 0.3], thresholds=[0.5, 0.2])
    >>> unknown.name, unknown.nearest
    ('identity', 'nuclei')
    """
    comparable = [i for i in range(len(tasks)) if not math.isnan(scores[i])]
    if not comparable:
        return Route(task=None, nearest=None, score=None)
    best = min(comparable, key=lambda i: scores[i])
    known = scores[best] <= thresholds[best]
    return Route(task=tasks[best] if known else None, nearest=tasks[best], score=scores[best])


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
