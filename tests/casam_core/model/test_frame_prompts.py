"""The backbone's frame and the prompts: coordinates there and back, masks where they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from casam_core.model.frame import Frame, frame_of, pad_to_square, resampled, resampled_by_products
from casam_core.model.prompts import (
    Prompts,
    central_points,
    jittered_boxes,
    random_points,
    single_points,
    tight_boxes,
)

SIZES = [(48, 48), (48, 96), (96, 48), (31, 77), (512, 300), (1000, 7)]


def labels_of(height: int, width: int, **boxes: tuple[int, int, int, int]) -> NDArray[np.int32]:
    """labels_HW with rectangles i1=(top, left, bottom, right), ends excluded."""
    labels = np.zeros((height, width), np.int32)
    for name, (top, left, bottom, right) in boxes.items():
        labels[top:bottom, left:right] = int(name.removeprefix("i"))
    return labels


def some(*instances: int) -> NDArray[np.int32]:
    return np.array(instances, np.int32)


# --- Frame -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "inner"),
    [(50, 100, (32, 64)), (100, 50, (64, 32)), (64, 64, (64, 64)), (10, 20, (32, 64)), (3, 1000, (1, 64))],
)
def test_the_longer_side_fills_the_frame(height: int, width: int, inner: tuple[int, int]) -> None:
    frame = Frame(height=height, width=width, side=64)
    assert frame.inner == inner
    assert frame.scale == 64 / max(height, width)


@given(height=st.integers(1, 3000), width=st.integers(1, 3000), side=st.sampled_from([32, 256, 1024]))
def test_the_image_always_fits_the_frame_and_touches_it(height: int, width: int, side: int) -> None:
    inner = Frame(height=height, width=width, side=side).inner
    assert max(inner) == side
    assert min(inner) >= 1


def test_coordinates_are_scaled_like_the_image() -> None:
    frame = Frame(height=50, width=100, side=64)
    assert frame.to_frame(np.array([[100, 50], [25, 0]], np.float32)).tolist() == [[64, 32], [16, 0]]
    boxes = frame.to_frame(np.array([[0, 0, 100, 50], [50, 25, 75, 50]], np.float32))
    assert boxes.tolist() == [[0, 0, 64, 32], [32, 16, 48, 32]]


@settings(max_examples=50)
@given(height=st.integers(1, 500), width=st.integers(1, 500), seed=st.integers(0, 1000))
def test_coordinates_can_be_taken_back_and_stay_inside(height: int, width: int, seed: int) -> None:
    frame = Frame(height=height, width=width, side=256)
    xy = np.random.default_rng(seed).uniform(0, [width, height], (5, 2)).astype(np.float32)
    inside = frame.to_frame(xy)
    inner_height, inner_width = frame.inner
    assert (inside <= np.array([inner_width, inner_height]) * (1 + 1e-6)).all()
    back = inside * np.array([width / inner_width, height / inner_height])
    np.testing.assert_allclose(back, xy, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_labels_keep_their_values_and_the_padding_is_background(size: tuple[int, int]) -> None:
    height, width = size
    labels = np.full((height, width), 7, np.int32)
    labels[: height // 2] = 3
    frame = frame_of(labels, 64)
    small = frame.resize_labels(labels)
    inner_height, inner_width = frame.inner
    assert small.shape == (64, 64)
    assert small.dtype == np.int32
    assert set(np.unique(small[:inner_height, :inner_width])) <= {3, 7}
    assert not small[inner_height:].any()
    assert not small[:, inner_width:].any()


def test_labels_beyond_one_byte_survive() -> None:
    labels = labels_of(8, 8, i70000=(0, 0, 8, 4))
    assert set(np.unique(frame_of(labels, 16).resize_labels(labels))) == {0, 70000}


def test_nearest_labels_by_hand() -> None:
    labels = np.array([[1, 2], [3, 4]], np.int32)
    want = [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert frame_of(labels, 4).resize_labels(labels).tolist() == want


@pytest.mark.parametrize("size", [(48, 48), (48, 96), (96, 48), (61, 97), (300, 200)])
@pytest.mark.parametrize("low", [64, 256])
def test_a_mask_taken_to_the_decoder_and_back_lies_where_it_was(size: tuple[int, int], low: int) -> None:
    height, width = size
    labels = labels_of(height, width, i1=(height // 4, width // 3, height - 6, width - 5))
    logits = torch.from_numpy(frame_of(labels, low).resize_labels(labels)).float() * 20 - 10
    back = frame_of(labels, 256).restore(logits[None])[0].numpy() > 0
    truth = labels > 0
    assert back.shape == (height, width)
    assert (back & truth).sum() / (back | truth).sum() >= 0.9


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3)])
def test_tiny_images_go_there_and_back(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 9, np.uint8)
    frame = frame_of(image, 64)
    assert frame.resize_image(image).shape == (*frame.inner, 3)
    assert (frame.resize_image(image) == 9).all()
    assert frame.restore(torch.ones(2, 16, 16)).shape == (2, *size)


def test_padding_is_zero_at_the_right_and_bottom() -> None:
    padded = pad_to_square(torch.ones(3, 2, 5), 6)
    assert padded.shape == (3, 6, 6)
    assert padded.sum() == 3 * 2 * 5
    assert padded[:, :2, :5].all()


# --- Prompts ---------------------------------------------------------------------------------------


def test_boxes_name_the_first_and_the_last_pixel() -> None:
    labels = labels_of(10, 12, i1=(2, 3, 5, 9), i4=(7, 0, 8, 1))
    assert tight_boxes(labels, some(4, 1)).xy.tolist() == [[0, 7, 0, 7], [3, 2, 8, 4]]


def test_a_box_encloses_separate_parts_of_one_instance() -> None:
    labels = labels_of(10, 10, i1=(1, 1, 2, 2)) + labels_of(10, 10, i1=(8, 6, 9, 7))
    assert tight_boxes(labels, some(1)).xy.tolist() == [[1, 1, 6, 8]]


@settings(max_examples=30)
@given(amount=st.floats(0, 0.5), seed=st.integers(0, 1000))
def test_a_jittered_box_moves_by_at_most_its_share_and_stays_in_the_image(amount: float, seed: int) -> None:
    labels = labels_of(20, 30, i1=(0, 0, 5, 10), i2=(12, 18, 20, 30))
    tight = tight_boxes(labels, some(1, 2)).xy
    moved = jittered_boxes(labels, some(1, 2), amount, np.random.default_rng(seed)).xy
    extent = np.array([[10, 5, 10, 5], [12, 8, 12, 8]])
    assert (np.abs(moved - tight) <= amount * extent + 1e-5).all()
    assert (moved >= 0).all()
    assert (moved <= np.array([29, 19, 29, 19])).all()
    assert (moved[:, :2] <= moved[:, 2:]).all()


@settings(max_examples=30)
@given(seed=st.integers(0, 1000))
def test_a_random_point_lies_on_its_instance(seed: int) -> None:
    labels = labels_of(9, 9, i1=(0, 0, 2, 9), i2=(5, 5, 6, 6))
    points = random_points(labels, some(1, 2), np.random.default_rng(seed)).xy.astype(int)
    assert [labels[y, x] for x, y in points] == [1, 2]


def test_random_points_reach_every_pixel_of_the_instance() -> None:
    labels = labels_of(4, 4, i1=(1, 1, 3, 3))
    rng = np.random.default_rng(0)
    drawn = {tuple(random_points(labels, some(1), rng).xy[0]) for _ in range(60)}
    assert drawn == {(1, 1), (1, 2), (2, 1), (2, 2)}


def test_the_central_point_lies_deepest_also_at_the_images_edge() -> None:
    labels = labels_of(9, 20, i1=(0, 0, 5, 5), i2=(2, 10, 9, 17))
    assert central_points(labels, some(1, 2)).xy.tolist() == [[2, 2], [13, 5]]


def test_the_central_point_of_a_ring_lies_on_the_ring() -> None:
    labels = labels_of(9, 9, i1=(0, 0, 9, 9))
    labels[3:6, 3:6] = 0
    x, y = central_points(labels, some(1)).xy[0].astype(int)
    assert labels[y, x] == 1
    assert (x, y) == (1, 1)  # the first in reading order of the deepest


def test_prompts_go_into_the_frame_and_keep_their_kind() -> None:
    frame = Frame(height=10, width=20, side=40)
    points = single_points([[5, 5]]).into(frame)
    boxes = Prompts(boxes_N4=np.array([[0, 1, 2, 3]], np.float32)).into(frame)
    assert points.boxes_N4 is None
    assert points.xy.tolist() == [[10, 10]]
    assert boxes.points_NP2 is None
    assert boxes.xy.tolist() == [[0, 2, 4, 6]]


def test_prompts_can_be_counted_and_sliced() -> None:
    boxes, points = np.zeros((5, 4), np.float32), np.zeros((5, 2), np.float32)
    for prompts in (Prompts(boxes_N4=boxes), single_points(points)):
        assert len(prompts) == 5
        assert len(prompts[1:3]) == 2
        assert prompts[1:3].xy.shape[1] == prompts.xy.shape[1]


def test_no_instances_give_no_prompts() -> None:
    labels = labels_of(4, 4, i1=(0, 0, 1, 1))
    assert tight_boxes(labels, some()).xy.shape == (0, 4)
    assert random_points(labels, some(), np.random.default_rng(0)).xy.shape == (0, 2)
    assert central_points(labels, some()).xy.shape == (0, 2)


def test_a_prompt_may_have_a_box_points_and_an_earlier_mask_at_once() -> None:
    boxes, masks = np.array([[0, 1, 2, 3]], np.float32), np.ones((1, 8, 8), np.float32)
    points, labels = np.array([[[5, 5], [6, 2]]], np.float32), np.array([[1, 0]])
    both = Prompts(boxes_N4=boxes, points_NP2=points, labels_NP=labels, masks_Nhw=masks)
    placed = both.into(Frame(height=10, width=20, side=40))[:1]
    assert placed.xy.tolist() == [[0, 2, 4, 6]]
    assert placed.points_NP2 is not None
    assert placed.points_NP2.tolist() == [[[10, 10], [12, 4]]]
    assert placed.labels_NP is not None
    assert placed.labels_NP.tolist() == [[1, 0]]
    assert placed.masks_Nhw is not None
    assert placed.masks_Nhw.shape == (1, 8, 8)
    assert len(both[:0]) == 0


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({}, "boxes, points or both"),
        ({"masks_Nhw": np.zeros((1, 8, 8))}, "boxes, points or both"),
        ({"boxes_N4": np.zeros((1, 4)), "points_NP2": np.zeros((2, 1, 2))}, "same number"),
        ({"boxes_N4": np.zeros((2, 4)), "masks_Nhw": np.zeros((1, 8, 8))}, "same number"),
        ({"points_NP2": np.zeros((1, 2, 2)), "labels_NP": np.ones((1, 3), int)}, "one label per point"),
        ({"boxes_N4": np.zeros((1, 4)), "labels_NP": np.ones((1, 1), int)}, "one label per point"),
    ],
)
def test_parts_of_prompts_that_do_not_fit_are_refused(parts: dict[str, NDArray[Any]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Prompts(**parts)


@pytest.mark.parametrize("size", [(64, 64), (7, 33), (100, 19)])
def test_an_accelerator_resamples_by_products_of_matrices(size: tuple[int, int]) -> None:
    x_Nhw = torch.randn(3, 16, 24, requires_grad=True)
    found, wanted = resampled_by_products(x_Nhw, size), resampled(x_Nhw, size)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.square().sum(), x_Nhw)
    (wanted_gradient,) = torch.autograd.grad(wanted.square().sum(), x_Nhw)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-4)
