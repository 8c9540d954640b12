"""Windows around boxes, and the rows that stand for the cells outside."""

from __future__ import annotations

import math

import numpy as np
import torch

from casam_core.model.backbones.window import Window, whole, windows_around
from casam_core.model.prompts import Prompts, single_points

BOXES = np.array([[100, 40, 119, 43], [0, 0, 255, 255], [3.9, 4.0, 3.9, 4.0]], np.float32)


def test_a_window_is_the_box_and_four_cells_around_it_in_whole_blocks_by_hand() -> None:
    # 64 cells of 4 pixels: the first box has cells 25 to 29 and 10, so with the margin 21 to 33 and 6 to 14.
    assert windows_around(Prompts(boxes_N4=BOXES), cells=64, side=256, pooled=False) == [
        Window(top=4, bottom=16, left=20, right=36),
        whole(64),
        Window(top=0, bottom=8, left=0, right=8),
    ]


def test_the_window_of_a_point_is_the_whole_frame() -> None:
    found = windows_around(single_points(BOXES[:, :2]), cells=64, side=256, pooled=True)
    assert found == [whole(64)] * 3


def test_every_cell_is_one_row_and_the_window_comes_first() -> None:
    index_P, weight_P = Window(1, 3, 2, 4).rows(cells=8)
    assert index_P[:4].tolist() == [10, 11, 18, 19]
    assert sorted(index_P.tolist()) == list(range(64))
    assert not weight_P.any()


def test_a_block_outside_is_one_row_that_counts_sixteen_times() -> None:
    index_P, weight_P = Window(4, 8, 0, 4, pooled=True).rows(cells=8)
    assert index_P[:16].tolist() == [32, 33, 34, 35, 40, 41, 42, 43, 48, 49, 50, 51, 56, 57, 58, 59]
    assert index_P[16:].tolist() == [64, 65, 67]  # of four blocks after 64 cells, the third is the window
    torch.testing.assert_close(weight_P[16:], torch.full((3,), math.log(16)))
    assert not weight_P[:16].any()
    assert float(weight_P.exp().sum()) == 64
