"""Segment all instances of an image without a prompt: the finder's boxes, SAM's masks, no instance twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casam_core.bank.inference import decode_masks
from casam_core.model.backbones import Backbone
from casam_core.model.forms import AlignmentLayer
from casam_core.model.forms.finder import Finder, found, iou_of_boxes
from casam_core.model.frame import Frame
from casam_core.model.prompts import Prompts, tight_boxes

LEAST = 0.2
"""Smallest score of a centre, chosen on phantoms of six modalities (docs/log.md)."""
MOST = 512
"""Most boxes of an image."""
SAME = 0.5
"""Two boxes of one kind with at least this IoU are one instance; of two masks, those of their tight boxes."""


@dataclass(frozen=True)
class Found:
    """The instances of one image, the surest first: masks_NHW; boxes, in pixels of the image; iou_N, the
    decoder's estimates; scores_N, in [0, 1]: the finder's score times the estimate."""

    masks_NHW: NDArray[np.bool_]
    boxes: Prompts
    iou_N: NDArray[np.float32]
    scores_N: NDArray[np.float32]


@torch.no_grad()
def find(
    backbone: Backbone,
    finder: Finder | None,
    layer: AlignmentLayer | None,
    z_CHW: Tensor,
    aligned_CHW: Tensor,
    frame: Frame,
) -> Found:
    """The instances of an image.

    finder: None finds nothing. z_CHW: the frozen embedding, for the finder. aligned_CHW: what `layer` made of
    it, for the decoder.
    """
    if finder is None:
        return nothing(frame)
    geometry = backbone.geometry
    out_NHW = finder.to(z_CHW.device)(z_CHW[None])[0]
    centres = found(out_NHW, geometry.side / geometry.cells, LEAST, MOST)
    boxes_N4, inside_N = frame.boxes_to_image(centres.boxes.xy)
    boxes_N4, scores_N, kind_N = boxes_N4[inside_N], centres.score_N[inside_N], centres.kind_N[inside_N]
    first_N = distinct(boxes_N4, SAME, kind_N)
    boxes_N4, scores_N, kind_N = boxes_N4[first_N], scores_N[first_N], kind_N[first_N]
    if len(boxes_N4) == 0:
        return nothing(frame)
    parts = list(decode_masks(backbone, aligned_CHW, frame, Prompts(boxes_N4=boxes_N4), layer))
    masks_NHW, iou_N = np.concatenate([m for m, _ in parts]), np.concatenate([i for _, i in parts])
    scores_N = np.where(masks_NHW.any((1, 2)), scores_N * iou_N.clip(0, 1), 0).astype(np.float32)
    order_N = np.argsort(-scores_N, kind="stable")[: np.count_nonzero(scores_N)]
    tight_N4 = np.array([box_of(masks_NHW[i]) for i in order_N], np.float32)
    kept_N = order_N[distinct(tight_N4, SAME, kind_N[order_N])]
    return Found(masks_NHW[kept_N], Prompts(boxes_N4=boxes_N4[kept_N]), iou_N[kept_N], scores_N[kept_N])


def nothing(frame: Frame) -> Found:
    """No instance."""
    none_N = np.zeros(0, np.float32)
    masks_NHW = np.zeros((0, frame.height, frame.width), bool)
    return Found(masks_NHW, Prompts(boxes_N4=np.zeros((0, 4), np.float32)), none_N, none_N)


def distinct(
    boxes_N4: NDArray[np.float32], same: float, kind_N: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Greedy non-maximum suppression: indices of the boxes that no earlier kept box overlaps by `same`.

    boxes_N4: in pixels; the last row and column belong to a box. kind_N: boxes of different kinds do not
    suppress each other; None: all are of one.
    """
    ends_N4 = torch.from_numpy(boxes_N4.reshape(-1, 4)).double() + torch.tensor([0, 0, 1, 1])
    alike_NN = (iou_of_boxes(ends_N4, ends_N4) >= same).numpy()
    if kind_N is not None:
        alike_NN &= kind_N[:, None] == kind_N
    kept: list[int] = []
    for i in range(len(boxes_N4)):
        if not alike_NN[i, kept].any():
            kept.append(i)
    return np.array(kept, np.int64)


def box_of(mask_HW: NDArray[np.bool_]) -> NDArray[np.float32]:
    """x0, y0, x1, y1 of a mask that is not empty."""
    box_4: NDArray[np.float32] = tight_boxes(mask_HW.astype(np.int32), np.ones(1, np.int32)).xy[0]
    return box_4
