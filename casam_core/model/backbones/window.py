"""Training looks closely near a prompt's box only: a window of embedding cells, and what is far from it.

SAM's masks end near their box. So training computes masks and losses in a window around it only
(casam_core.model.training); a test compares the gradient with that of whole masks. The decoder also attends
to the cells outside of the window. Training may give it the mean of every block of 4 x 4 such cells in place
of the 16 cells: each mean counts 16 times.

P: rows that the decoder gets, cells or means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from casam_core.model.prompts import Prompts

MARGIN = 4
"""Cells around a box that still belong to its window."""

BLOCK = 4
"""Sides of windows are whole blocks of so many cells."""

PIXELS = 4
"""Rows and columns of mask logits per cell."""


@dataclass(frozen=True)
class Window:
    """Rows top to bottom and columns left to right of cells; the ends do not belong to it.

    pooled: outside of it, the decoder gets the means of blocks; top, bottom, left and right are whole blocks.
    """

    top: int
    bottom: int
    left: int
    right: int
    pooled: bool = False

    @property
    def height(self) -> int:
        """Rows of cells."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns of cells."""
        return self.right - self.left

    def of(self, x_hw: Tensor, scale: int = 1) -> Tensor:
        """The part of x_hw... in the window; scale: rows and columns of x_hw per cell."""
        return x_hw[scale * self.top : scale * self.bottom, scale * self.left : scale * self.right]

    def rows(self, cells: int) -> tuple[Tensor, Tensor]:
        """(index_P, weight_P): what the decoder gets, as rows of the list of all cells, then all blocks;
        the window's own cells come first. Weights: the logarithm of how many cells a row stands for.
        """
        cell_hw = torch.arange(cells**2).view(cells, cells)
        near_P = self.of(cell_hw).reshape(-1)
        if not self.pooled:
            far_P = cell_hw[self._outside(cells)]
            return torch.cat([near_P, far_P]), torch.zeros(cells**2)
        top, bottom, left, right = (side // BLOCK for side in (self.top, self.bottom, self.left, self.right))
        blocks = Window(top, bottom, left, right)
        far_P = cells**2 + torch.nonzero(blocks._outside(cells // BLOCK).flatten())[:, 0]
        weight_P = torch.cat([torch.zeros(len(near_P)), torch.full((len(far_P),), math.log(BLOCK**2))])
        return torch.cat([near_P, far_P]), weight_P

    def _outside(self, cells: int) -> Tensor:
        outside_hw = torch.ones(cells, cells, dtype=torch.bool)
        self.of(outside_hw).fill_(False)
        return outside_hw


def whole(cells: int) -> Window:
    """All cells x cells."""
    return Window(0, cells, 0, cells)


def windows_around(prompts: Prompts, cells: int, side: int, *, pooled: bool) -> list[Window]:
    """A window for every prompt: its box and the margin, in whole blocks. side: of the frame, in pixels.

    A point does not say where its mask ends: its window is the whole frame.

    cells: along a side of the embedding. pooled: whether the decoder sees means of the cells far away.
    """
    if prompts.boxes_N4 is None:
        return [whole(cells)] * len(prompts)
    first_last = np.floor(prompts.boxes_N4 * cells / side).astype(int)
    return [
        Window(
            top=max(0, y0 - MARGIN) // BLOCK * BLOCK,
            bottom=min(cells, -(-(y1 + 1 + MARGIN) // BLOCK) * BLOCK),
            left=max(0, x0 - MARGIN) // BLOCK * BLOCK,
            right=min(cells, -(-(x1 + 1 + MARGIN) // BLOCK) * BLOCK),
            pooled=pooled,
        )
        for x0, y0, x1, y1 in first_last.tolist()
    ]
