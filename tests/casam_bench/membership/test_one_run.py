"""The one-run audit: the papers' limits, every outcome of small mechanisms, and how often it errs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.stats import binom, norm

from casam_bench.membership.one_run import (
    Curve,
    CurveOf,
    Plan,
    correct_of,
    impossible,
    most_refuted,
    plan_from,
)
from casam_bench.membership.privacy_curve import EPSILON_ERROR, curve_of, exact_epsilon
from casam_core.privacy.accounting import Mechanism, epsilon_of


def point(delta: float) -> CurveOf:
    """One (epsilon, delta), so that `most_refuted` is a lower bound of epsilon."""
    return lambda epsilon: [(epsilon, delta)]


def test_without_delta_about_as_much_is_proved_as_by_the_first_paper_and_with_it_more() -> None:
    # Steinke, Nasr and Jagielski 2023, appendix D and section 7: 0.702, and 2.675 with delta.
    assert most_refuted(100, 100, 75, point(0.0)) == pytest.approx(0.702, rel=0.03)
    assert most_refuted(100_000, 1510, 1439, point(1e-5)) == pytest.approx(2.794, rel=2e-3)


def largest_chance(canaries: int, guesses: int, correct: int, curve: Curve) -> float:
    """The largest chance of so many correct guesses: a linear program over their distribution."""
    j = np.arange(guesses + 1)
    rows, limits = [], []
    for i in range(guesses):
        right, wrong = (j > i) * j / canaries, (j >= i) * (guesses - j) / canaries
        for epsilon, delta in curve:
            odds = math.exp(epsilon)
            rows += [right - odds * wrong, odds * right - wrong]
            limits += [delta, odds - 1 + delta]
    found = linprog(-1.0 * (j >= correct), A_ub=rows, b_ub=limits, A_eq=[np.ones(guesses + 1)], b_eq=[1.0])
    return float(-found.fun)


@pytest.mark.parametrize(
    "curve", [[(0.0, 0.1)], [(1.0, 0.0)], [(0.5, 0.01), (2.0, 1e-3)]], ids=["loose", "pure", "two points"]
)
@pytest.mark.parametrize(("canaries", "guesses"), [(12, 12), (40, 9)])
def test_the_largest_chance_is_that_of_a_linear_program(canaries: int, guesses: int, curve: Curve) -> None:
    for correct in range(1, guesses + 1):
        chance = largest_chance(canaries, guesses, correct, curve)
        assert not impossible(canaries, guesses, correct, curve, chance * 0.999)
        assert chance > 0.999 or impossible(canaries, guesses, correct, curve, chance * 1.001)


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
def test_no_outcome_of_a_mechanism_as_bad_as_its_claim_is_called_impossible(
    epsilon: float, delta: float
) -> None:
    canaries = 8
    for correct in range(canaries + 1):
        truth = sum(p for p, right in outcomes(canaries, epsilon, delta) if sum(right) >= correct)
        assert not impossible(canaries, canaries, correct, [(epsilon, delta)], truth * (1 - 1e-9))


@pytest.mark.parametrize("revealed", [0.02, 0.2])
def test_delta_counts_for_canaries_without_a_guess(revealed: float) -> None:
    # With probability `revealed`, the auditor learns the coins of all canaries that it guesses. Each canary
    # is then as private as delta = revealed allows, and the bound must not refute this.
    for guesses in (1, 4, 20):
        truth = revealed + (1 - revealed) * binom.sf(guesses - 1, guesses, 0.5)
        assert not impossible(100, guesses, guesses, [(0.0, revealed)], truth)


def test_a_whole_curve_refutes_more_than_one_of_its_points() -> None:
    def whole(loss: float) -> Curve:
        return curve_of((Mechanism(1 / loss),))

    found = most_refuted(1000, 200, 180, whole)
    for one in (5, 10, 15):
        assert most_refuted(1000, 200, 180, lambda loss, one=one: whole(loss)[one : one + 1]) < found


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_curve_of_one_gaussian_is_the_exact_one(scale: float) -> None:
    # Balle and Wang 2018, theorem 5.
    for epsilon, delta in curve_of((Mechanism(scale),))[:20]:
        e, middle = epsilon - EPSILON_ERROR, 0.5 / scale
        exact = norm.cdf(middle - e * scale) - math.exp(e) * norm.cdf(-middle - e * scale)
        assert delta == pytest.approx(exact, abs=1e-3)


def test_the_exact_epsilon_is_a_little_below_the_accountants() -> None:
    for mechanism in (Mechanism(1.0), Mechanism(1.5, 0.2, 25)):
        claim = epsilon_of([mechanism], 1e-5)
        assert 0.85 * claim < exact_epsilon([mechanism], 1e-5) < claim


def test_more_correct_guesses_prove_more_and_delta_proves_less() -> None:
    bounds = [most_refuted(1000, 200, correct, point(1e-5)) for correct in range(100, 201, 20)]
    assert bounds == sorted(bounds)
    assert bounds[0] == 0.0  # half of the guesses right is guessing
    assert most_refuted(1000, 200, 180, point(1e-3)) < most_refuted(1000, 200, 180, point(1e-5))


def test_the_bound_is_above_the_truth_in_five_per_cent_of_audits_at_most() -> None:
    epsilon, canaries, audits = 1.0, 500, 2000
    correct = np.random.default_rng(0).binomial(canaries, 1 / (1 + math.exp(-epsilon)), audits)
    above = sum(impossible(canaries, canaries, int(found), [(epsilon, 0.0)], 0.05) for found in correct)
    assert above / audits <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / audits)
    assert above > 0.01 * audits  # and it is not much too careful


def test_guesses_are_counted_at_both_ends() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.2, 0.8, 0.7])
    inside = np.array([False, True, True, True, False, True])
    # Lowest two: 0.1 (out, right), 0.2 (in, wrong). Highest three: 0.9 right, 0.8 wrong, 0.7 right.
    assert correct_of(scores, inside, Plan(highest=3, lowest=2)) == 3


def test_scores_that_cannot_be_ranked_are_refused() -> None:
    coins = np.array([True, False])
    with pytest.raises(ValueError, match="1 scores are not numbers"):
        correct_of(np.array([0.0, np.nan]), coins, Plan(1, 0))
    with pytest.raises(ValueError, match="at most 2 guesses"):
        correct_of(np.zeros(2), coins, Plan(2, 1))
    with pytest.raises(ValueError, match="expected correct <= guesses <= canaries"):
        impossible(10, 11, 3, [(1.0, 0.0)], 0.05)


def test_a_plan_abstains_where_scores_say_little() -> None:
    rng = np.random.default_rng(0)
    canaries = 5000

    def rehearsal(separation: float) -> tuple[np.ndarray, np.ndarray]:
        coins = rng.random(canaries) < 0.5
        return separation * coins + rng.standard_normal(canaries), coins

    weak = plan_from([rehearsal(0.5) for _ in range(4)], point(1e-5))
    strong = plan_from([rehearsal(8.0) for _ in range(4)], point(1e-5))
    assert weak.guesses <= 1000 < strong.guesses
