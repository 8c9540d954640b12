"""How well an attack tells members from non-members, and how sure that is.

Scores are higher for images that look like members. A claim of (epsilon, delta) differential privacy bounds
every such attack: TPR <= e^epsilon FPR + delta (Kairouz et al. 2015). What the attack reached is therefore a
lower bound on epsilon, ln((TPR - delta) / FPR), and with a confidence interval one that holds at 95 %.

All rates with fewer than LEAST_FALSE_POSITIVES expected false positives are `not measurable`: one image
more or less would change the figure by a tenth and more.
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
"""False positive rates that figures are given for."""
CONFIDENCE = 0.95

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Bound:
    """What one false positive rate proves about epsilon.

    tpr, fpr: at the threshold, on images that had no part in choosing it. epsilon: lower bound at 95 %, 0
    where nothing is proved.
    """

    level: float
    tpr: float
    fpr: float
    epsilon: float


@dataclass(frozen=True)
class Outcome:
    """One attack. p_value: how often guessing would come to such an AUC or a higher one (Mann and Whitney's
    test). tpr, bounds: by false positive rate, None where it is not measurable. ceiling: the bound of an
    attack that finds every member and takes nobody else for one; None where no rate is measurable.
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
        """The best lower bound; None where no rate is measurable."""
        return max((bound.epsilon for bound in self.bounds.values() if bound is not None), default=None)

    def vacuous(self, epsilon: float) -> bool:
        """Whether no attack on so few images could have contradicted a claim of this epsilon."""
        return self.ceiling is None or self.ceiling <= epsilon


def outcome_of(
    members: Scores,
    non_members: Scores,
    *,
    delta: float,
    rng: np.random.Generator,
    levels: Sequence[float] = LEVELS,
) -> Outcome:
    """Figures of one attack. delta: of the claim to compare with, 0 without one. rng: halves non-members.

    Raises ValueError where a side is empty or a score is no number.
    """
    for name, scores in (("members", members), ("non-members", non_members)):
        if len(scores) == 0:
            raise ValueError(f"expected scores of {name}, found none")
        if np.isnan(scores).any():
            raise ValueError(f"{int(np.isnan(scores).sum())} scores of {name} are no number")
    order = rng.permutation(len(non_members))
    chooses, measures = np.array_split(non_members[order], 2)
    bounds = {level: bound_at(members, chooses, measures, level, delta) for level in levels}
    perfect = epsilon_lower_bound(len(members), len(members), 0, max(len(measures), 1), delta)
    return Outcome(
        members=len(members),
        non_members=len(non_members),
        auc=auc(members, non_members),
        p_value=float(mannwhitneyu(members, non_members, alternative="greater").pvalue),
        tpr={level: tpr_at(members, non_members, level) for level in levels},
        bounds=bounds,
        ceiling=perfect if any(bound is not None for bound in bounds.values()) else None,
    )


def auc(members: Scores, non_members: Scores) -> float:
    """Chance that a member scores above a non-member, ties counting half."""
    pairs = len(members) * len(non_members)
    return float(mannwhitneyu(members, non_members, method="asymptotic").statistic / pairs)


def measurable(non_members: int, level: float) -> bool:
    """Whether so many non-members give enough false positives at this rate."""
    return allowed(non_members, level) >= LEAST_FALSE_POSITIVES


def allowed(non_members: int, level: float) -> int:
    """False positives at this rate; the small addition keeps 0.01 of 1000 from being 9."""
    return math.floor(level * non_members + 1e-9)


def threshold_at(non_members: Scores, level: float) -> float:
    """The lowest threshold that at most `level` of the non-members lie above of."""
    return float(np.sort(non_members)[::-1][allowed(len(non_members), level)])


def tpr_at(members: Scores, non_members: Scores, level: float) -> float | None:
    """Share of members above the threshold at this false positive rate; None where it is not measurable."""
    if not measurable(len(non_members), level):
        return None
    return float(np.mean(members > threshold_at(non_members, level)))


def bound_at(members: Scores, chooses: Scores, measures: Scores, level: float, delta: float) -> Bound | None:
    """The bound at a threshold that `chooses` names and the other images are measured at.

    An interval holds for a threshold that is fixed beforehand, so the non-members that name it are not those
    it is measured on. None where `measures` are too few.
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
    """ln((TPR - delta) / FPR) with TPR at its lower and FPR at its upper end; 0 where nothing is proved.

    Clopper and Pearson's intervals, one-sided, each at half of what 95 % leave to chance, so that both hold
    together.
    """
    risk = (1 - CONFIDENCE) / 2
    tpr = float(beta.ppf(risk, found, members - found + 1)) if found else 0.0
    fpr = float(beta.ppf(1 - risk, wrong + 1, non_members - wrong)) if wrong < non_members else 1.0
    return max(0.0, math.log((tpr - delta) / fpr)) if tpr > delta else 0.0
