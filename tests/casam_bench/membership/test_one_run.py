"""The one-run audit: the paper's figures, every outcome of small mechanisms, and how often it errs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.stats import binom

from casam_bench.membership.one_run import Plan, audit, epsilon_at_least, p_value, plan_from


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "epsilon"),
    [
        # Steinke, Nasr and Jagielski 2023, appendix D, and section 7 (printed there as 2.675).
        (100, 100, 75, 0.0, 0.702),
        (100, 100, 75, 1e-4, 0.699),
        (1000, 100, 75, 1e-4, 0.673),
        (100_000, 1510, 1439, 1e-5, 2.676),
    ],
)
def test_the_papers_bounds(canaries: int, guesses: int, correct: int, delta: float, epsilon: float) -> None:
    assert epsilon_at_least(canaries, guesses, correct, delta) == pytest.approx(epsilon, abs=6e-4)


def outcomes(canaries: int, epsilon: float, delta: float) -> Iterator[tuple[float, tuple[bool, ...]]]:
    """(probability, which guesses are right) of a mechanism that meets (epsilon, delta) with equality.

    For each canary on its own, it answers the coin itself with probability delta, else by randomised
    response. The auditor repeats the answers.
    """
    right = delta + (1 - delta) / (1 + math.exp(-epsilon))
    for guesses in itertools.product((True, False), repeat=canaries):
        yield math.prod(right if guess else 1 - right for guess in guesses), guesses


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("delta", [0.0, 0.003, 0.05])
def test_the_p_value_covers_every_outcome_of_a_mechanism_as_bad_as_its_claim(
    epsilon: float, delta: float
) -> None:
    canaries = 8
    for correct in range(canaries + 1):
        truth = sum(p for p, right in outcomes(canaries, epsilon, delta) if sum(right) >= correct)
        bound = p_value(canaries, canaries, correct, epsilon, delta)
        assert bound >= truth - 1e-12
        if not delta:
            assert bound == pytest.approx(truth)


@pytest.mark.parametrize("revealed", [0.02, 0.2])
def test_delta_counts_for_canaries_without_a_guess(revealed: float) -> None:
    # With probability `revealed`, the auditor learns the coins of all canaries that it guesses. Each canary
    # is then as private as delta = revealed allows, and the bound must not refute this.
    for guesses in (1, 4, 20):
        truth = revealed + (1 - revealed) * binom.sf(guesses - 1, guesses, 0.5)
        assert p_value(100, guesses, guesses, 0.0, revealed) >= truth


def test_the_slope_is_the_largest_over_all_numbers_of_guesses() -> None:
    # By the definition, term by term; the module leaves out terms far below the mean.
    for canaries, guesses, correct, epsilon in [(500, 200, 150, 0.4), (500, 200, 199, 0.1), (90, 30, 3, 1.0)]:
        chance = 1 / (1 + math.exp(-epsilon))
        slope = max(
            sum(binom.pmf(k, guesses, chance) for k in range(correct - i, correct)) / i
            for i in range(1, correct + 1)
        )
        expected = min(1.0, binom.sf(correct - 1, guesses, chance) + 2 * canaries * 1e-4 * slope)
        assert p_value(canaries, guesses, correct, epsilon, 1e-4) == pytest.approx(expected, rel=1e-9)


def test_more_correct_guesses_prove_more_and_delta_proves_less() -> None:
    bounds = [epsilon_at_least(1000, 200, correct, 1e-5) for correct in range(100, 201, 20)]
    assert bounds == sorted(bounds)
    assert bounds[0] == 0.0  # half of the guesses right is guessing
    assert epsilon_at_least(1000, 200, 180, 1e-3) < epsilon_at_least(1000, 200, 180, 1e-5)


def test_the_bound_is_above_the_truth_in_five_per_cent_of_audits_at_most() -> None:
    epsilon, canaries, audits = 1.0, 500, 2000
    correct = np.random.default_rng(0).binomial(canaries, 1 / (1 + math.exp(-epsilon)), audits)
    above = sum(epsilon_at_least(canaries, canaries, int(found), 0.0) > epsilon for found in correct)
    assert above / audits <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / audits)
    assert above > 0.01 * audits  # and it is not much too careful


def test_guesses_are_counted_at_both_ends() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.2, 0.8, 0.7])
    inside = np.array([False, True, True, True, False, True])
    # Lowest two: 0.1 (out, right), 0.2 (in, wrong). Highest three: 0.9 right, 0.8 wrong, 0.7 right.
    found = audit(scores, inside, Plan(highest=3, lowest=2), 0.0)
    assert (found.guesses, found.correct) == (5, 3)


def test_scores_that_cannot_be_ranked_are_refused() -> None:
    coins = np.array([True, False])
    with pytest.raises(ValueError, match="1 scores are not numbers"):
        audit(np.array([0.0, np.nan]), coins, Plan(1, 0), 0.0)
    with pytest.raises(ValueError, match="at most 2 guesses"):
        audit(np.zeros(2), coins, Plan(2, 1), 0.0)
    with pytest.raises(ValueError, match="expected correct <= guesses <= canaries"):
        p_value(10, 11, 3, 1.0, 0.0)


def test_a_plan_abstains_where_scores_say_little() -> None:
    rng = np.random.default_rng(0)
    canaries = 5000

    def rehearsal(separation: float) -> tuple[np.ndarray, np.ndarray]:
        coins = rng.random(canaries) < 0.5
        return separation * coins + rng.standard_normal(canaries), coins

    weak = plan_from([rehearsal(0.5) for _ in range(4)], 1e-5)
    strong = plan_from([rehearsal(8.0) for _ in range(4)], 1e-5)
    assert weak.guesses <= 1000 < strong.guesses
