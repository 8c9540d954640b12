"""The exponential mechanism: its probabilities, and what one unit's votes can do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from casam_core.privacy.accounting import choice_epsilon
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.private_choice import STEPS, choose, votes_of


def test_answers_are_drawn_with_the_probabilities_of_the_mechanism() -> None:
    """Two units, prior 1/2, 1/4, 1/4: weights 1/2, 1/4 exp(epsilon / 2 * 1.5), 1/4 exp(-epsilon / 2)."""
    rows = [np.array([0.0, 1.0, -0.5]), np.array([0.0, 0.5, -0.5])]
    noise, epsilon = NoiseSource.seeded(0, "choices"), choice_epsilon(2.0)
    prior = np.array([0.5, 0.25, 0.25])
    drawn = np.bincount([choose(rows, prior, 2.0, noise) for _ in range(4000)], minlength=3) / 4000
    weights = np.array([0.5, 0.25 * math.exp(epsilon * 0.75), 0.25 * math.exp(-epsilon / 2)])
    assert drawn == pytest.approx(weights / weights.sum(), abs=0.03)


def test_a_vote_has_a_limit_and_is_rounded_toward_zero() -> None:
    votes = votes_of(np.array([0.0, 7.0, -7.0, 0.3, -0.3, np.nan, np.inf]))
    assert votes.tolist() == [0, STEPS, -STEPS, int(0.3 * STEPS), -int(0.3 * STEPS), -STEPS, -STEPS]


def test_without_units_the_prior_decides() -> None:
    noise = NoiseSource.seeded(1)
    drawn = [choose([], np.array([0.9, 0.1]), 1.0, noise) for _ in range(1000)]
    assert np.mean(drawn) == pytest.approx(0.1, abs=0.03)


def test_with_little_noise_the_best_answer_wins() -> None:
    rows = [np.array([0.0, 0.4, 0.5])] * 10
    assert {choose(rows, np.ones(3), 0.02, NoiseSource.seeded(seed)) for seed in range(20)} == {2}
