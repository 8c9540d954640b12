"""Simulated clicks lie where a mask is most wrong."""

from __future__ import annotations

import numpy as np

from casam_core.bank.clicking import next_click

OBJECT = np.zeros((20, 30), bool)
OBJECT[4:11, 6:17] = True  # 7 rows, 11 columns


def test_the_first_click_is_the_middle_of_the_object() -> None:
    assert next_click(OBJECT, OBJECT & False) == (9, 7, 1)  # the first by rows of those 4 pixels deep


def test_the_next_click_is_the_middle_of_the_largest_wrong_region() -> None:
    predicted = OBJECT.copy()
    predicted[4:7, 6:9] = False  # 3 x 3 missed
    assert next_click(OBJECT, predicted) == (7, 5, 1)
    predicted[13:18, 20:25] = True  # 5 x 5 too many
    assert next_click(OBJECT, predicted) == (22, 15, 0)


def test_a_missed_pixel_comes_before_one_too_many() -> None:
    predicted = OBJECT.copy()
    predicted[4:7, 6:9] = False
    predicted[0:3, 20:23] = True
    assert next_click(OBJECT, predicted) == (7, 5, 1)


def test_the_edge_of_the_image_ends_a_region() -> None:
    whole = np.ones((9, 9), bool)
    assert next_click(whole, ~whole) == (4, 4, 1)


def test_no_click_is_made_twice_and_none_on_a_right_mask() -> None:
    one = np.zeros((5, 5), bool)
    one[2, 2:4] = True
    first = next_click(one, one & False)
    assert first == (2, 2, 1)
    second = next_click(one, one & False, [first])
    assert second == (3, 2, 1)
    assert next_click(one, one & False, [first, second]) is None
    assert next_click(one, one) is None
