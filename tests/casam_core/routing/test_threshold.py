"""Thresholds: folds cut as the authors cut them, held-out scores, and percentiles of shared histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from casam_core.errors import DataError
from casam_core.routing.routers import Arrays, GaussianSpec, build_router, router_spec
from casam_core.routing.threshold import (
    HISTOGRAM_BINS,
    HISTOGRAM_RANGE,
    choose_threshold,
    fold_indices,
    fold_statistics,
    held_out_scores,
    histogram_percentile,
    histogram_threshold,
    score_histogram,
)

SCORES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200)


class Recorder:
    """A router that remembers what it was shown: a state is its features' values and its seed."""

    def sufficient_statistics(self, f_NF: Tensor, seed: int) -> Arrays:
        return {"count": np.array([float(len(f_NF))]), "seen": f_NF[:, 0].double().numpy()}

    def merge(self, summaries: Sequence[Arrays]) -> Arrays:
        raise NotImplementedError

    def fit(self, statistics: Arrays) -> Arrays:
        return statistics

    def score(self, f_F: Tensor, state: Arrays) -> float:
        assert float(f_F[0]) not in state["seen"], "an image was scored by a state that saw it"
        return float(f_F[0]) * 10


# --- Folds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "folds"), [(2, 5), (5, 5), (13, 5), (40, 5), (9, 2), (7, 10)])
def test_folds_are_the_seed_2025_permutation_split_by_numpy(count: int, folds: int) -> None:
    permutation = np.random.RandomState(2025).permutation(count)
    want = np.array_split(permutation, folds)
    found = fold_indices(count, folds)
    assert len(found) == len(want)
    assert all(np.array_equal(one, other) for one, other in zip(found, want, strict=True))


@given(count=st.integers(2, 300), folds=st.integers(2, 12))
def test_every_image_is_held_out_exactly_once(count: int, folds: int) -> None:
    parts = fold_indices(count, folds)
    assert sorted(np.concatenate(parts)) == list(range(count))
    sizes = [len(part) for part in parts]
    assert len(sizes) == folds  # of a small holder some are empty
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("count", [0, 1])
def test_one_image_gives_no_threshold(count: int) -> None:
    with pytest.raises(DataError, match=f"at least 2 training images, found {count}"):
        fold_indices(count, 5)


@pytest.mark.parametrize("count", [2, 3, 11])
def test_every_score_is_held_out(count: int) -> None:
    f = torch.arange(float(count))[:, None]
    spec = GaussianSpec(folds=5)
    summaries = fold_statistics(Recorder(), f, spec, seed=0)
    assert len(summaries) == 5
    assert all(s["count"][0] == len(s["seen"]) for s in summaries)
    assert sum(count - len(s["seen"]) for s in summaries) == count  # each is left out of one
    scores = held_out_scores(Recorder(), f, summaries, spec.folds)
    assert scores.tolist() == [10.0 * i for i in range(count)]  # in the images' own order


def test_each_fold_is_fitted_with_its_own_seed() -> None:
    seeds: list[int] = []

    class Seeds(Recorder):
        def sufficient_statistics(self, f_NF: Tensor, seed: int) -> Arrays:
            seeds.append(seed)
            return super().sufficient_statistics(f_NF, seed)

    for run_seed in (0, 0, 1):
        fold_statistics(Seeds(), torch.arange(10.0)[:, None], GaussianSpec(), seed=run_seed)
    assert seeds[:5] == seeds[5:10]
    assert len(set(seeds)) == 10


@pytest.mark.parametrize("kind", ["gaussian", "vae"])
def test_a_holder_with_fewer_images_than_folds_shares_a_threshold_with_a_larger_one(kind: str) -> None:
    spec = router_spec(kind, {"epochs": 1})
    router = build_router(spec)
    holders = [torch.randn(n, 6, generator=torch.Generator().manual_seed(n)) for n in (3, 12)]
    summaries = [fold_statistics(router, f_NF, spec, seed=0) for f_NF in holders]
    states = [router.fit(router.merge(parts)) for parts in zip(*summaries, strict=True)]
    counts = sum(score_histogram(held_out_scores(router, f_NF, states, spec.folds)) for f_NF in holders)
    assert isinstance(counts, np.ndarray)
    assert counts.sum() == 15
    assert math.isfinite(histogram_percentile(counts, spec.percentile))


def test_a_states_number_that_differs_from_the_folds_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        held_out_scores(Recorder(), torch.arange(10.0)[:, None], [], 5)


# --- Histograms ------------------------------------------------------------------------------------


def bin_of(score: float) -> int:
    """The bin a score falls into, one number at a time."""
    position = (math.asinh(score) + HISTOGRAM_RANGE) / (2 * HISTOGRAM_RANGE) * HISTOGRAM_BINS
    return min(max(math.floor(position), 0), HISTOGRAM_BINS - 1)


def upper_edge(index: int) -> float:
    return math.sinh(((index + 1) / HISTOGRAM_BINS * 2 - 1) * HISTOGRAM_RANGE)


def test_a_score_of_zero_opens_the_upper_half() -> None:
    counts = score_histogram(np.array([0.0, 0.0, -1e-9]))
    assert counts[HISTOGRAM_BINS // 2] == 2
    assert counts[HISTOGRAM_BINS // 2 - 1] == 1
    assert counts.sum() == 3


@given(SCORES)
def test_every_score_is_counted_in_its_own_bin(scores: list[float]) -> None:
    counts = score_histogram(np.array(scores))
    assert counts.shape == (HISTOGRAM_BINS,)
    assert counts.dtype == np.int64
    assert counts.sum() == len(scores)
    for score in scores:
        assert counts[max(bin_of(score) - 1, 0) : bin_of(score) + 2].any()  # rounding may shift an edge


def test_scores_beyond_the_range_fall_into_the_outer_bins() -> None:
    counts = score_histogram(np.array([-np.inf, -1e300, 1e300, np.inf]))
    assert counts[0] == 2
    assert counts[-1] == 2


def test_a_score_that_is_no_number_is_refused() -> None:
    router, f_NF = build_router(GaussianSpec()), torch.randn(6, 4)
    states = [router.fit(fold) for fold in fold_statistics(router, f_NF, GaussianSpec(folds=2), seed=0)]
    f_NF[3] = math.nan
    with pytest.raises(DataError, match="1 of 6 held-out scores are NaN"):
        held_out_scores(router, f_NF, states, 2)


@given(SCORES, SCORES)
def test_added_histograms_are_the_histogram_of_all_scores(some: list[float], more: list[float]) -> None:
    added = score_histogram(np.array(some)) + score_histogram(np.array(more))
    assert np.array_equal(added, score_histogram(np.array(some + more)))


def test_a_percentile_by_hand() -> None:
    # 97 % of 100 scores are reached at the 97th smallest: here the last 1.0 of 97 before three of 50.
    counts = score_histogram(np.array([1.0] * 97 + [50.0] * 3))
    assert histogram_percentile(counts, 97) == pytest.approx(upper_edge(bin_of(1.0)))
    assert histogram_percentile(counts, 98) == pytest.approx(upper_edge(bin_of(50.0)))
    assert histogram_percentile(counts, 100) == pytest.approx(upper_edge(bin_of(50.0)))


@settings(max_examples=60)
@given(scores=SCORES, percentile=st.floats(0.5, 100))
def test_the_histograms_percentile_lies_within_a_bin_of_the_exact_one(
    scores: list[float], percentile: float
) -> None:
    tau = histogram_percentile(score_histogram(np.array(scores)), percentile)
    # The smallest score that `percentile` percent reach, and its neighbour for rounding at the step.
    ordered = np.sort(scores)
    rank = percentile / 100 * len(scores)
    near = {ordered[min(max(math.ceil(rank + d) - 1, 0), len(scores) - 1)] for d in (-1e-9, 0, 1e-9)}
    assert any(
        abs(math.asinh(tau) - math.asinh(s)) <= 2 * HISTOGRAM_RANGE / HISTOGRAM_BINS * 1.001 for s in near
    )


@pytest.mark.parametrize("percentile", [95.0, 97.0, 99.0])
def test_over_many_scores_it_agrees_with_numpys_percentile(percentile: float) -> None:
    scores = np.random.default_rng(0).gamma(2.0, 1.5, 20_000)
    exact = float(np.percentile(scores, percentile))
    tau = histogram_percentile(score_histogram(scores), percentile)
    assert abs(bin_of(tau * (1 - 1e-12)) - bin_of(exact)) <= 1


@given(SCORES)
def test_all_scores_lie_at_or_below_the_hundredth_percentile(scores: list[float]) -> None:
    assert max(scores) <= histogram_percentile(score_histogram(np.array(scores)), 100)


def test_the_margin_widens_the_way_from_the_median_to_the_percentile() -> None:
    # Of 0..100 the median is 50 and the 90th percentile 90: half of the 40 between is added.
    scores = np.arange(101.0)
    assert choose_threshold(scores, GaussianSpec(percentile=90, margin=0)) == 90
    assert choose_threshold(scores, GaussianSpec(percentile=90, margin=0.5)) == 110


def test_the_margin_means_the_same_for_one_holder_and_for_several() -> None:
    scores = np.random.default_rng(0).gamma(2.0, 1.5, 20_000)
    spec = GaussianSpec(margin=1.5)
    merged = histogram_threshold(score_histogram(scores[:7000]) + score_histogram(scores[7000:]), spec)
    assert merged == pytest.approx(choose_threshold(scores, spec), rel=0.02)


@given(SCORES, st.floats(0.5, 100), st.floats(0, 5))
def test_a_margin_never_tightens_the_threshold(scores: list[float], percentile: float, margin: float) -> None:
    values = np.array(scores)
    tight, wide = (GaussianSpec(percentile=percentile, margin=m) for m in (0, margin))
    assert choose_threshold(values, wide) >= choose_threshold(values, tight)
