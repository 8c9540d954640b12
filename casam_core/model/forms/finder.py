"""The finder: a small head that says where the instances of a task are, so that nobody has to draw boxes.

It reads the frozen embedding, not the aligned one. So a layer has the same bits with and without a finder,
and a task that keeps frozen SAM can still have one. Per cell it gives a score that an instance has its centre
there, the way to the centre and the size of the box (CenterNet; Zhou et al. 2019, Objects as Points). Its
arrays are a part of the layer's (`finder.*`), so they are merged, released and unlearned with them.
"""

from __future__ import annotations

from collections.abc import Mapping
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
LEARNING_RATE = 3e-3
"""Adam's, without noise, whatever the form of the layer."""

RARE = -4.0
"""The first score of every cell: centres are rare."""
MISS, HIT = 2, 4
"""Exponents of CenterNet's focal loss: of a cell's error, and of its distance from a centre."""
NEAR = 0.3
"""Cells with at least this target also learn the box."""


class Finder(nn.Module):
    """18,437 parameters at C = 256: 37 KB in an entry. A new one finds nothing: its last layer is zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(channels, HIDDEN, 1)
        self.around = nn.Conv2d(HIDDEN, HIDDEN, KERNEL, padding=KERNEL // 2, groups=HIDDEN)
        self.out = nn.Conv2d(HIDDEN, 5, 1)
        for value in self.out.parameters():
            nn.init.zeros_(value)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        """out_B5HW: logit of the score, x and y of the way to the centre in cells, log of width and height in
        cells."""
        narrow_BDHW = F.gelu(self.narrow(z_BCHW))
        out_B5HW: Tensor = self.out(F.gelu(narrow_BDHW + self.around(narrow_BDHW)))
        return out_B5HW + torch.tensor([RARE, 0, 0, 0, 0], device=out_B5HW.device)[:, None, None]


def finds(weights: Mapping[str, NDArray[Any]]) -> bool:
    """Whether a layer's arrays hold a finder that has learned something."""
    last = weights.get(f"{PREFIX}out.weight")
    return last is not None and bool(np.any(last))


def without_finder(weights: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The arrays of the layer alone."""
    return {name: value for name, value in weights.items() if not name.startswith(PREFIX)}


def targets_of(boxes_N4: NDArray[np.float32], cells: int, stride: float) -> tuple[Tensor, Tensor]:
    """(heat_HW, box_4HW) that the finder should give for the boxes of all instances, in pixels of the frame.

    heat_HW: 1 at the cell of a centre, a Gaussian of the box's size around it. box_4HW: way and size as in
    `Finder.forward`, of the instance that is nearest by this measure.
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


def finder_loss(out_5HW: Tensor, boxes_N4: NDArray[np.float32], stride: float) -> Tensor:
    """CenterNet's focal loss per instance, plus the mean error of way and log size near the centres."""
    heat_HW, box_4HW = (t.to(out_5HW.device) for t in targets_of(boxes_N4, out_5HW.shape[-1], stride))
    logit_HW, score_HW = out_5HW[0], torch.sigmoid(out_5HW[0])
    hit_HW = (1 - score_HW) ** MISS * F.logsigmoid(logit_HW) * (heat_HW == 1)
    avoided_HW = (1 - heat_HW) ** HIT * score_HW**MISS * F.logsigmoid(-logit_HW)
    weight_HW = heat_HW * (heat_HW >= NEAR)
    error_HW = F.smooth_l1_loss(out_5HW[1:], box_4HW, reduction="none", beta=0.2).sum(0)
    box = (weight_HW * error_HW).sum() / weight_HW.sum().clamp(min=1e-6)
    return box - (hit_HW + avoided_HW).sum() / len(boxes_N4)


@torch.no_grad()
def found(out_5HW: Tensor, stride: float, least: float, most: int) -> tuple[Prompts, NDArray[np.float32]]:
    """(boxes in pixels of the frame, scores_N), the best first: cells that no neighbour surpasses.

    least: the smallest score. most: how many boxes at most.
    """
    score_HW = torch.sigmoid(out_5HW[0])
    peak_HW = (score_HW == F.max_pool2d(score_HW[None, None], 3, 1, 1)[0, 0]) & (score_HW >= least)
    y_N, x_N = peak_HW.nonzero(as_tuple=True)
    order_N = torch.argsort(score_HW[y_N, x_N], descending=True, stable=True)[:most]
    y_N, x_N = y_N[order_N], x_N[order_N]
    way_x_N, way_y_N, width_N, height_N = out_5HW[1:, y_N, x_N]
    middle_x_N, middle_y_N = x_N + 0.5 + way_x_N, y_N + 0.5 + way_y_N
    half_x_N, half_y_N = width_N.clamp(max=5).exp() / 2, height_N.clamp(max=5).exp() / 2
    edges = (middle_x_N - half_x_N, middle_y_N - half_y_N, middle_x_N + half_x_N, middle_y_N + half_y_N)
    boxes_N4 = (torch.stack(edges, 1) * stride).float().cpu().numpy().reshape(-1, 4)
    return Prompts(boxes_N4=boxes_N4), score_HW[y_N, x_N].float().cpu().numpy()
