"""Releases without sampling are composed exactly: known values, other accountants, and real mechanisms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from casam_core.privacy.accounting import (
    LATTICE,
    Mechanism,
    calibrate,
    epsilon_of,
    gaussian_epsilon,
)
from casam_core.privacy.discrete_gaussian import SIGMA
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.private_sum import WIDEST, PrivateSum

noises = st.floats(0.4, 50)
deltas = st.sampled_from([1e-2, 1e-3, 1e-5])


def event(mechanisms: Sequence[Mechanism]) -> dp_accounting.DpEvent:
    """The same in dp-accounting's words."""
    return dp_accounting.ComposedDpEvent(
        [
            dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(m.noise_multiplier), m.steps)
            for m in mechanisms
        ]
    )


@pytest.mark.parametrize(
    ("epsilon", "noise"), [(8.0, 0.480), (3.0, 1.037), (1.0, 2.575)], ids=["eps8", "eps3", "eps1"]
)
def test_the_noise_of_one_release_is_the_known_one(epsilon: float, noise: float) -> None:
    """Balle and Wang 2018, at delta 1e-3; composition in Rényi divergences needs 0.520, 1.146 and 2.902."""
    found = calibrate(lambda scale: [Mechanism(scale)], epsilon, 1e-3)
    assert found == pytest.approx(noise, abs=0.001)
    rdp = RdpAccountant([1 + x / 20 for x in range(1, 400)]).compose(event([Mechanism(found)]))
    assert rdp.get_epsilon(1e-3) > 1.05 * epsilon


releases = st.builds(Mechanism, noises, st.just(1.0), st.integers(1, 5))


@given(st.lists(releases, min_size=1, max_size=4), deltas)
@settings(max_examples=20, deadline=None)
def test_exact_epsilon_is_that_of_a_numerical_accountant(mechanisms: list[Mechanism], delta: float) -> None:
    found = epsilon_of(mechanisms, delta)
    if found < 6:  # beyond, the distance of the lattice is a visible part of delta
        numerical = PLDAccountant(value_discretization_interval=1e-3).compose(event(mechanisms))
        assert found == pytest.approx(numerical.get_epsilon(delta), rel=0.01, abs=0.01)


@given(st.lists(noises, min_size=2, max_size=5), deltas)
@settings(max_examples=50, deadline=None)
def test_more_releases_cost_more_and_more_noise_costs_less(noise: list[float], delta: float) -> None:
    mechanisms = [Mechanism(scale) for scale in noise]
    everything = epsilon_of(mechanisms, delta)
    assert epsilon_of(mechanisms[1:], delta) <= everything
    assert epsilon_of([Mechanism(1.1 * scale) for scale in noise], delta) <= everything
    assert epsilon_of(mechanisms, delta / 2) >= everything
    assert everything <= epsilon_of(mechanisms, delta, replaced=True)


def test_where_the_lattice_uses_up_delta_the_renyi_bound_remains() -> None:
    noisy = [Mechanism(0.15)]
    assert gaussian_epsilon(1 / 0.15, 1e-5, LATTICE) is None
    rdp = RdpAccountant([1 + x / 50 for x in range(1, 500)]).compose(event(noisy)).get_epsilon(1e-5)
    assert epsilon_of(noisy, 1e-5) == pytest.approx(rdp, rel=0.02)


@pytest.mark.parametrize("sigma", [2.0, 4.0, 16.0])
def test_discrete_noise_is_as_near_to_rounded_gaussian_noise_as_the_proof_says(sigma: float) -> None:
    """One number: Kullback-Leibler divergence at most 1 / (320 sigma^4)."""
    x = np.arange(-40 * sigma, 40 * sigma + 1)
    discrete = np.exp(-np.square(x) / (2 * sigma**2))
    discrete /= discrete.sum()
    # In the lower tail both numbers of the difference are small, so no digits are lost.
    edge = -np.abs(x)
    rounded = ndtr((edge + 0.5) / sigma) - ndtr((edge - 0.5) / sigma)
    used = (discrete > 1e-250) & (rounded > 1e-250)
    divergence = float((discrete[used] * np.log(discrete[used] / rounded[used])).sum())
    assert 0 <= divergence <= 1.001 / (320 * sigma**4)
    # WIDEST numbers and Pinsker's inequality give the constant of the accountant.
    assert math.isclose(LATTICE, math.sqrt(WIDEST / (320 * SIGMA**4) / 2))


def test_no_sum_has_more_numbers_than_the_accountant_assumes() -> None:
    with pytest.raises(ValueError, match="at most 4194304 numbers"):
        PrivateSum(1.0, 1.0).release([], WIDEST + 1, NoiseSource.seeded(0))
