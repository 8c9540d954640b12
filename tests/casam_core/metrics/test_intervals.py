"""Statistics at the institution: means by hand, intervals that behave, units that stay together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casam_core.metrics import intervals as statistics
from casam_core.metrics.intervals import Estimate, by_unit, estimate
from scenarios.study.differences import Spread, apart, holm, student


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_the_mean_is_over_images_and_the_deviation_over_units_by_hand() -> None:
    # Patient a: 0.2 and 0.4, patient b: 0.9. Mean of three images 0.5; unit means 0.3 and 0.9.
    found = estimate([0.2, 0.9, 0.4], ["a", "b", "a"], rng())
    assert found.mean == pytest.approx(0.5)
    assert found.sd == pytest.approx(np.std([0.3, 0.9], ddof=1))


def test_units_are_summed_by_name() -> None:
    sums, counts = by_unit([1.0, 2.0, 4.0], ["b", "a", "b"])
    assert sums.tolist() == [2.0, 5.0]
    assert counts.tolist() == [1.0, 2.0]


def test_two_units_can_only_be_drawn_as_aa_ab_ba_bb() -> None:
    # Means of the draws: 0.3 (1/4), 0.5 (1/2), 0.9 (1/4); the 2.5 % and 97.5 % points are the outer ones.
    found = estimate([0.2, 0.9, 0.4], ["a", "b", "a"], rng())
    assert (found.low, found.high) == (pytest.approx(0.3), pytest.approx(0.9))


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = list(np.random.default_rng(3).uniform(size=40))
    units = [str(i) for i in range(40)]
    together = estimate(values, units, rng())
    monkeypatch.setattr(statistics, "DRAWN_AT_ONCE", 100)  # two resamples
    assert estimate(values, units, rng()) == together


def test_one_unit_cannot_tell_how_sure_it_is() -> None:
    assert estimate([0.2, 0.4], ["a", "a"], rng()) == Estimate(pytest.approx(0.3))


def test_over_many_images_the_interval_is_that_of_the_normal_law() -> None:
    values = rng().normal(0.7, 0.1, 400)
    found = estimate(list(values), [str(i) for i in range(400)], rng())
    half = 1.96 * values.std(ddof=1) / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_images_of_one_patient_make_the_interval_wider_than_independent_ones() -> None:
    patients = np.repeat(rng().normal(0.7, 0.1, 20), 10)
    alone = estimate(list(patients), [str(i) for i in range(200)], rng())
    grouped = estimate(list(patients), [str(i // 10) for i in range(200)], rng())
    width = [(e.high or 0) - (e.low or 0) for e in (alone, grouped)]
    assert width[1] > 2 * width[0] > 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abcd")), min_size=1, max_size=20))
def test_the_mean_lies_within_the_values_and_the_interval_too(drawn: list[tuple[float, str]]) -> None:
    values, units = [v for v, _ in drawn], [u for _, u in drawn]
    found = estimate(values, units, rng())
    ends = [end for end in (found.low, found.mean, found.high) if end is not None]
    assert all(min(values) - 1e-9 <= end <= max(values) + 1e-9 for end in ends)
    assert ends == sorted(ends) or len(ends) == 1


def test_the_same_seed_gives_the_same_interval() -> None:
    values, units = [0.1, 0.5, 0.7, 0.9], list("abcd")
    assert estimate(values, units, rng()) == estimate(values, units, rng())


def test_students_interval_by_hand() -> None:
    # Mean 2, deviation 1, n = 3: half the width is 4.302653 / sqrt(3); t = 2 sqrt(3) gives p = 0.0742.
    found = student([1.0, 2.0, 3.0])
    assert (found.n, found.mean, found.sd) == (3, 2.0, 1.0)
    assert found.high == pytest.approx(2 + 4.302653 / 3**0.5)
    assert found.low == pytest.approx(2 - 4.302653 / 3**0.5)
    assert found.p == pytest.approx(0.0741799)


def test_one_value_has_no_interval_and_equal_values_one_of_no_width() -> None:
    assert student([0.4]) == Spread(1, 0.4)
    assert student([0.0, 0.0]) == Spread(2, 0.0, 0.0, 0.0, 0.0, 1.0)
    assert student([0.5, 0.5]).p == 0.0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=3, max_size=8).filter(lambda v: np.std(v) > 1e-3))
def test_zero_lies_outside_the_interval_exactly_where_p_is_below_5_percent(values: list[float]) -> None:
    found = student(values)
    assert found.low is not None
    assert found.high is not None
    assert found.p is not None
    assert (found.low > 0 or found.high < 0) == (found.p < 0.05)


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.04: times 3, 2, 1 is 0.03, 0.04, 0.04. None was no test.
    assert holm([0.04, None, 0.01, 0.02]) == [0.04, None, pytest.approx(0.03), 0.04]
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_an_interval_without_knowing_the_correlation_covers_every_correlation() -> None:
    a = rng().normal(0.7, 0.1, 30)
    for b in (a - 0.05, 1.4 - a - 0.05, rng().permutation(a) - 0.05):
        mine, other = (Estimate(float(v.mean()), float(v.std(ddof=1))) for v in (a, b))
        found = apart(mine, other, 30)
        assert found is not None
        true = student(list(a - b))
        assert true.low is not None
        assert true.high is not None
        assert found[0] <= true.low + 1e-12
        assert found[1] >= true.high - 1e-12
    assert apart(Estimate(0.5), Estimate(0.4, 0.1), 30) is None
