"""Known or unknown: fixed-bin histograms of margins, AUROC and FPR from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics import compute_roc_auc

from casam_core.routing.decision import BINS, auroc, fpr_at_tpr, margin_histogram

MARGINS = st.lists(st.floats(-100, 100), min_size=1, max_size=60)


def test_by_hand() -> None:
    # Of 2 x 2 pairs the unknown image is above in three and in the same bin in one: 3.5 / 4.
    known, unknown = margin_histogram([-1.0, 2.0]), margin_histogram([2.0, 3.0])
    assert auroc(known, unknown) == 3.5 / 4
    # All unknown images are caught from 2.0 on, and one of the two known ones with them.
    assert fpr_at_tpr(known, unknown) == 0.5
    assert fpr_at_tpr(known, unknown, tpr=0.5) == 0.0


def test_zero_opens_the_upper_half_and_far_margins_fall_into_the_outer_bins() -> None:
    counts = margin_histogram([0.0, -1e-12, -np.inf, np.inf, 1e300])
    assert (counts[BINS // 2], counts[BINS // 2 - 1], counts[0], counts[-1]) == (1, 1, 1, 2)


def test_without_images_on_either_side_nothing_can_be_said() -> None:
    some, none = margin_histogram([1.0]), margin_histogram([])
    assert none.sum() == 0
    assert auroc(some, none) is auroc(none, some) is None
    assert fpr_at_tpr(some, none) is fpr_at_tpr(none, some) is None


@given(MARGINS, MARGINS)
def test_it_is_the_auroc_of_the_bins(known: list[float], unknown: list[float]) -> None:
    counts = [margin_histogram(known), margin_histogram(unknown)]
    bins = [np.repeat(np.arange(BINS), c) for c in counts]
    scores = torch.tensor(np.concatenate(bins), dtype=torch.float64)
    labels = torch.tensor([0] * len(known) + [1] * len(unknown))
    assert auroc(*counts) == pytest.approx(float(compute_roc_auc(scores, labels)))


@given(MARGINS, MARGINS)
def test_histograms_of_institutions_add(some: list[float], more: list[float]) -> None:
    np.testing.assert_array_equal(
        margin_histogram(some) + margin_histogram(more), margin_histogram(some + more)
    )


@given(MARGINS, MARGINS, st.floats(0.05, 1))
def test_at_the_cut_enough_unknown_images_are_caught(
    known: list[float], unknown: list[float], tpr: float
) -> None:
    rate = fpr_at_tpr(margin_histogram(known), margin_histogram(unknown), tpr)
    assert rate is not None
    cuts = [min(unknown), max(unknown)]
    lowest = np.mean(np.array(known) >= cuts[0] - abs(cuts[0]) * 0.1 - 1e-3)
    assert 0 <= rate <= lowest + 1e-12
