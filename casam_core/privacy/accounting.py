"""The total cost of private releases: Gaussian mechanisms, sampled or not.

Without sampling, the squares of the shifts 1 / noise_multiplier add up, and the sum gives epsilon exactly
(Gaussian differential privacy, Dong, Roth and Su 2022). With sampling, composition is a sum of Rényi
divergences, which Opacus converts to (epsilon, delta) (Balle et al. 2020). To stop before the sum exceeds the
budget is also valid for adaptively chosen releases: both sums are filters (Smith and Thakurta 2022; Feldman
and Zrnic 2021). Of a numerical accountant for sampled mechanisms (PRV) that is not known.

Neighbouring datasets differ by one unit: add or remove one, or (`replaced`) replace one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from casam_core.config.scenario import PrivacySpec
from casam_core.privacy.discrete_gaussian import SIGMA
from casam_core.privacy.private_sum import WIDEST

ORDERS = (
    *(1 + x / 100 for x in range(1, 10)),
    *(1 + x / 10 for x in range(1, 100)),
    *range(12, 64),
    *(64, 80, 96, 128, 192, 256, 384, 512, 1024),
)
"""Orders of the Rényi divergence: those of Opacus, and more at both ends, for very little or much noise."""

LEAST_NOISE, MOST_NOISE = 0.1, 1e4
"""The range in which `calibrate` searches for a noise multiplier."""


LATTICE = math.sqrt(WIDEST / 640) / SIGMA**2
"""The largest distance (total variation) of one step's discrete noise from rounded Gaussian noise.

Rounded to the grid, Gaussian noise protects integer sums as it does before rounding, because rounding
commutes with a whole shift. From its distribution the discrete Gaussian differs, in each number, by a
Kullback-Leibler divergence of at most 1 / (320 SIGMA^4) (docs/privacy.md); Pinsker's inequality gives the
distance for WIDEST numbers.
"""


@dataclass(frozen=True)
class Mechanism:
    """A Gaussian mechanism on a Poisson sample. noise_multiplier: standard deviation / L2 sensitivity.
    sample_rate: the probability that a unit takes part in a step; 1 for all units.
    """

    noise_multiplier: float
    sample_rate: float = 1.0
    steps: int = 1


def round_mechanism(spec: PrivacySpec, noise_multiplier: float, units: int) -> Mechanism:
    """The cost of one round of DP-SGD on so many units.

    noise_multiplier: standard deviation of the noise of a sum of gradients, in units of `clip`.
    """
    return Mechanism(noise_multiplier, spec.rate(units), spec.steps)


def epsilon_of(
    mechanisms: Sequence[Mechanism], delta: float, *, replaced: bool = False, exact: bool = True
) -> float:
    """epsilon of all mechanisms together at `delta`; 0 for none.

    replaced: for datasets in which one unit is replaced by another, instead of added or removed. exact: False
    for their cost beside sampled mechanisms.
    """
    if not mechanisms:
        return 0.0
    if exact and all(m.sample_rate == 1 for m in mechanisms):
        shift = math.sqrt(math.fsum(m.steps / m.noise_multiplier**2 for m in mechanisms)) * (1 + replaced)
        found = gaussian_epsilon(shift, delta, LATTICE * sum(m.steps for m in mechanisms))
        if found is not None:
            return found
    # Opacus takes a second to import, and many processes never compute an epsilon.
    from opacus.accountants.analysis.rdp import get_privacy_spent

    curve = curve_replaced if replaced else curve_added
    total = sum(m.steps * curve(m.noise_multiplier, m.sample_rate) for m in mechanisms)
    # With much noise and a large delta the bound can be negative.
    return max(0.0, float(get_privacy_spent(orders=list(ORDERS), rdp=total, delta=delta)[0]))


def gaussian_delta(epsilon: float, shift: float) -> float:
    """The delta of Gaussian mechanisms with this shift together (Balle and Wang 2018)."""
    above, below = log_ndtr([shift / 2 - epsilon / shift, -shift / 2 - epsilon / shift])
    return float(math.exp(above) - math.exp(min(epsilon + below, above)))


def gaussian_epsilon(shift: float, delta: float, distance: float = 0.0) -> float | None:
    """The least epsilon at which Gaussian mechanisms with this shift together have `delta`.

    distance: of the real noise from Gaussian noise, in total variation; it adds (1 + exp(epsilon)) distance
    to delta. None if this uses up delta, where epsilon is large and delta small.

    >>> round(gaussian_epsilon(1.0, 0.1269367375), 6)  # at epsilon 1: Phi(-1/2) - e Phi(-3/2)
    1.0
    """

    def exceeds(epsilon: float) -> bool:
        return gaussian_delta(epsilon, shift) + (1 + math.exp(epsilon)) * distance > delta

    low, high = 0.0, 0.125
    if not exceeds(low):
        return 0.0
    while exceeds(high):
        low, high = high, 2 * high
        if math.exp(min(high, 700.0)) * distance > delta or high > 600:
            return None
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if exceeds(middle) else (low, middle)
    return high


@lru_cache(maxsize=1024)
def curve_added(noise_multiplier: float, sample_rate: float) -> NDArray[np.float64]:
    """The Rényi divergences of one step at ORDERS, if one unit is added or removed."""
    return divergences(noise_multiplier, sample_rate, ORDERS)


@lru_cache(maxsize=1024)
def curve_replaced(noise_multiplier: float, sample_rate: float) -> NDArray[np.float64]:
    """The same, if one unit is replaced by another one.

    Without sampling this is twice the sensitivity. With it, the datasets with the old unit, P, with neither,
    R, and with the new one, Q, fulfil (Mironov 2017, proposition 11)

        D_a(P, Q) <= (a - 1/2) / (a - 1) D_2a(P, R) + D_(2a-1)(R, Q).

    Half the noise at the same rate would not be a proven bound: the sampled mechanism has no known worst case
    for replaced units (Lebeda et al. 2024).
    """
    if sample_rate == 1:
        return divergences(noise_multiplier / 2, 1.0, ORDERS)
    a = np.array(ORDERS)
    first = divergences(noise_multiplier, sample_rate, tuple(2 * a))
    second = divergences(noise_multiplier, sample_rate, tuple(2 * a - 1))
    bound: NDArray[np.float64] = (a - 0.5) / (a - 1) * first + second
    return bound


def divergences(noise_multiplier: float, sample_rate: float, orders: Sequence[float]) -> NDArray[np.float64]:
    """The Rényi divergences of one step at `orders`.

    sample_rate: the probability with which a unit is in the step.
    """
    from opacus.accountants.analysis.rdp import compute_rdp

    found = compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=list(orders))
    return np.asarray(found, np.float64)


def calibrate(
    at: Callable[[float], Sequence[Mechanism]], epsilon: float, delta: float, *, exact: bool = True
) -> float:
    """The smallest noise at which `at(noise)` costs at most `epsilon`, with an error of at most 0.1 %.

    exact: see `epsilon_of`. Raises ValueError if even MOST_NOISE costs more.
    """
    low, high = LEAST_NOISE, MOST_NOISE
    if epsilon_of(at(high), delta, exact=exact) > epsilon:
        raise ValueError(f"no noise reaches epsilon {epsilon:g} at delta {delta:g}; allow a larger epsilon")
    if epsilon_of(at(low), delta, exact=exact) <= epsilon:
        return low
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if epsilon_of(at(middle), delta, exact=exact) > epsilon else (low, middle)
    return high


def affordable(spent: Sequence[Mechanism], rounds: Sequence[Mechanism], epsilon: float, delta: float) -> int:
    """How many of the rounds, from the first on, fit into the rest of the budget after `spent`."""
    together = list(spent)
    for count, of_round in enumerate(rounds):
        together.append(of_round)
        if epsilon_of(together, delta) > epsilon:
            return count
    return len(rounds)
