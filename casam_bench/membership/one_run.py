"""The one-run privacy audit: a lower bound of epsilon from canaries (Steinke, Nasr and Jagielski 2023).

Each canary takes part or not, by a fair coin of its own. The attacker gives every canary a score from what
was released. It guesses "in" for the highest scores and "out" for the lowest, and abstains from the rest. If
the mechanism is private for each canary, the number of correct guesses is limited; so many correct guesses
refute the claim. No independence of the canaries is assumed, and they may all take part in the same run.

The limit is that of f-differential privacy (Mahloujifar, Melis and Chaudhuri 2024, "Auditing f-differential
privacy in one run"). An accountant claims a whole curve: an epsilon for every delta. The more points of the
curve the audit knows, the more it proves; a single point gives a bound without any other assumption.

The numbers of guesses are fixed before the scores are seen: a rehearsal with other coins chooses them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
SHARES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.002, 0.001)
"""The shares of the canaries for which a rehearsal tries guesses."""
FEWEST_GUESSES = 50

LEAST_LOSS = 0.01
"""The smallest loss that is tried."""

Curve = Sequence[tuple[float, float]]
"""Points (epsilon >= 0, delta) at which a mechanism is private."""
CurveOf = Callable[[float], Curve]
"""Loss > 0 -> the curve of a mechanism with this loss. A larger loss is less private."""
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


def correct_of(scores_N: Scores, inside_N: Coins, plan: Plan) -> int:
    """How many guesses are right.

    Args:
        scores_N: of every canary; a higher score looks more like one that took part.
        inside_N: the coins.
        plan: chosen without these scores and coins.

    Raises:
        ValueError: a score is NaN, or the plan has more guesses than there are canaries.
    """
    if np.isnan(scores_N).any():
        raise ValueError(f"{int(np.isnan(scores_N).sum())} scores are not numbers")
    if plan.guesses > len(scores_N):
        raise ValueError(f"expected at most {len(scores_N)} guesses, one per canary; found {plan.guesses}")
    return correct_guesses(inside_N[np.argsort(scores_N, kind="stable")], plan)


def correct_guesses(ranked_N: Coins, plan: Plan) -> int:
    """The same. ranked_N: the coins, from the lowest score to the highest."""
    right = (~ranked_N[: plan.lowest]).sum() + ranked_N[len(ranked_N) - plan.highest :].sum()
    return int(right)


def plan_from(rehearsals: Iterable[tuple[Scores, Coins]], curve_of: CurveOf) -> Plan:
    """The plan that refutes most at its mean number of correct guesses over rehearsals.

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
        return most_refuted(canaries, plan.guesses, int(correct), curve_of, precision=0.03)

    return max(plans, key=expected)


def impossible(canaries: int, guesses: int, correct: int, curve: Curve, chance: float) -> bool:
    """Whether so many correct guesses, or more, cannot have this chance under a privacy curve.

    Let p_j be the probability of exactly j correct guesses, r_i the sum of j p_j / m over j >= i, and h_i the
    sum of (g - j) p_j / m, for m canaries and g guesses. Turn the coin of one canary that is guessed right:
    its guess becomes wrong, and the other guesses stay. Averaged over canaries and coins, each (epsilon,
    delta) of the curve gives r_(i+1) <= e^epsilon h_i + delta and 1 - h_i <= e^epsilon (1 - r_(i+1)) + delta.
    The least total probability under these limits has all of `chance` at exactly `correct`; from there it
    follows downwards for each smaller number. If it exceeds 1, the chance is impossible.

    Raises:
        ValueError: not 0 <= correct <= guesses <= canaries.

    >>> impossible(100, 100, 75, curve=[(0.0, 0.0)], chance=0.05)
    True
    >>> impossible(100, 100, 75, curve=[(1.0, 0.0)], chance=0.05)
    False
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(
            f"expected correct <= guesses <= canaries, found {correct}, {guesses} and {canaries}"
        )
    limits = limits_of(curve)
    slope, offset = next(limits)
    following = next(limits, None)
    total = chance
    right = chance * correct / canaries
    wrong = chance * (guesses - correct) / canaries
    for fewer in range(correct - 1, -1, -1):
        # `right` only grows, so the tightest limit only moves on to steeper ones.
        while following is not None and following[0] * right + following[1] >= slope * right + offset:
            (slope, offset), following = following, next(limits, None)
        least = max(wrong, slope * right + offset)
        exactly = (least - wrong) * canaries / (guesses - fewer)
        total += exactly
        if total > 1:
            return True
        right += exactly * fewer / canaries
        wrong = least
    return False


def limits_of(curve: Curve) -> Iterator[tuple[float, float]]:
    """(slope, offset) of the lower limits of h_i as lines over r_(i+1), from flat to steep."""
    lines = []
    for epsilon, delta in curve:
        odds = math.exp(epsilon)
        lines += [(1 / odds, -delta / odds), (odds, 1 - delta - odds)]
    return iter(sorted(lines))


def most_refuted(
    canaries: int, guesses: int, correct: int, curve_of: CurveOf, precision: float = 1e-3
) -> float:
    """The largest loss that so many correct guesses refute at 95 %; 0 if they refute none.

    precision: relative. With one point (epsilon, delta) for each epsilon, it is a lower bound of epsilon:

    >>> round(most_refuted(1000, 100, 75, lambda epsilon: [(epsilon, 1e-4)]), 3)
    0.68
    """

    def refuted(loss: float) -> bool:
        return impossible(canaries, guesses, correct, curve_of(loss), 1 - CONFIDENCE)

    low, high = LEAST_LOSS, 1.0
    if not refuted(low):
        return 0.0
    while refuted(high):
        low, high = high, 2 * high
    while high - low > precision * high:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
