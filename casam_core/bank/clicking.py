"""Simulated clicks on one object: a person corrects a mask where it is most wrong.

As in RITM (Sofiiuk et al. 2021) and SAM (Kirillov et al. 2023) each click lies in the middle of the largest
wrong region, and the decoder gets all clicks so far, and the logits of the mask before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from casam_core.model.backbones import Backbone
from casam_core.model.forms import AlignmentLayer
from casam_core.model.frame import frame_of
from casam_core.model.prompts import Prompts, tight_boxes

Mask = NDArray[np.bool_]
Click = tuple[int, int, int]
"""x and y of a pixel; 1 if it belongs to the object, else 0."""


def next_click(true_HW: Mask, predicted_HW: Mask, clicked: Iterable[Click] = ()) -> Click | None:
    """The pixel that is deepest in a wrong region; None if no pixel is wrong that was not clicked already.

    The edge of the image ends a region. Of pixels that are equally deep: a missed one before one too many,
    then the first by rows.

    Args:
        true_HW: the object.
        predicted_HW: the mask so far.
        clicked: clicks so far, which are not made again.
    """
    best: Click | None = None
    deepest = 0.0
    for label, wrong_HW in ((1, true_HW & ~predicted_HW), (0, predicted_HW & ~true_HW)):
        for rows, columns in ndimage.find_objects(wrong_HW.astype(np.int8)):  # one place: all that is wrong
            depth_hw = ndimage.distance_transform_edt(np.pad(wrong_HW[rows, columns], 1))[1:-1, 1:-1]
            for x, y, _ in clicked:
                if rows.start <= y < rows.stop and columns.start <= x < columns.stop:
                    depth_hw[y - rows.start, x - columns.start] = 0
            row, column = np.unravel_index(int(np.argmax(depth_hw)), depth_hw.shape)
            if depth_hw[row, column] > deepest:
                deepest = float(depth_hw[row, column])
                best = int(columns.start + column), int(rows.start + row), label
    return best


@torch.no_grad()
def masks_by_clicks(
    backbone: Backbone,
    z_CHW: Tensor,
    layer: AlignmentLayer | None,
    true_HW: Mask,
    clicks: int,
    *,
    box: bool,
    mask: bool = True,
) -> Iterator[Mask]:
    """predicted_HW of one object after 0, 1, ..., `clicks` clicks, in pixels of the image.

    Args:
        z_CHW: on the backbone's device, aligned by `layer`.
        box: its tight box comes first; without one, 0 clicks give an empty mask.
        mask: the mask before is a prompt, too.
    """
    labels_HW = true_HW.astype(np.int32)
    frame = frame_of(labels_HW, backbone.geometry.side)
    boxes_14 = tight_boxes(labels_HW, np.ones(1, np.int32)).boxes_N4 if box else None
    decoder = layer.decoder(backbone.mask_decoder) if layer is not None else None
    made: list[Click] = []
    predicted_HW, logits_1hw = np.zeros_like(true_HW), None
    for count in range(clicks + 1):
        if count and (click := next_click(true_HW, predicted_HW, made)):
            made.append(click)
        if len(made) == count and (made or box):  # else all is right, or there is no prompt yet
            clicks_P3 = np.array(made, np.float32).reshape(-1, 3)
            prompts = Prompts(
                boxes_N4=boxes_14,
                points_NP2=clicks_P3[None, :, :2] if made else None,
                labels_NP=clicks_P3[None, :, 2].astype(np.int64) if made else None,
                masks_Nhw=logits_1hw if mask else None,
            )
            decoded_1hw, _ = backbone.decode(z_CHW, prompts.into(frame), decoder)
            logits_1hw = decoded_1hw.cpu().numpy()
            predicted_HW = (frame.restore(decoded_1hw)[0] > 0).cpu().numpy()
        yield predicted_HW
