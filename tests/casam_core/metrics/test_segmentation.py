"""Mask metrics: numbers worked out by hand, a naive second implementation, and what must always hold."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_hausdorff_distance
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt

from casam_core.metrics import segmentation as metrics
from casam_core.metrics.segmentation import InstanceScores, score_image, score_instance

Mask = NDArray[np.bool_]


def boundary_iou(pred_HW: Mask, true_HW: Mask) -> float:
    return score_instance(pred_HW, true_HW, with_hd95=False).biou


def boundary_iou_official(pred_HW: Mask, true_HW: Mask) -> float:
    return score_instance(pred_HW, true_HW, with_hd95=False).biou_official


OVERLAPS = (metrics.iou, metrics.dice, boundary_iou, boundary_iou_official)
SQUARE = np.ones((3, 3), dtype=bool)


def box(size: int, top: int, left: int, height: int, width: int) -> Mask:
    mask = np.zeros((size, size), dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


# --- Naive second implementation: whole image, one 3x3 step at a time ------------------------------


def ratio(a_HW: Mask, b_HW: Mask) -> float:
    return float((a_HW & b_HW).sum() / (a_HW | b_HW).sum()) if (a_HW | b_HW).any() else 1.0


def naive_boundary_iou(pred_HW: Mask, true_HW: Mask) -> float:
    steps = max(1, round(0.02 * np.sqrt(pred_HW.shape[0] ** 2 + pred_HW.shape[1] ** 2)))
    if not (pred_HW.any() and true_HW.any()):
        return ratio(pred_HW, true_HW)

    def band(mask: Mask) -> Mask:
        padded = np.pad(mask, 1)  # The border counts as an edge of the mask.
        return mask & ~binary_erosion(padded, SQUARE, iterations=steps)[1:-1, 1:-1]

    return ratio(band(pred_HW), band(true_HW))


def naive_boundary_iou_official(pred_HW: Mask, true_HW: Mask) -> float:
    kernel = max(1, round(0.02 * np.sqrt(pred_HW.shape[0] ** 2 + pred_HW.shape[1] ** 2)))
    kernel += kernel % 2 == 0
    if not (pred_HW.any() and true_HW.any()):
        return ratio(pred_HW, true_HW)

    def band(mask: Mask) -> Mask:
        thin = mask & ~binary_erosion(mask, SQUARE, border_value=1)
        return binary_dilation(thin, np.ones((kernel, kernel), dtype=bool))

    return ratio(band(pred_HW), band(true_HW))


def naive_hd95(pred_HW: Mask, true_HW: Mask) -> float:
    edges = [mask & ~binary_erosion(mask) for mask in (pred_HW, true_HW)]
    distances = [distance_transform_edt(~edge) for edge in edges]
    return float(max(np.percentile(distances[1][edges[0]], 95), np.percentile(distances[0][edges[1]], 95)))


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[Mask, Mask]:
    """Two masks of one shape: noise, blobs, blobs cut by the border, full and empty ones."""
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, cols = np.mgrid[:height, :width]

    def one(kind: str) -> Mask:
        if kind == "noise":
            return rng.random((height, width)) < rng.random()
        if kind == "blob":
            # The centre may lie on or beyond the border.
            row, col = rng.uniform(-5, height + 5), rng.uniform(-5, width + 5)
            return np.hypot(rows - row, cols - col) < rng.uniform(0.5, 40)
        return np.full((height, width), kind == "full")

    kinds = st.sampled_from(["noise", "blob", "blob", "blob", "full", "empty"])
    return one(draw(kinds)), one(draw(kinds))


# --- By hand ---------------------------------------------------------------------------------------


def test_iou_and_dice_by_hand() -> None:
    # 4x4 boxes, one shifted right by 2 in an 8x8 image: shared 4 rows x 2 = 8, union 16 + 16 - 8 = 24.
    pred, true = box(8, 2, 1, 4, 4), box(8, 2, 3, 4, 4)
    assert metrics.iou(pred, true) == pytest.approx(8 / 24)
    assert metrics.dice(pred, true) == pytest.approx(2 * 8 / (16 + 16))


def test_boundary_iou_by_hand() -> None:
    # 8x8: diagonal 11.31, x 0.02 = 0.23, so d = 1. Each band is the outline of its box.
    # true: 6x6 at (1, 1): 36 - 16 = 20 pixels. pred: 6x4 at (1, 1): 24 - 4x2 = 16 pixels.
    # Shared: left column 6, top and bottom rows 3 more each = 12; pred's right column (4 inner) is not.
    true, pred = box(8, 1, 1, 6, 6), box(8, 1, 1, 6, 4)
    assert boundary_iou(pred, true) == pytest.approx(12 / (20 + 16 - 12))


def test_boundary_iou_width_grows_with_the_diagonal() -> None:
    # 100x100: diagonal 141.4, x 0.02 = 2.83, so d = 3.
    # true: 20x20, band 400 - 14x14 = 204. pred: 10x10 in its middle, band 100 - 4x4 = 84.
    # true's band covers its outer 3 pixels, pred starts 5 pixels inside: nothing shared.
    true, inner = box(100, 40, 40, 20, 20), box(100, 45, 45, 10, 10)
    assert boundary_iou(inner, true) == 0.0
    # pred 16x16, 2 pixels inside: band 256 - 100 = 156; shared is the third ring of true,
    # 16x16 - 14x14 = 60; union 204 + 156 - 60 = 300.
    assert boundary_iou(box(100, 42, 42, 16, 16), true) == pytest.approx(60 / 300)


def test_boundary_at_the_image_border() -> None:
    # 8x8, d = 1. true fills the left half: 8x4. Canonical: the border is an edge, so the band is the
    # outline, 32 - 6x2 = 20; pred fills the image, band 64 - 36 = 28; shared: true's left column 8
    # and 3 more in the top and the bottom row = 14.
    true, pred = box(8, 0, 0, 8, 4), box(8, 0, 0, 8, 8)
    assert boundary_iou(pred, true) == pytest.approx(14 / (20 + 28 - 14))
    # Official: beyond the border is foreground, so true's only edge is column 3 (8 pixels); a pred of
    # 8x5 has column 4. The kernel is 1: no dilation, nothing shared. The full mask has no edge at all.
    assert boundary_iou_official(box(8, 0, 0, 8, 5), true) == 0.0
    assert boundary_iou_official(true, true) == 1.0
    assert boundary_iou_official(pred, true) == 0.0
    assert boundary_iou_official(pred, pred) == 1.0


def test_boundary_iou_official_by_hand() -> None:
    # 8x8: kernel round(0.23) -> 1: the thin boundaries themselves, here the outlines of
    # test_boundary_iou_by_hand.
    assert boundary_iou_official(box(8, 1, 1, 6, 4), box(8, 1, 1, 6, 6)) == pytest.approx(12 / 24)
    # 100x100: kernel 3, radius 1. Single pixels, 2 columns apart: two 3x3 bands share one column of 3.
    pred, true = box(100, 50, 50, 1, 1), box(100, 50, 52, 1, 1)
    assert boundary_iou_official(pred, true) == pytest.approx(3 / (9 + 9 - 3))
    # The canonical band never leaves the mask: the same pixels share nothing.
    assert boundary_iou(pred, true) == 0.0
    # 142x142: diagonal 200.8, x 0.02 = 4.02 -> 4, even -> 5, radius 2: 5x5 bands, 2 columns apart,
    # share 3 columns of 5.
    pred, true = box(142, 70, 70, 1, 1), box(142, 70, 72, 1, 1)
    assert boundary_iou_official(pred, true) == pytest.approx(15 / (25 + 25 - 15))


def test_hd95_by_hand() -> None:
    # Single pixels, 3 rows and 4 columns apart.
    assert metrics.hd95(box(8, 1, 1, 1, 1), box(8, 4, 5, 1, 1)) == pytest.approx(5.0)
    # A row of 21 pixels against its first pixel: distances 0..20, 95th percentile at position
    # 0.95 x 20 = 19; the other direction is 0. The larger counts.
    assert metrics.hd95(box(32, 5, 5, 1, 21), box(32, 5, 5, 1, 1)) == pytest.approx(19.0)
    assert metrics.hd95(box(32, 5, 5, 1, 1), box(32, 5, 5, 1, 21)) == pytest.approx(19.0)


def test_empty_masks() -> None:
    empty, some = np.zeros((6, 8), dtype=bool), np.zeros((6, 8), dtype=bool)
    some[2:4, 2:4] = True
    for metric in OVERLAPS:
        assert metric(empty, empty) == 1.0
        assert metric(empty, some) == metric(some, empty) == 0.0
        assert metric(np.ones((6, 8), dtype=bool), empty) == 0.0
    # sqrt(6^2 + 8^2) = 10.
    assert metrics.hd95(empty, some) == metrics.hd95(some, empty) == pytest.approx(10.0)
    assert metrics.hd95(empty, empty) == 0.0


@pytest.mark.parametrize("metric", [*OVERLAPS, metrics.hd95])
def test_refuses_what_is_not_two_masks(metric) -> None:  # type: ignore[no-untyped-def]
    mask = np.ones((4, 4), dtype=bool)
    with pytest.raises(ValueError, match="must be bool"):
        metric(mask.astype(np.uint8), mask)
    with pytest.raises(ValueError, match="must be bool"):
        metric(mask, mask[None])
    with pytest.raises(ValueError, match="must be bool"):
        metric(mask[:0], mask[:0])
    with pytest.raises(ValueError, match="one shape"):
        metric(mask, mask[:2])


# --- Always ----------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(mask_pairs())
def test_boundary_ious_equal_the_naive_ones(pair: tuple[Mask, Mask]) -> None:
    pred, true = pair
    assert boundary_iou(pred, true) == naive_boundary_iou(pred, true)
    assert boundary_iou_official(pred, true) == naive_boundary_iou_official(pred, true)


@pytest.mark.parametrize("shape", [(512, 512), (300, 700)])
def test_boundary_ious_equal_the_naive_ones_on_large_images(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    for row, col, radius in ((60, 80, 40), (5, 690, 100), (299, 10, 25), (150, 150, 400)):
        true = np.hypot(rows - row, cols - col) < radius
        pred = np.hypot(rows - row - 4, cols - col + 3) < radius * 0.95
        pred ^= rng.random(shape) < 0.001 * true
        assert boundary_iou(pred, true) == naive_boundary_iou(pred, true)
        assert boundary_iou_official(pred, true) == naive_boundary_iou_official(pred, true)


@settings(max_examples=100, deadline=None)
@given(mask_pairs())
def test_overlaps_are_symmetric_fractions(pair: tuple[Mask, Mask]) -> None:
    pred, true = pair
    for metric in OVERLAPS:
        score = metric(pred, true)
        assert 0.0 <= score <= 1.0
        assert score == metric(true, pred)
        assert metric(pred, pred) == 1.0
    overlap = metrics.iou(pred, true)
    assert overlap == ratio(pred, true)
    assert metrics.dice(pred, true) == pytest.approx(2 * overlap / (1 + overlap))
    if pred.any() or true.any():
        counted = 2 * int((pred & true).sum()) / (int(pred.sum()) + int(true.sum()))
        assert metrics.dice(pred, true) == pytest.approx(counted)


@settings(max_examples=40, deadline=None)
@given(mask_pairs())
def test_hd95_equals_the_naive_one(pair: tuple[Mask, Mask]) -> None:
    pred, true = pair
    distance = metrics.hd95(pred, true)
    assert distance == metrics.hd95(true, pred)
    assert 0.0 <= distance <= math.hypot(*pred.shape)
    assert metrics.hd95(pred, pred) == 0.0
    if pred.any() and true.any():
        assert distance == pytest.approx(naive_hd95(pred, true), rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(mask_pairs())
def test_hd95_is_the_same_bits_as_monais(pair: tuple[Mask, Mask]) -> None:
    if not all(mask.any() for mask in pair):
        return
    pred, true = (torch.from_numpy(mask.copy())[None, None] for mask in pair)
    with warnings.catch_warnings():
        # MONAI 1.6 warns at every call about an argument that it sets itself.
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        expected = compute_hausdorff_distance(pred, true, include_background=True, percentile=95)
    assert metrics.hd95(*pair) == expected.item()


@settings(max_examples=40, deadline=None)
@given(mask_pairs(), st.booleans())
def test_score_instance_is_the_single_metrics(pair: tuple[Mask, Mask], with_hd95: bool) -> None:
    pred, true = pair
    assert score_instance(pred, true, with_hd95=with_hd95) == InstanceScores(
        iou=metrics.iou(pred, true),
        dice=metrics.dice(pred, true),
        biou=naive_boundary_iou(pred, true),
        biou_official=naive_boundary_iou_official(pred, true),
        hd95=metrics.hd95(pred, true) if with_hd95 else None,
    )


def test_metrics_leave_their_masks_alone_and_warn_of_nothing() -> None:
    pred, true = box(64, 10, 10, 20, 20), box(64, 12, 12, 20, 20)
    before = pred.copy(), true.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_instance(pred, true, with_hd95=True)
        score_instance(np.asfortranarray(pred), true[::-1], with_hd95=True)
    assert (pred == before[0]).all()
    assert (true == before[1]).all()


# --- Within an image -------------------------------------------------------------------------------


def test_score_image_by_hand() -> None:
    # Image a: IoU 0.2 and 0.6, mean 0.4. Image b: IoU 1.0 alone.
    # Mean over images (0.4 + 1.0) / 2 = 0.7; over instances (0.2 + 0.6 + 1.0) / 3 = 0.6.
    a = score_image([InstanceScores(0.2, 0.3, 0.1, 0.5, 4.0), InstanceScores(0.6, 0.7, 0.3, 0.7, 8.0)])
    b = score_image([InstanceScores(1.0, 1.0, 1.0, 1.0, 0.0)])
    assert (a.n_instances, b.n_instances) == (2, 1)
    assert a.mean == InstanceScores(*(pytest.approx(x) for x in (0.4, 0.5, 0.2, 0.6, 6.0)))
    assert (a.mean.iou + b.mean.iou) / 2 == pytest.approx(0.7)
    assert (a.total.iou + b.total.iou) / (a.n_instances + b.n_instances) == pytest.approx(0.6)


def test_score_image_without_hd95() -> None:
    image = score_image([InstanceScores(0.2, 0.3, 0.1, 0.5, None)] * 2)
    assert image.total.hd95 is None
    assert image.mean.hd95 is None


def test_score_image_refuses_what_has_no_mean() -> None:
    with pytest.raises(ValueError, match="without instances"):
        score_image([])
    with pytest.raises(ValueError, match="1 of 2"):
        score_image([InstanceScores(1, 1, 1, 1, None), InstanceScores(1, 1, 1, 1, 0.0)])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_score_image_does_not_depend_on_the_order(values: list[float], random) -> None:  # type: ignore[no-untyped-def]
    scores = [InstanceScores(value, value, value, value, value) for value in values]
    shuffled = scores.copy()
    random.shuffle(shuffled)
    assert score_image(scores) == score_image(shuffled)
