"""Clipping and rounding to a grid, and the discrete noise: exact in integers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import chisquare

from casam_core.privacy.discrete_gaussian import (
    SIGMA,
    TERMS,
    discrete_gaussian,
    exact_terms,
    exponential_coins,
    one_over_e,
)
from casam_core.privacy.keystream import Keystream
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.private_sum import PrivateSum

COUNT = 400_000


def stream() -> Keystream:
    return Keystream(b"test of the noise")


def fits(values: np.ndarray, probability: dict[int, float]) -> float:
    """The p-value of a chi-square test; values that are expected fewer than 10 times count together."""
    often = {value: p for value, p in probability.items() if p * len(values) >= 10}
    found = [int((values == value).sum()) for value in often]
    expected = [p * len(values) for p in often.values()]
    rest, rest_expected = len(values) - sum(found), len(values) - sum(expected)
    if rest_expected >= 1:
        found, expected = [*found, rest], [*expected, rest_expected]
    return float(chisquare(found, np.array(expected) * sum(found) / sum(expected)).pvalue)


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 5])
def test_small_sigmas_have_the_exact_probabilities(bits: int) -> None:
    sigma = 2**bits
    weights = {x: math.exp(-(x**2) / (2 * sigma**2)) for x in range(-9 * sigma, 9 * sigma + 1)}
    total = sum(weights.values())
    drawn = discrete_gaussian(stream(), COUNT, bits)
    assert fits(drawn, {x: weight / total for x, weight in weights.items()}) > 1e-3


def test_the_releases_noise_has_its_moments_and_no_memory() -> None:
    drawn = discrete_gaussian(stream(), COUNT) / SIGMA
    assert abs(drawn.mean()) < 4 / math.sqrt(COUNT)
    assert drawn.var() == pytest.approx(1, abs=4 * math.sqrt(2 / COUNT))
    assert (drawn**4).mean() == pytest.approx(3, abs=4 * math.sqrt(96 / COUNT))
    assert (np.abs(drawn) > 3).mean() == pytest.approx(0.0027, abs=0.0005)
    assert abs(float(np.corrcoef(drawn[:-1], drawn[1:])[0, 1])) < 4 / math.sqrt(COUNT)
    assert len(np.unique(discrete_gaussian(stream(), 1000) % 2)) == 2  # it uses the whole grid


def test_coins_have_the_probabilities_of_their_fractions() -> None:
    heads = one_over_e(stream(), COUNT)
    assert heads.mean() == pytest.approx(math.exp(-1), abs=0.004)
    for g, bits in ((0, 4), (3, 4), (8, 4), (15, 4), (2**40, 41)):
        coins = exponential_coins(stream(), np.full(COUNT, g, np.uint64), bits)
        assert coins.mean() == pytest.approx(math.exp(-g / 2**bits), abs=0.004)


def test_the_number_of_terms_is_exact_at_every_border() -> None:
    """P(k > j) = 1 / j!: the words just below and at each border."""

    class Words(Keystream):
        def __init__(self, words: list[int]) -> None:
            super().__init__(bytes(16))
            self.given = words

        def words(self, count: int) -> np.ndarray:
            taken, self.given = self.given[:count], self.given[count:]
            return np.array(taken, np.uint64)

    limit = (2**64 // math.factorial(TERMS)) * math.factorial(TERMS)
    borders = [limit // math.factorial(j) for j in range(2, TERMS)]
    below = exact_terms(Words([border - 1 for border in borders]), len(borders))
    at = exact_terms(Words(borders), len(borders))
    assert below.tolist() == [j + 1 for j in range(2, TERMS)]
    assert at.tolist() == list(range(2, TERMS))
    # Words above the limit are drawn again; the smallest ones go on with further coins.
    assert exact_terms(Words([limit, 2**63]), 1).tolist() == [2]
    assert exact_terms(Words([0, 0, 1]), 1).tolist() == [TERMS + 2]


@settings(max_examples=200)
@given(
    arrays(np.float64, st.integers(1, 40), elements=st.floats(allow_nan=True, allow_infinity=True, width=64)),
    st.floats(1e-6, 1e6),
    st.floats(2.0**-8, 1e4),
)
def test_no_row_is_longer_than_the_norm_in_exact_integers(row: np.ndarray, norm: float, noise: float) -> None:
    total = PrivateSum(norm, noise)
    with np.errstate(all="ignore"):
        steps = total.steps_of(row)
    length = sum(int(x) ** 2 for x in steps)
    assert length * Fraction(noise) ** 2 <= SIGMA**2
    assert length <= total.largest


def test_a_short_row_is_kept_to_one_step_and_a_long_one_is_scaled() -> None:
    total = PrivateSum(1.0, 2.0)
    row = np.array([0.3, -0.4])
    assert np.abs(total.steps_of(row) * total.grid - row).max() <= total.grid
    assert np.abs(total.steps_of(row) * total.grid).max() <= 0.4
    np.testing.assert_allclose(total.steps_of(row * 100) * total.grid, [0.6, -0.8], atol=2 * total.grid)


def test_the_order_of_the_rows_changes_no_bit_and_no_row_is_noise_alone() -> None:
    rows = [np.array([0.1 * i, -0.3]) for i in range(20)]
    one = PrivateSum(1.0, 1.0).release(rows, 2, NoiseSource.seeded(1))
    other = PrivateSum(1.0, 1.0).release(rows[::-1], 2, NoiseSource.seeded(1))
    assert np.array_equal(one, other)
    assert PrivateSum(1.0, 1.0).release([], 2, NoiseSource.seeded(1)).any()
    assert not PrivateSum(1.0, 0.0).release([], 2, NoiseSource.seeded(1)).any()


def test_every_release_is_a_multiple_of_its_grid() -> None:
    total = PrivateSum(1.0, 0.5)
    noisy = total.release([np.array([0.123456789, 1e-300])], 2, NoiseSource.seeded(1)) / total.grid
    assert np.array_equal(noisy, np.rint(noisy))


def test_a_multiplier_whose_integers_would_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a noise multiplier of 0 or at least"):
        PrivateSum(1.0, 1e-3)


@pytest.mark.parametrize(("norm", "noise"), [(1e-318, 1.0), (1e-302, 1.0), (1e300, 1e300), (math.inf, 1.0)])
def test_a_norm_whose_steps_no_number_holds_is_refused_before_any_row(norm: float, noise: float) -> None:
    """With a step of zero a row would fail, and no row would get noise: that would tell them apart."""
    with pytest.raises(ValueError, match="expected a norm with steps that a number can hold"):
        PrivateSum(norm, noise)
