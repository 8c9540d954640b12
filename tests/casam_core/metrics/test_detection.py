"""Masks without prompts against the truth: who matches whom, worked out by hand."""

from __future__ import annotations

import numpy as np

from casam_core.metrics.detection import matched

TRUE = np.zeros((4, 8), np.int32)
TRUE[:, :2], TRUE[:, 4:8] = 3, 5
"""Instance 3 has 8 pixels, instance 5 has 16."""


def mask(rows: slice, columns: slice) -> np.ndarray:
    out = np.zeros(TRUE.shape, bool)
    out[rows, columns] = True
    return out


EVERY = slice(None)


def test_the_surest_mask_takes_the_instance_and_a_second_one_is_no_hit() -> None:
    masks = np.array([mask(EVERY, slice(4, 7)), mask(EVERY, slice(4, 8)), mask(EVERY, slice(0, 2))])
    of_image, index_of = matched(masks, np.array([0.9, 0.8, 0.7], np.float32), TRUE)
    assert of_image.hits_N.tolist() == [True, False, True]
    assert of_image.iou_M.tolist() == [1.0, 0.75]
    assert index_of == {5: 0, 3: 2}


def test_below_half_is_no_hit() -> None:
    of_image, index_of = matched(mask(slice(0, 1), slice(4, 8))[None], np.ones(1, np.float32), TRUE)
    assert not of_image.hits_N.any()
    assert index_of == {}
    assert of_image.iou_M.tolist() == [0, 0]


def test_nothing_found_and_nothing_there() -> None:
    nothing = np.zeros((0, *TRUE.shape), bool)
    of_image, index_of = matched(nothing, np.zeros(0, np.float32), TRUE)
    assert (len(of_image.hits_N), index_of) == (0, {})
    empty, _ = matched(mask(EVERY, EVERY)[None], np.ones(1, np.float32), np.zeros_like(TRUE))
    assert empty.hits_N.tolist() == [False]
