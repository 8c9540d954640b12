"""The finder: a small head that says where the instances of a task are, so that nobody has to draw boxes.

It reads the frozen embedding, not the aligned one. So a layer has the same bits with and without a finder,
and a task that keeps frozen SAM can still have one. Per cell it gives a score that an instance has its centre
there, the way to the centre and the size of the box (CenterNet; Zhou et al. 2019, Objects as Points). It says
this twice, for instances around another one and for all others: a heart's wall and its chamber have one
centre. Its arrays are a part of the layer's (`finder.*`), so they are merged, released and unlearned with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from casam_core.model.prompts import Prompts

PREFIX = "finder."
"""Of the names of its arrays among the layer's."""

HIDDEN, KERNEL = 64, 5
LEARNING_RATE = 1e-2
"""Adam's, without noise, whatever the form of the layer. An embedding's values scatter by 0.1 only, so with
few centres to learn from a lower rate takes more than the default's steps (docs/log.md)."""
FALLING = 0.3
"""The share of a round's steps, the last ones, over which that rate falls to zero: if it stays, the last few
images decide what a finder finds (docs/log.md)."""

RARE = -4.0
"""The first score of every cell: centres are rare."""
MISS, HIT = 2, 4
"""Exponents of CenterNet's focal loss: of a cell's error, and of its distance from a centre."""
NEAR = 0.3
"""Cells with at least this target also learn the box."""
KINDS = 2
"""Of instances that are found apart: all others, and those around another one."""
NUMBERS = 5
"""What a finder says of a kind at a cell."""
ALIKE = 0.6
"""Cells whose boxes have at least this IoU with a centre's box have a say in it."""


class Finder(nn.Module):
    """18,762 parameters at C = 256: 38 KB in an entry. A new one finds nothing: its last layer is zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(channels, HIDDEN, 1)
        self.around = nn.Conv2d(HIDDEN, HIDDEN, KERNEL, padding=KERNEL // 2, groups=HIDDEN)
        self.out = nn.Conv2d(HIDDEN, KINDS * NUMBERS, 1)
        for value in self.out.parameters():
            nn.init.zeros_(value)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        """out_BNHW, five numbers of each kind: logit of the score, x and y of the way to the centre in cells,
        log of width and height in cells."""
        narrow_BDHW = F.gelu(self.narrow(z_BCHW))
        out_BNHW: Tensor = self.out(F.gelu(narrow_BDHW + self.around(narrow_BDHW)))
        return out_BNHW + torch.tensor([RARE, 0, 0, 0, 0] * KINDS, device=out_BNHW.device)[:, None, None]


def finds(weights: Mapping[str, NDArray[Any]]) -> bool:
    """Whether a layer's arrays hold a finder that has learned something."""
    last = weights.get(f"{PREFIX}out.weight")
    return last is not None and bool(np.any(last))


def without_finder(weights: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The arrays of the layer alone."""
    return {name: value for name, value in weights.items() if not name.startswith(PREFIX)}


def with_all_kinds(weights: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The arrays of a layer; a finder of an earlier version, which knew one kind, finds none of the other."""
    last = {name: value for name, value in weights.items() if name.startswith(f"{PREFIX}out.")}
    one_kind = {name: value for name, value in last.items() if len(value) == NUMBERS}
    padded = {name: np.concatenate([value, np.zeros_like(value)]) for name, value in one_kind.items()}
    return {**weights, **padded}


def targets_of(boxes_N4: NDArray[np.float32], cells: int, stride: float) -> tuple[Tensor, Tensor]:
    """(heat_HW, box_4HW) that the finder should give for the boxes of all instances, in pixels of the frame.

    heat_HW: 1 at the cell of a centre, a Gaussian of the box's size around it. box_4HW: way and size as in
    `Finder.forward`, of the instance that is nearest by this measure. cells: along a side of the embedding.
    stride: the side of a cell, in pixels of the frame.
    """
    x0_N, y0_N, x1_N, y1_N = torch.from_numpy(boxes_N4 / np.float32(stride)).T
    across = torch.arange(cells) + 0.5
    x_N, y_N = (x0_N + x1_N) / 2, (y0_N + y1_N) / 2
    width_N, height_N = (x1_N - x0_N).clamp(min=1 / stride), (y1_N - y0_N).clamp(min=1 / stride)

    def bell(at_N: Tensor, size_N: Tensor) -> Tensor:
        middle_N = at_N.floor().clamp(0, cells - 1) + 0.5
        return torch.exp(-0.5 * ((across - middle_N[:, None]) / (0.15 * size_N + 0.3)[:, None]) ** 2)

    heat_NHW = bell(y_N, height_N)[:, :, None] * bell(x_N, width_N)[:, None, :]
    heat_HW, owner_HW = heat_NHW.max(0)
    way_x_HW = x_N[owner_HW] - across[None, :]
    way_y_HW = y_N[owner_HW] - across[:, None]
    return heat_HW, torch.stack([way_x_HW, way_y_HW, width_N.log()[owner_HW], height_N.log()[owner_HW]])


def kinds_of(boxes_N4: NDArray[np.float32]) -> NDArray[np.int64]:
    """kind_N: 1 for a box that holds another one, with the centres less than a quarter of its sides apart."""
    low_N2, high_N2 = boxes_N4[:, :2], boxes_N4[:, 2:] + 1
    sides_N2, centres_N2 = high_N2 - low_N2, (low_N2 + high_N2) / 2
    holds_NN2 = (low_N2[:, None] <= low_N2 + 1) & (high_N2[:, None] >= high_N2 - 1)
    near_NN2 = np.abs(centres_N2[:, None] - centres_N2) <= sides_N2[:, None] / 4
    larger_NN = sides_N2.prod(1)[:, None] > sides_N2.prod(1)
    around_N: NDArray[np.bool_] = ((holds_NN2 & near_NN2).all(2) & larger_NN).any(1)
    return around_N.astype(np.int64)


def finder_loss(out_NHW: Tensor, boxes_M4: NDArray[np.float32], stride: float) -> Tensor:
    """The sum over kinds of CenterNet's focal loss per instance, plus the mean error of way and log size near
    the centres. boxes_M4: of all instances of an image, in pixels of the frame; at least one. stride: the
    side of a cell, in the same pixels."""
    kind_M = kinds_of(boxes_M4)
    parts = zip(
        torch.split(out_NHW, NUMBERS), (boxes_M4[kind_M == kind] for kind in range(KINDS)), strict=True
    )
    return torch.stack([loss_of_kind(out_5HW, own_K4, stride) for out_5HW, own_K4 in parts]).sum()


def loss_of_kind(out_5HW: Tensor, boxes_N4: NDArray[np.float32], stride: float) -> Tensor:
    """One kind's part of the loss, of an image with N instances of it; N may be 0."""
    logit_HW, score_HW = out_5HW[0], torch.sigmoid(out_5HW[0])
    if len(boxes_N4) == 0:
        return -(score_HW**MISS * F.logsigmoid(-logit_HW)).sum()
    heat_HW, box_4HW = (t.to(out_5HW.device) for t in targets_of(boxes_N4, out_5HW.shape[-1], stride))
    hit_HW = (1 - score_HW) ** MISS * F.logsigmoid(logit_HW) * (heat_HW == 1)
    avoided_HW = (1 - heat_HW) ** HIT * score_HW**MISS * F.logsigmoid(-logit_HW)
    weight_HW = heat_HW * (heat_HW >= NEAR)
    error_HW = F.smooth_l1_loss(out_5HW[1:], box_4HW, reduction="none", beta=0.2).sum(0)
    box = (weight_HW * error_HW).sum() / weight_HW.sum().clamp(min=1e-6)
    return box - (hit_HW + avoided_HW).sum() / len(boxes_N4)


@dataclass(frozen=True)
class Centres:
    """What a finder says of an image, the surest first: boxes in pixels of the frame, score_N, kind_N."""

    boxes: Prompts
    score_N: NDArray[np.float32]
    kind_N: NDArray[np.int64]


@torch.no_grad()
def found(out_NHW: Tensor, stride: float, least: float, most: int) -> Centres:
    """Cells that no neighbour surpasses, of every kind.

    A box is the mean of what the cells around say of the same instance, weighted by their scores and by their
    boxes' IoU with the centre's own (box voting, Gidaris and Komodakis 2015).

    stride: the side of a cell, in pixels of the frame. least: the smallest score. most: how
    many boxes at most.
    """
    parts = [centres_of(out_5HW, least) for out_5HW in torch.split(out_NHW.float(), NUMBERS)]
    boxes_N4, score_N = (torch.cat(part) for part in zip(*parts, strict=True))
    kind_N = np.repeat(np.arange(len(parts)), [len(own_K4) for own_K4, _ in parts])
    order_N = torch.argsort(score_N, descending=True, stable=True)[:most].cpu().numpy()
    boxes_N4, score_N = (boxes_N4 * stride).cpu().numpy()[order_N], score_N.cpu().numpy()[order_N]
    return Centres(Prompts(boxes_N4=boxes_N4), score_N, kind_N[order_N])


def centres_of(out_5HW: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """(boxes_N4 in cells, score_N) of one kind."""
    score_HW, boxes_HW4 = torch.sigmoid(out_5HW[0]), boxes_of(out_5HW)
    peak_HW = (score_HW == F.max_pool2d(score_HW[None, None], 3, 1, 1)[0, 0]) & (score_HW >= least)
    heard_HW = score_HW >= least / 2
    score_V, boxes_V4 = score_HW[heard_HW], boxes_HW4[heard_HW]
    iou_NV = iou_of_boxes(boxes_HW4[peak_HW], boxes_V4)
    weight_NV = iou_NV * score_V * (iou_NV >= ALIKE)
    return weight_NV @ boxes_V4 / weight_NV.sum(1, keepdim=True), score_HW[peak_HW]


def boxes_of(out_5HW: Tensor) -> Tensor:
    """boxes_HW4 that a finder's cells say: x0, y0, x1, y1, in cells."""
    height, width = out_5HW.shape[1:]
    across = torch.arange(max(height, width), device=out_5HW.device) + 0.5
    x_HW, y_HW = across[None, :width] + out_5HW[1], across[:height, None] + out_5HW[2]
    half_x_HW, half_y_HW = out_5HW[3:].clamp(-5, 5).exp() / 2
    return torch.stack([x_HW - half_x_HW, y_HW - half_y_HW, x_HW + half_x_HW, y_HW + half_y_HW], -1)


def iou_of_boxes(a_N4: Tensor, b_M4: Tensor) -> Tensor:
    """iou_NM of each pair of boxes."""
    low_NM2 = torch.maximum(a_N4[:, None, :2], b_M4[:, :2])
    high_NM2 = torch.minimum(a_N4[:, None, 2:], b_M4[:, 2:])
    both_NM = (high_NM2 - low_NM2).clamp(min=0).prod(-1)
    area_N, area_M = (a_N4[:, 2:] - a_N4[:, :2]).prod(-1), (b_M4[:, 2:] - b_M4[:, :2]).prod(-1)
    return both_NM / (area_N[:, None] + area_M - both_NM)
