"""Likelihood-ratio membership inference, LiRA (Carlini et al. 2022).

The attacker trains shadow models on known parts of its own images. A model gives each image one number, its
fit. The fit is modelled as a Gaussian over models that were trained on the image, and as another one over
models that were not. The online attack compares the target's fit with both Gaussians. The offline attack uses
only models that were not trained on the image: how unusual is such a good fit for them?

fit_N: fits of the target, one per image. fit_MN: fits of M shadow models. inside_MN: whether model M was
trained on image N.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

FEWEST_FOR_OWN_SPREAD = 16
"""With fewer models an image's own variance is too uncertain; all images share one (as in Carlini et al.)."""

LEAST_VARIANCE = 1e-18
"""Avoids a division by zero if all models agree exactly."""

Fits = NDArray[np.float64]
Inside = NDArray[np.bool_]


def shadow_parts(images: int, parts: int, shadows: int, rng: np.random.Generator) -> Inside:
    """inside_MN: every shadow trains on one of `parts` equal parts of the images. The parts are drawn again
    for every `parts` shadows, so that all images are in the same number of models.

    Raises ValueError unless `shadows` is a multiple of `parts` and `parts` is at least 2.
    """
    if parts < 2 or shadows < parts or shadows % parts:
        raise ValueError(f"expected shadows in multiples of {parts} parts (2 or more), found {shadows}")
    inside_MN = np.zeros((shadows, images), bool)
    for first in range(0, shadows, parts):
        for number, part in enumerate(np.array_split(rng.permutation(images), parts)):
            inside_MN[first + number, part] = True
    return inside_MN


def online(fit_N: Fits, fit_MN: Fits, inside_MN: Inside) -> Fits:
    """score_N: log-likelihood of the target's fit under models trained on the image, minus that under others.

    Raises ValueError if no model, or every model, was trained on an image.
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
    """score_N: the target's fit above the mean of models not trained on the image, in standard deviations.

    Raises ValueError if every model was trained on an image.
    """
    outside = gaussians(fit_MN, ~inside_MN)
    spread_N = shared_spread(outside) if outside.few else outside.spread
    return (fit_N - outside.mean_N) / spread_N


@dataclass(frozen=True)
class Gaussians:
    """For every image, over some models: mean fit, sum of squared differences from it, number of models."""

    mean_N: Fits
    square_N: Fits
    models_N: NDArray[np.int64]

    @property
    def few(self) -> bool:
        """Whether an image's own variance is too uncertain."""
        return int(self.models_N.min()) < FEWEST_FOR_OWN_SPREAD

    @property
    def spread(self) -> Fits:
        """Each image's own standard deviation."""
        return np.sqrt(np.maximum(self.square_N / (self.models_N - 1), LEAST_VARIANCE))


def shared_spread(*groups: Gaussians) -> Fits:
    """One standard deviation for all images, over all groups of models; 1 if no image has two models."""
    free = sum(int(np.maximum(group.models_N - 1, 0).sum()) for group in groups)
    square = sum(float(group.square_N.sum()) for group in groups)
    spread = np.sqrt(max(square / free, LEAST_VARIANCE)) if free else 1.0
    return np.full(len(groups[0].mean_N), spread, np.float64)


def gaussians(fit_MN: Fits, counts_MN: Inside) -> Gaussians:
    """Statistics over the models that count for each image. Raises ValueError if an image has none."""
    models_N = counts_MN.sum(0)
    if (models_N == 0).any():
        raise ValueError(f"{int((models_N == 0).sum())} images have no shadow model to compare with")
    mean_N = np.where(counts_MN, fit_MN, 0).sum(0) / models_N
    return Gaussians(mean_N, np.square(np.where(counts_MN, fit_MN - mean_N, 0)).sum(0), models_N)
