"""Likelihood-ratio membership inference, LiRA (Carlini et al. 2022).

Whoever holds such images trains shadow models of their own, on known parts of them. What a model makes of
an image (one number, here called its fit) is Gaussian over models that were trained on the image, and
Gaussian over models that were not; the target's fit is compared with both. Without models that saw the
image (offline), it is compared with the others alone: how unusual is it to fit so well without having seen
it?

fit_N: of the target, one image each. fit_MN: of M shadow models. inside_MN: who was trained on what.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

FEWEST_FOR_OWN_SPREAD = 16
"""With fewer models an image's own variance is too unsure, and all images share one (Carlini et al., too)."""

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
    mean_in, spread_in = gaussians(fit_MN, inside_MN)
    mean_out, spread_out = gaussians(fit_MN, ~inside_MN)
    likelihood_in = norm.logpdf(fit_N, mean_in, spread_in)
    score_N: Fits = likelihood_in - norm.logpdf(fit_N, mean_out, spread_out)
    return score_N


def offline(fit_N: Fits, fit_MN: Fits, inside_MN: Inside) -> Fits:
    """score_N: how many standard deviations better than models that never saw the image.

    Raises ValueError for an image that every model was trained on.
    """
    mean_out, spread_out = gaussians(fit_MN, ~inside_MN)
    return (fit_N - mean_out) / spread_out


def gaussians(fit_MN: Fits, counts_MN: Inside) -> tuple[Fits, Fits]:
    """(mean_N, spread_N) over the models that count for an image.

    Raises ValueError where none does.
    """
    models_N = counts_MN.sum(0)
    if (models_N == 0).any():
        raise ValueError(f"{int((models_N == 0).sum())} images have no shadow model to compare with")
    mean_N = np.where(counts_MN, fit_MN, 0).sum(0) / models_N
    square_N = np.square(np.where(counts_MN, fit_MN - mean_N, 0)).sum(0)
    if models_N.min() < FEWEST_FOR_OWN_SPREAD:
        free = int(np.maximum(models_N - 1, 0).sum())
        variance_N = np.full(len(models_N), square_N.sum() / free if free else 1.0)
    else:
        variance_N = square_N / (models_N - 1)
    # Models that agree to the last bit must not divide by nothing.
    least = 1e-12 * (1 + np.square(mean_N))
    return mean_N, np.sqrt(np.maximum(variance_N, least))
