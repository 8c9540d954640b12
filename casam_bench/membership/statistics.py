"""How well an attack separates members from non-members, with confidence bounds.

A higher score means that an image looks more like a member. A claim of (epsilon, delta) differential privacy
limits every such attack: TPR <= e^epsilon FPR + delta (Kairouz et al. 2015). So the rates of an attack give a
lower bound on epsilon, ln((TPR - delta) / FPR); with confidence intervals, a bound that holds at 95 %.

Rates with fewer than LEAST_FALSE_POSITIVES expected false positives are `not measurable`: a single image
would change the figure by a tenth or more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, mannwhitneyu

NOT_MEASURABLE = "not measurable"
LEAST_FALSE_POSITIVES = 10
LEVELS = (0.001, 0.01, 0.05, 0.1)
"""The false positive rates of the figures."""
CONFIDENCE = 0.95

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Bound:
    """The lower bound on epsilon at one false positive rate.

    tpr, fpr: rates at the threshold; the non-members of fpr did not choose the threshold. epsilon: lower
    bound at 95 %; 0 if nothing is proved.
    """

    level: float
    tpr: float
    fpr: float
    epsilon: float


@dataclass(frozen=True)
class AttackFigures:
    """The figures of one attack.

    p_value: probability that guessing reaches this AUC or a higher one (Mann-Whitney test). tpr, bounds: by
    false positive rate; None if it is not measurable. ceiling: the bound of a perfect attack on the same
    number of images; None if no rate is measurable.
    """

    members: int
    non_members: int
    auc: float
    p_value: float
    tpr: dict[float, float | None]
    bounds: dict[float, Bound | None]
    ceiling: float | None

    @property
    def epsilon(self) -> float | None:
        """The highest lower bound; None if no rate is measurable."""
        return max((bound.epsilon for bound in self.bounds.values() if bound is not None), default=None)

    def vacuous(self, epsilon: float) -> bool:
        """Whether even a perfect attack on so few images could not refute a claim of this epsilon."""
        return self.ceiling is None or self.ceiling <= epsilon


def attack_figures(
    members: Scores,
    non_members: Scores,
    *,
    delta: float,
    rng: np.random.Generator,
    levels: Sequence[float] = LEVELS,
) -> AttackFigures:
    """Figures of one attack.

    delta: of the claim; 0 without a claim. rng: divides the non-members into two halves; one chooses
    thresholds, the other measures. levels: false positive rates. Raises ValueError if a side is empty or a
    score is NaN.
    """
    for name, scores in (("members", members), ("non-members", non_members)):
        if len(scores) == 0:
            raise ValueError(f"expected scores of {name}, found none")
        if np.isnan(scores).any():
            raise ValueError(f"{int(np.isnan(scores).sum())} scores of {name} are not numbers")
    order = rng.permutation(len(non_members))
    chooses, measures = np.array_split(non_members[order], 2)
    bounds = {level: bound_at(members, chooses, measures, level, delta) for level in levels}
    perfect = epsilon_lower_bound(len(members), len(members), 0, max(len(measures), 1), delta)
    return AttackFigures(
        members=len(members),
        non_members=len(non_members),
        auc=auc(members, non_members),
        p_value=float(mannwhitneyu(members, non_members, alternative="greater").pvalue),
        tpr={level: tpr_at(members, non_members, level) for level in levels},
        bounds=bounds,
        ceiling=perfect if any(bound is not None for bound in bounds.values()) else None,
    )


def auc(members: Scores, non_members: Scores) -> float:
    """Probability that a member has a higher score than a non-member; a tie counts half."""
    pairs = len(members) * len(non_members)
    return float(mannwhitneyu(members, non_members, method="asymptotic").statistic / pairs)


def measurable(non_members: int, level: float) -> bool:
    """Whether this number of non-members gives enough false positives at this rate."""
    return allowed(non_members, level) >= LEAST_FALSE_POSITIVES


def allowed(non_members: int, level: float) -> int:
    """False positives at this rate; the small addition corrects rounding, so that 0.01 of 1000 is 10."""
    return math.floor(level * non_members + 1e-9)


def threshold_at(non_members: Scores, level: float) -> float:
    """The lowest threshold with at most the share `level` of the non-members above it."""
    return float(np.sort(non_members)[::-1][allowed(len(non_members), level)])


def tpr_at(members: Scores, non_members: Scores, level: float) -> float | None:
    """Share of members above the threshold at this false positive rate; None if it is not measurable."""
    if not measurable(len(non_members), level):
        return None
    return float(np.mean(members > threshold_at(non_members, level)))


def bound_at(members: Scores, chooses: Scores, measures: Scores, level: float, delta: float) -> Bound | None:
    """The bound at a threshold from the non-members `chooses`, measured on `members` and `measures`.

    A confidence interval needs a threshold that is fixed before the measurement, so the two groups of
    non-members are different. None if `measures` are too few.
    """
    if not measurable(len(measures), level):
        return None
    threshold = threshold_at(chooses, level)
    found, wrong = int(np.sum(members > threshold)), int(np.sum(measures > threshold))
    return Bound(
        level=level,
        tpr=found / len(members),
        fpr=wrong / len(measures),
        epsilon=epsilon_lower_bound(found, len(members), wrong, len(measures), delta),
    )


def epsilon_lower_bound(found: int, members: int, wrong: int, non_members: int, delta: float) -> float:
    """ln((TPR - delta) / FPR) with TPR at its lower and FPR at its upper limit; 0 if nothing is proved.

    The limits are one-sided Clopper-Pearson limits at 97.5 % each, so that both hold together at 95 %.
    """
    risk = (1 - CONFIDENCE) / 2
    tpr = float(beta.ppf(risk, found, members - found + 1)) if found else 0.0
    fpr = float(beta.ppf(1 - risk, wrong + 1, non_members - wrong)) if wrong < non_members else 1.0
    return max(0.0, math.log((tpr - delta) / fpr)) if tpr > delta else 0.0
