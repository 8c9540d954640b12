"""All instances of an image without a prompt: boxes inside the image, none twice, the surest first."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

from casam_core.bank import finding
from casam_core.bank.finding import box_of, distinct, find
from casam_core.model.backbones import Backbone
from casam_core.model.forms.finder import Finder, kinds_of, targets_of
from casam_core.model.frame import Frame


class Knowing(Finder):
    """A finder that says boxes in pixels of the frame; it looks at no image."""

    def __init__(self, boxes_N4: list[list[float]], backbone: Backbone) -> None:
        super().__init__(backbone.geometry.channels)
        cells, boxes = backbone.geometry.cells, np.array(boxes_N4, np.float32)
        self.said_NHW, kind_N = torch.full((10, cells, cells), -9.0), kinds_of(boxes)
        for kind in set(kind_N.tolist()):
            heat_HW, box_4HW = targets_of(boxes[kind_N == kind], cells, backbone.geometry.side / cells)
            logit_1HW = torch.logit(heat_HW.clamp(1e-4, 1 - 1e-4))[None]
            self.said_NHW[5 * kind : 5 * kind + 5] = torch.cat([logit_1HW, box_4HW])

    def forward(self, z_BCHW: Tensor) -> Tensor:
        return self.said_NHW[None]


def test_boxes_that_overlap_by_half_are_one_instance() -> None:
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 4], [0, 0, 9, 3], [20, 20, 29, 29]], np.float32)
    # The second has half of the first's area, the third two fifths.
    assert distinct(boxes, 0.5).tolist() == [0, 2, 3]
    assert distinct(boxes[:0], 0.5).tolist() == []
    assert distinct(boxes, 0.5, np.array([0, 1, 1, 0])).tolist() == [0, 1, 3]  # the third: 4/5 of the second


def test_the_box_of_a_mask() -> None:
    mask_HW = np.zeros((6, 8), bool)
    mask_HW[2:4, 3:7] = True
    assert box_of(mask_HW).tolist() == [3, 2, 6, 3]


def test_boxes_of_the_frame_are_cut_at_the_image_or_left_out() -> None:
    frame = Frame(height=50, width=100, side=64)  # 32 rows of the frame
    boxes_N4, inside_N = frame.boxes_to_image(
        np.array([[16, 8, 32, 16], [-5, 20, 10, 40], [0, 40, 9, 60]], np.float32)
    )
    assert inside_N.tolist() == [True, True, False]
    assert_allclose(boxes_N4[:2], [[25, 12.5, 50, 25], [0, 31.25, 15.625, 49]])


def test_masks_of_the_found_boxes_the_surest_first(tiny: Backbone) -> None:
    z_CHW = tiny.encode([np.full((64, 64, 3), 90, np.uint8)])[0]
    finder = Knowing([[4, 4, 20, 20], [36, 40, 60, 60]], tiny)
    found = find(tiny, finder, None, z_CHW, z_CHW, Frame(64, 64, tiny.geometry.side))
    n = len(found.masks_NHW)
    assert found.masks_NHW.shape[1:] == (64, 64)
    assert len(found.boxes) == len(found.iou_N) == len(found.scores_N) == n <= 2
    assert np.all(np.diff(found.scores_N) <= 0)
    assert found.masks_NHW.any((1, 2)).all()


def test_an_instance_and_the_one_around_it_are_both_found(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their boxes have an IoU of 0.79 and one centre: of one kind, the second would be the first again."""

    def filled(*args: object) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each box as its mask."""
        for x0, y0, x1, y1 in np.rint(args[3].boxes_N4).astype(int):  # type: ignore[attr-defined]
            mask_HW = np.zeros((64, 64), bool)
            mask_HW[y0 : y1 + 1, x0 : x1 + 1] = True
            yield mask_HW[None], np.array([0.9], np.float32)

    monkeypatch.setattr(finding, "decode_masks", filled)
    z_CHW = tiny.encode([np.full((64, 64, 3), 90, np.uint8)])[0]
    nested = [[16, 16, 47, 47], [14, 14, 49, 49], [2, 2, 9, 9]]
    seen = find(tiny, Knowing(nested, tiny), None, z_CHW, z_CHW, Frame(64, 64, tiny.geometry.side))
    assert sorted(np.rint(seen.boxes.xy).astype(int).tolist()) == sorted(nested)


@pytest.mark.parametrize("finder", [None, Finder(32)])
def test_no_finder_and_a_new_one_find_nothing(tiny: Backbone, finder: Finder | None) -> None:
    z_CHW = tiny.encode([np.full((64, 64, 3), 90, np.uint8)])[0]
    found = find(tiny, finder, None, z_CHW, z_CHW, Frame(48, 64, tiny.geometry.side))
    assert found.masks_NHW.shape == (0, 48, 64)
    assert len(found.boxes) == 0
