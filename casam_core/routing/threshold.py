"""The threshold tau of a task: the highest score at which an image is still routed to it.

K-fold: a router is fitted without one fold and scores that fold. tau is a high percentile of the held-out
scores of all folds together (CA-SAM: K = 5, seed 2025, 97th percentile).

With few images, this percentile is too low, and many new images of the same task become unknown. `margin`
therefore extends the distance from the median to the percentile (0: the paper's threshold).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from casam_core.config.named_parts import RouterSpec
from casam_core.errors import DataError
from casam_core.routing.routers.base import Arrays, Router
from casam_core.seeding import derive_seed

FOLD_SEED = 2025
HISTOGRAM_BINS = 4096
HISTOGRAM_RANGE = 16.0
"""Bins have equal width in asinh(score): about 0.8 % of large scores, up to |score| = 4 million."""


def fold_indices(count: int, folds: int) -> list[NDArray[np.int64]]:
    """Held-out indices per fold: a seeded permutation in equal parts, as in the authors' code.

    With fewer images than folds, the last folds are empty. So every holder of a task has the same number of
    folds, and fold k of all holders can be merged. Raises DataError for fewer than two images.
    """
    if count < 2:
        raise DataError(
            f"a threshold needs at least 2 training images, found {count}; add images to the task"
        )
    order = np.random.RandomState(FOLD_SEED).permutation(count)
    return [part.astype(np.int64) for part in np.array_split(order, folds)]


def fold_statistics(router: Router, f_NF: Tensor, spec: RouterSpec, seed: int) -> list[Arrays]:
    """Sufficient statistics per fold, each of all images except those of the fold.

    seed: divides the images.
    """
    everything = np.arange(len(f_NF))
    return [
        router.sufficient_statistics(f_NF[np.setdiff1d(everything, held_out)], derive_seed(seed, "fold", k))
        for k, held_out in enumerate(fold_indices(len(f_NF), spec.folds))
    ]


def held_out_scores(
    router: Router, f_NF: Tensor, states: Sequence[Arrays], folds: int
) -> NDArray[np.float64]:
    """scores_N: every image is scored once, by the state that was fitted without it.

    states: one per fold. Raises DataError if a score is NaN, because no threshold follows from it.
    """
    scores = fold_scores(router, f_NF, states, folds)
    if unusable := int(np.isnan(scores).sum()):
        raise DataError(f"{unusable} of {len(scores)} held-out scores are NaN; check the task's images")
    return scores


def fold_scores(router: Router, f_NF: Tensor, states: Sequence[Arrays], folds: int) -> NDArray[np.float64]:
    """held_out_scores without the check for NaN: in private training an error would reveal something."""
    scores = np.empty(len(f_NF))
    for state, held_out in zip(states, fold_indices(len(f_NF), folds), strict=True):
        for i in held_out:
            scores[i] = router.score(f_NF[i], state)
    return scores


def learn_alone(router: Router, f_NF: Tensor, spec: RouterSpec, seed: int) -> tuple[Arrays, float]:
    """(state, threshold) of an institution that is the only holder of its task. Raises DataError."""
    state, scores_N = learn_and_score(router, f_NF, spec, seed)
    return state, choose_threshold(scores_N, spec)


def learn_and_score(
    router: Router, f_NF: Tensor, spec: RouterSpec, seed: int
) -> tuple[Arrays, NDArray[np.float64]]:
    """(state of all images, held-out scores_N of each). Raises DataError."""
    states = [router.fit(fold) for fold in fold_statistics(router, f_NF, spec, seed)]
    scores_N = held_out_scores(router, f_NF, states, spec.folds)
    return router.fit(router.sufficient_statistics(f_NF, seed)), scores_N


def choose_threshold(scores_N: NDArray[np.float64], spec: RouterSpec) -> float:
    """tau from held-out scores."""
    return widened(float(np.median(scores_N)), float(np.percentile(scores_N, spec.percentile)), spec.margin)


def histogram_threshold(counts: NDArray[np.int64], spec: RouterSpec) -> float:
    """tau from a histogram of several holders' held-out scores, exact to one bin."""
    middle = min(50.0, spec.percentile)
    return widened(
        histogram_percentile(counts, middle), histogram_percentile(counts, spec.percentile), spec.margin
    )


def widened(middle: float, high: float, margin: float) -> float:
    """`high` plus `margin` times its distance from `middle`; never less than `high`.

    >>> widened(middle=1.0, high=3.0, margin=1.5)
    6.0
    """
    return high + margin * max(high - middle, 0.0)


def score_histogram(scores_N: NDArray[np.float64]) -> NDArray[np.int64]:
    """Counts over HISTOGRAM_BINS fixed bins; scores outside the range count in the outer bins."""
    position = (np.arcsinh(scores_N) / HISTOGRAM_RANGE + 1) / 2 * HISTOGRAM_BINS
    index = np.clip(position, 0, HISTOGRAM_BINS - 1).astype(np.int64)
    return np.bincount(index, minlength=HISTOGRAM_BINS).astype(np.int64)


def histogram_percentile(counts: NDArray[np.int64], percentile: float) -> float:
    """The upper edge of the first bin up to which at least `percentile` percent of the scores lie."""
    reached = np.searchsorted(np.cumsum(counts), percentile / 100 * counts.sum())
    edge = (min(int(reached), HISTOGRAM_BINS - 1) + 1) / HISTOGRAM_BINS * 2 - 1
    return float(np.sinh(edge * HISTOGRAM_RANGE))
