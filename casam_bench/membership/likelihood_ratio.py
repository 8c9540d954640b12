"""Likelihood-ratio membership inference, LiRA (Carlini et al. 2022).

Whoever holds such images trains shadow models of their own, on known parts of them. What a model makes of
an image (one number, here called its fit) is Gaussian over models that were trained on the image, and
Gaussian over models that were not; the target's fit is compared with both. Without models that saw the
image (offline), it is compared with the others alone: how unusual is it to fit so well without having seen
it?

fit_N: of the target, one image each. fit_MN: of M shadow models. inside_MN: who was trained on what.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

FEWEST_FOR_OWN_SPREAD = 16
"""With fewer models an image's own variance is too unsure, and all images share one (Carlini et al., too)."""

LEAST_VARIANCE = 1e-18
"""Models that agree to the last bit must not divide by nothing."""

Fits = NDArray[np.float64]
Inside = NDArray[np.bool_]


def shadow_parts(images: int, parts: int, shadows: int, rng: np.random.Generator) -> Inside:
    """inside_MN: every shadow trains on one of `parts` equal parts of the images, drawn anew for every
    `parts` shadows, so that each image is inside of as many models as every other.

    Raises ValueError unless `shadows` is a multiple of `parts` and there are two parts at least.
    """
    if parts < 2 or shadows < parts or shadows % parts:
        raise ValueError(f"expected shadows in multiples of {parts} parts (2 or more), found {shadows}")
    inside_MN = np.zeros((shadows, images), bool)
    for first in range(0, shadows, parts):
        for number, part in enumerate(np.array_split(rng.permutation(images), parts)):
            inside_MN[first + number, part] = True
    return inside_MN


def online(fit_N: Fits, fit_MN: Fits, inside_MN: Inside) -> Fits:
    """score_N: log-likelihood of the target's fit among models that saw the image, less among the others.

    Raises ValueError for an image that no model, or every model, was trained on.
    """
    inside, outside = gaussians(fit_MN, inside_MN), gaussians(fit_MN, ~inside_MN)
    if inside.few or outside.few:
        spread_in = spread_out = shared_spread(inside, outside)
    else:
        spread_in, spread_out = inside.spread, outside.spread
    score_N: Fits = norm.logpdf(fit_N, inside.mean_N, spread_in)
    score_N = score_N - norm.logpdf(fit_N, outside.mean_N, spread_out)
    return score_N


def offline(fit_N: Fits, fit_MN: Fits, inside_MN: Inside) -> Fits:
    """score_N: how many standard deviations better than models that never saw the image.

    Raises ValueError for an image that every model was trained on.
    """
    outside = gaussians(fit_MN, ~inside_MN)
    spread_N = shared_spread(outside) if outside.few else outside.spread
    return (fit_N - outside.mean_N) / spread_N


@dataclass(frozen=True)
class Gaussians:
    """Of every image's fits over some models: mean, sum of squared differences from it, number of models."""

    mean_N: Fits
    square_N: Fits
    models_N: NDArray[np.int64]

    @property
    def few(self) -> bool:
        """Whether an image's own variance is too unsure."""
        return int(self.models_N.min()) < FEWEST_FOR_OWN_SPREAD

    @property
    def spread(self) -> Fits:
        """Each image's own standard deviation."""
        return np.sqrt(np.maximum(self.square_N / (self.models_N - 1), LEAST_VARIANCE))


def shared_spread(*groups: Gaussians) -> Fits:
    """One standard deviation for all images, over all groups of models; 1 where no image has two models."""
    free = sum(int(np.maximum(group.models_N - 1, 0).sum()) for group in groups)
    square = sum(float(group.square_N.sum()) for group in groups)
    spread = np.sqrt(max(square / free, LEAST_VARIANCE)) if free else 1.0
    return np.full(len(groups[0].mean_N), spread, np.float64)


def gaussians(fit_MN: Fits, counts_MN: Inside) -> Gaussians:
    """Over the models that count for an image. Raises ValueError where none does."""
    models_N = counts_MN.sum(0)
    if (models_N == 0).any():
        raise ValueError(f"{int((models_N == 0).sum())} images have no shadow model to compare with")
    mean_N = np.where(counts_MN, fit_MN, 0).sum(0) / models_N
    return Gaussians(mean_N, np.square(np.where(counts_MN, fit_MN - mean_N, 0)).sum(0), models_N)
