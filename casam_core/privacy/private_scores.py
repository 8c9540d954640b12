"""How a task's own images score, in two noisy numbers: what its threshold is made of under privacy.

A score lies between its floor (what the best image imaginable scores) and what public images score. On an
asinh scale from 0 to 1 between the two, each unit adds (x, x^2) to one sum, where x is the mean over its
images. A normal distribution of that mean and spread stands for the scores from there on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from casam_core.privacy.accounting import Mechanism
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.units import unit_means

WIDEST_SCORES = 0.5
"""Quantile of public images' scores that counts as 1: what scores worse is unknown anyway."""
NARROWEST = 0.02
"""Least spread of x: noise may make it less than nothing."""


def scores_mechanism(noise_multiplier: float) -> Mechanism:
    """What the two numbers cost."""
    return Mechanism(noise_multiplier)


def describe_scores(
    scores_N: NDArray[np.float64],
    units: Sequence[Sequence[int]],
    public_scores_N: NDArray[np.float64],
    floor: float,
    noise_multiplier: float,
    noise: NoiseSource,
) -> NDArray[np.float64]:
    """(mean, standard deviation) of asinh(score - floor), noisy; costs `scores_mechanism`.

    floor: public. Each unit's row (x, x^2) has an L2 norm of at most sqrt(2).
    """
    widest = max(float(np.arcsinh(np.quantile(public_scores_N, WIDEST_SCORES) - floor)), 1e-9)
    x_U = np.clip(unit_means(np.arcsinh(scores_N - floor)[:, None], units)[:, 0] / widest, 0, 1)
    x_U = np.where(np.isfinite(x_U), x_U, 1.0)
    rows = np.column_stack([x_U, x_U**2])
    noisy = (rows.sum(0) + noise_multiplier * np.sqrt(2) * noise.normal(2)) / len(units)
    mean = float(np.clip(noisy[0], 0, 1))
    spread = float(np.sqrt(np.clip(noisy[1] - mean**2, NARROWEST**2, 0.25)))
    return np.array([mean * widest, spread * widest])


def scores_like(described: NDArray[np.float64], floor: float, count: int, seed: int) -> NDArray[np.float64]:
    """Scores drawn from what was described: stand-ins for images that may not be scored again."""
    mean, spread = described
    drawn: NDArray[np.float64] = np.sinh(mean + spread * np.random.default_rng(seed).standard_normal(count))
    return floor + drawn
