"""The scores of a task's images in two noisy numbers, from which a private threshold is computed.

A score lies between its floor (the lowest possible score) and the scores of public images. Between the two,
on an asinh scale from 0 to 1, each unit adds (x, x^2) to one sum; x is the mean over its images. A normal
distribution with the resulting mean and standard deviation then replaces the scores.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from casam_core.privacy.accounting import Mechanism
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.private_sum import PrivateSum
from casam_core.privacy.units import Unit, Units

WIDEST_SCORES = 0.5
"""The quantile of public images' scores that maps to x = 1; images with higher scores are unknown anyway."""
NARROWEST = 0.02
"""The smallest standard deviation of x; noise could otherwise make the variance negative."""


def scores_mechanism(noise_multiplier: float) -> Mechanism:
    """The cost of the two numbers."""
    return Mechanism(noise_multiplier)


def describe_scores(
    scores_N: NDArray[np.float64],
    units: Units,
    public_scores_N: NDArray[np.float64],
    floor: float,
    noise_multiplier: float,
    noise: NoiseSource,
) -> NDArray[np.float64]:
    """Noisy (mean, standard deviation) of asinh(score - floor); the cost is `scores_mechanism`.

    floor: public. Each unit's row (x, x^2) has an L2 norm of at most sqrt(2).
    """
    widest = max(float(np.arcsinh(np.quantile(public_scores_N, WIDEST_SCORES) - floor)), 1e-9)

    def row_of(unit: Unit) -> NDArray[np.float64]:
        x = float(np.arcsinh(scores_N[list(unit.images)] - floor).mean() / widest)
        x = min(max(x, 0.0), 1.0) if not math.isnan(x) else 1.0
        return np.array([x, x**2])

    total = PrivateSum(math.sqrt(2), noise_multiplier)
    noisy = total.release(map(row_of, units), 2, noise) / units.count
    mean = float(np.clip(noisy[0], 0, 1))
    spread = float(np.sqrt(np.clip(noisy[1] - mean**2, NARROWEST**2, 0.25)))
    return np.array([mean * widest, spread * widest])


def scores_like(described: NDArray[np.float64], floor: float, count: int, seed: int) -> NDArray[np.float64]:
    """Scores drawn from the described distribution; they replace the scores of the private images.

    floor: as in `describe_scores`. count: how many.
    """
    mean, spread = described
    drawn: NDArray[np.float64] = np.sinh(mean + spread * np.random.default_rng(seed).standard_normal(count))
    return floor + drawn
