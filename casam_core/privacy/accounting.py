"""What private releases cost together: Rényi differential privacy of subsampled Gaussian mechanisms.

Composition is a sum of RDP curves; the (epsilon, delta) of the sum is Opacus' conversion (Balle et al. 2020).
Stopping as soon as the sum would pass the budget is valid for releases chosen adaptively, too: an RDP filter
(Feldman and Zrnic 2021). Neighbouring datasets differ by one unit that is there or not (add or remove one).
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
"""Of Rényi divergences: Opacus' own and some beyond both ends, where much or little noise is best bounded."""

LEAST_NOISE, MOST_NOISE = 0.1, 1e4
"""Noise multipliers outside of these are not looked for."""


@dataclass(frozen=True)
class Mechanism:
    """A Gaussian mechanism on a Poisson sample. noise_multiplier: standard deviation over L2 sensitivity.
    sample_rate: a unit's chance to take part in a step, 1 for everybody."""

    noise_multiplier: float
    sample_rate: float = 1.0
    steps: int = 1


def round_mechanism(spec: PrivacySpec, noise_multiplier: float) -> Mechanism:
    """What one private round of training costs."""
    return Mechanism(noise_multiplier, spec.sampling_rate, spec.steps)


def epsilon_of(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """epsilon of all together at `delta`; 0 for none."""
    if not mechanisms:
        return 0.0
    # Opacus takes a second to import, and many who know what a mechanism is never compute what it costs.
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(m.noise_multiplier, m.sample_rate, m.steps) for m in mechanisms]
    # With much noise and a large delta the bound falls below nothing at all.
    return max(0.0, float(accountant.get_epsilon(delta=delta, alphas=list(ORDERS))))


def calibrate(at: Callable[[float], Sequence[Mechanism]], epsilon: float, delta: float) -> float:
    """The smallest scale of noise at which `at(scale)` costs at most `epsilon`, to within 0.1 %.

    Raises ValueError where no scale up to MOST_NOISE does.
    """
    low, high = LEAST_NOISE, MOST_NOISE
    if epsilon_of(at(high), delta) > epsilon:
        raise ValueError(f"no noise makes epsilon {epsilon:g} at delta {delta:g}; allow more")
    if epsilon_of(at(low), delta) <= epsilon:
        return low
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if epsilon_of(at(middle), delta) > epsilon else (low, middle)
    return high


def affordable(
    spent: Sequence[Mechanism], each: Sequence[Mechanism], epsilon: float, delta: float, most: int
) -> int:
    """How many times `each` still fits behind what is spent; at most `most`."""
    together = list(spent)
    for count in range(most):
        together += each
        if epsilon_of(together, delta) > epsilon:
            return count
    return most
