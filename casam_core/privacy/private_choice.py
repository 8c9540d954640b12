"""Choices with differential privacy: the exponential mechanism (McSherry and Talwar 2007).

Each unit gives every answer a vote between -1 and 1. Votes are rounded toward zero to whole steps and added
as integers, so that sums are exact. An answer is drawn with a probability proportional to

    prior * exp(epsilon / 2 * sum of its votes).

One unit more or less changes each sum by at most 1, so the logarithms of the probabilities change within a
range of width epsilon (casam_core.privacy.accounting.choice_epsilon counts it).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from casam_core.privacy.accounting import choice_epsilon
from casam_core.privacy.noise import NoiseSource

STEPS = 1 << 20
"""Steps of a vote from 0 to 1."""


def votes_of(row_J: NDArray[np.float64]) -> NDArray[np.int64]:
    """One unit's votes in steps; a vote that is not finite becomes -1: an error would reveal it."""
    finite_J = np.where(np.isfinite(row_J), row_J, -1.0)
    votes_J: NDArray[np.int64] = np.trunc(np.clip(finite_J, -1, 1) * STEPS).astype(np.int64)
    return votes_J


def choose(
    rows_UJ: Iterable[NDArray[np.float64]],
    prior_J: NDArray[np.float64],
    noise_multiplier: float,
    noise: NoiseSource,
) -> int:
    """The number of the chosen answer.

    Args:
        rows_UJ: the votes of each unit; there may be no unit at all.
        prior_J: positive weights of the answers; public.
        noise_multiplier: of the Gaussian mechanism that the choice counts as.
    """
    total_J = np.zeros(len(prior_J), np.int64)
    for row_J in rows_UJ:
        total_J += votes_of(row_J)
    return noise.chosen(total_J, STEPS, np.log(prior_J), choice_epsilon(noise_multiplier))
