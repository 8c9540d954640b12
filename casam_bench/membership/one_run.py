"""The one-run privacy audit: a lower bound of epsilon from canaries (Steinke, Nasr and Jagielski 2023).

Each canary takes part or not, by a fair coin of its own. The attacker gives every canary a score from what
was released. It guesses "in" for the highest scores and "out" for the lowest, and abstains from the rest. If
the mechanism is (epsilon, delta)-DP for each canary, the number of correct guesses is limited: about as if
each were correct with probability e^epsilon / (1 + e^epsilon). So many correct guesses refute an epsilon. No
independence of the canaries is assumed, and they may all take part in the same run.

The numbers of guesses are fixed before the scores are seen: a rehearsal with other coins chooses them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

CONFIDENCE = 0.95
SHARES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.002, 0.001)
"""The shares of the canaries for which a rehearsal tries guesses."""
FEWEST_GUESSES = 50

Scores = NDArray[np.float64]
Coins = NDArray[np.bool_]


@dataclass(frozen=True)
class Plan:
    """How many canaries with the highest scores are guessed "in", and with the lowest scores "out"."""

    highest: int
    lowest: int

    @property
    def guesses(self) -> int:
        """All guesses."""
        return self.highest + self.lowest


@dataclass(frozen=True)
class Audited:
    """The result of an audit. epsilon: the lower bound at 95 %; 0 if nothing is proved."""

    guesses: int
    correct: int
    epsilon: float


def audit(scores_N: Scores, inside_N: Coins, plan: Plan, delta: float) -> Audited:
    """The lower bound of epsilon that these scores prove.

    Args:
        scores_N: of every canary; a higher score looks more like one that took part.
        inside_N: the coins.
        plan: chosen without these scores and coins.
        delta: of the claim.

    Raises:
        ValueError: a score is NaN, or the plan has more guesses than there are canaries.
    """
    canaries = len(scores_N)
    if np.isnan(scores_N).any():
        raise ValueError(f"{int(np.isnan(scores_N).sum())} scores are not numbers")
    if plan.guesses > canaries:
        raise ValueError(f"expected at most {canaries} guesses, one per canary; found {plan.guesses}")
    correct = correct_guesses(inside_N[np.argsort(scores_N, kind="stable")], plan)
    return Audited(plan.guesses, correct, epsilon_at_least(canaries, plan.guesses, correct, delta))


def correct_guesses(ranked_N: Coins, plan: Plan) -> int:
    """How many guesses are right. ranked_N: the coins, from the lowest score to the highest."""
    right = (~ranked_N[: plan.lowest]).sum() + ranked_N[len(ranked_N) - plan.highest :].sum()
    return int(right)


def plan_from(rehearsals: Iterable[tuple[Scores, Coins]], delta: float) -> Plan:
    """The plan with the highest bound at its mean number of correct guesses over rehearsals.

    It tries guesses at both ends, and at the upper end alone: where canaries are sampled, one that took part
    in no step looks like one that is out, so a low score says little.

    rehearsals: scores with their own coins and noise, all of the same number of canaries.
    """
    ranked = [inside_N[np.argsort(scores_N)] for scores_N, inside_N in rehearsals]
    canaries = len(ranked[0])
    counts = sorted({max(round(share * canaries), min(FEWEST_GUESSES, canaries)) for share in SHARES})
    plans = [Plan(count - lowest, lowest) for count in counts for lowest in (count // 2, 0)]

    def expected(plan: Plan) -> float:
        correct = np.mean([correct_guesses(ranked_N, plan) for ranked_N in ranked])
        return epsilon_at_least(canaries, plan.guesses, int(correct), delta)

    return max(plans, key=expected)


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """An upper bound of the probability of so many correct guesses under (epsilon, delta)-DP.

    Theorem 5.2 and Corollary 5.4 of the paper: P[B >= v] + 2 m delta max_i P[v > B >= v - i] / i, where B is
    binomial: r guesses, each correct with probability e^epsilon / (1 + e^epsilon). delta counts for every
    canary, also for those without a guess.

    >>> round(p_value(100, 100, 75, math.log(3), 0.0), 3)
    0.553
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(
            f"expected correct <= guesses <= canaries, found {correct}, {guesses} and {canaries}"
        )
    chance = 1 / (1 + math.exp(-epsilon))
    exact = float(binom.sf(correct - 1, guesses, chance))
    if not delta or not correct:
        return min(1.0, exact)
    # Ten standard deviations below the mean the sum is complete, and only its divisor still grows.
    mean, spread = guesses * chance, math.sqrt(guesses * chance * (1 - chance))
    last = max(0, min(correct - 1, math.floor(mean - 10 * spread)))
    below_I = np.cumsum(binom.pmf(np.arange(correct - 1, last - 1, -1), guesses, chance))
    slope = float((below_I / np.arange(1, len(below_I) + 1)).max())
    return min(1.0, exact + 2 * canaries * delta * slope)


def epsilon_at_least(canaries: int, guesses: int, correct: int, delta: float) -> float:
    """The largest epsilon that so many correct guesses refute at 95 %; 0 if they refute none.

    >>> round(epsilon_at_least(1000, 100, 75, 1e-4), 3)
    0.673
    """

    def refuted(epsilon: float) -> bool:
        return p_value(canaries, guesses, correct, epsilon, delta) < 1 - CONFIDENCE

    low, high = 0.0, 1.0
    if not refuted(low):
        return low
    while refuted(high):
        low, high = high, high + 1
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
