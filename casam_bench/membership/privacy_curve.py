"""The privacy curve of mechanisms together: a delta for every epsilon, almost exact (Gopi et al. 2021).

For sampled releases the product's accountant (casam_core.privacy.accounting) adds up Rényi divergences. Its
epsilon is a little too large, so a curve of it promises less than the mechanism keeps. An audit must test the
real promise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from opacus.accountants.analysis.prv import (
    DiscretePRV,
    Domain,
    PoissonSubsampledGaussianPRV,
    TruncatedPrivacyRandomVariable,
    compose_heterogeneous,
    discretize,
)

from casam_bench.membership.one_run import Curve
from casam_core.privacy.accounting import Mechanism

EPSILON_ERROR, DELTA_ERROR = 0.01, 1e-10
"""What the discretisation may add; the curve contains it."""
DEVIATIONS = 7
"""Beyond so many standard deviations of the loss there is less than a hundredth of DELTA_ERROR."""
EPSILONS = 20 * np.linspace(0, 1, 90) ** 2
"""The points of a curve, denser where epsilon is small."""


@lru_cache(maxsize=512)
def curve_of(mechanisms: tuple[Mechanism, ...]) -> Curve:
    """Points (epsilon, delta) that the mechanisms fulfil together."""
    losses = loss_of(mechanisms)
    positive_T = losses.domain.ts >= 0
    loss_T, probability_T = losses.domain.ts[positive_T], losses.pmf[positive_T]
    # delta = sum of p (1 - e^(epsilon - loss)) over losses from epsilon on: for all at once, from the end.
    beyond_T, weighted_T = (
        np.append(np.cumsum(part_T[::-1])[::-1], 0.0)
        for part_T in (probability_T, probability_T * np.exp(-loss_T))
    )
    first = np.searchsorted(loss_T, EPSILONS)
    deltas = beyond_T[first] - np.exp(EPSILONS) * weighted_T[first] + DELTA_ERROR
    return list(zip((EPSILONS + EPSILON_ERROR).tolist(), deltas.tolist(), strict=True))


def exact_epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """epsilon of the mechanisms together, at most EPSILON_ERROR below the truth."""
    lower, _, _ = loss_of(mechanisms).compute_epsilon(delta, DELTA_ERROR, EPSILON_ERROR)
    return max(0.0, float(lower))


def loss_of(mechanisms: Sequence[Mechanism]) -> DiscretePRV:
    """The distribution of the privacy loss of all mechanisms together."""
    steps = [mechanism.steps for mechanism in mechanisms]
    single = [PoissonSubsampledGaussianPRV(m.sample_rate, m.noise_multiplier) for m in mechanisms]
    # Without sampling the loss is Gaussian (mean shift^2 / 2, deviation `shift`); sampling makes it smaller.
    shift = math.sqrt(sum(m.steps / m.noise_multiplier**2 for m in mechanisms))
    reach = shift**2 / 2 + DEVIATIONS * shift + 3
    mesh = EPSILON_ERROR / np.sqrt(sum(steps) * np.log(12 / DELTA_ERROR) / 2)
    domain = Domain.create_aligned(-reach, reach, mesh)
    with np.errstate(divide="ignore"):  # Opacus takes the logarithm of 0 where a loss cannot occur
        parts = [
            discretize(TruncatedPrivacyRandomVariable(prv, domain.t_min, domain.t_max), domain)
            for prv in single
        ]
    return compose_heterogeneous(parts, steps)
