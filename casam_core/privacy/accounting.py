"""The total cost of private releases: Rényi differential privacy of subsampled Gaussian mechanisms.

Composition is a sum of RDP curves; Opacus converts the sum to (epsilon, delta) (Balle et al. 2020). To stop
before the sum exceeds the budget is also valid for adaptively chosen releases: it is an RDP filter (Feldman
and Zrnic 2021). Neighbouring datasets differ by one unit (add or remove one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from casam_core.config.scenario import PrivacySpec

ORDERS = (
    *(1 + x / 100 for x in range(1, 10)),
    *(1 + x / 10 for x in range(1, 100)),
    *range(12, 64),
    *(64, 80, 96, 128, 192, 256, 384, 512, 1024),
)
"""Orders of the Rényi divergence: those of Opacus, and more at both ends, for very little or much noise."""

LEAST_NOISE, MOST_NOISE = 0.1, 1e4
"""The range in which `calibrate` searches for a noise multiplier."""


@dataclass(frozen=True)
class Mechanism:
    """A Gaussian mechanism on a Poisson sample. noise_multiplier: standard deviation / L2 sensitivity.
    sample_rate: the probability that a unit takes part in a step; 1 for all units."""

    noise_multiplier: float
    sample_rate: float = 1.0
    steps: int = 1


def round_mechanism(spec: PrivacySpec, noise_multiplier: float) -> Mechanism:
    """The cost of one private training round."""
    return Mechanism(noise_multiplier, spec.sampling_rate, spec.steps)


def epsilon_of(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """epsilon of all mechanisms together at `delta`; 0 for none."""
    if not mechanisms:
        return 0.0
    # Opacus takes a second to import, and many processes never compute an epsilon.
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(m.noise_multiplier, m.sample_rate, m.steps) for m in mechanisms]
    # With much noise and a large delta the bound can be negative.
    return max(0.0, float(accountant.get_epsilon(delta=delta, alphas=list(ORDERS))))


def calibrate(at: Callable[[float], Sequence[Mechanism]], epsilon: float, delta: float) -> float:
    """The smallest noise at which `at(noise)` costs at most `epsilon`, with an error of at most 0.1 %.

    Raises ValueError if even MOST_NOISE costs more.
    """
    low, high = LEAST_NOISE, MOST_NOISE
    if epsilon_of(at(high), delta) > epsilon:
        raise ValueError(f"no noise reaches epsilon {epsilon:g} at delta {delta:g}; allow a larger epsilon")
    if epsilon_of(at(low), delta) <= epsilon:
        return low
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if epsilon_of(at(middle), delta) > epsilon else (low, middle)
    return high


def affordable(
    spent: Sequence[Mechanism], each: Sequence[Mechanism], epsilon: float, delta: float, most: int
) -> int:
    """How many times `each` fits into the rest of the budget after `spent`; at most `most`."""
    together = list(spent)
    for count in range(most):
        together += each
        if epsilon_of(together, delta) > epsilon:
            return count
    return most
