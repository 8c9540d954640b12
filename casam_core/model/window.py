"""A window: a rectangle of embedding cells, in which a mask is computed.

SAM's masks end near their box. So training computes masks and losses in a window around it only
(casam_core.model.training). A test compares the gradient with that of whole masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from casam_core.model.prompts import Prompts

MARGIN = 4
"""Cells around a box that still belong to its window."""

PIXELS = 4
"""Rows and columns of mask logits per cell."""


@dataclass(frozen=True)
class Window:
    """Rows top to bottom and columns left to right of cells; the ends do not belong to it."""

    top: int
    bottom: int
    left: int
    right: int

    def of(self, x_hw: Tensor, scale: int = 1) -> Tensor:
        """The part of x_hw... in the window; scale: rows and columns of x_hw per cell."""
        return x_hw[scale * self.top : scale * self.bottom, scale * self.left : scale * self.right]


def whole(cells: int) -> Window:
    """All cells x cells."""
    return Window(0, cells, 0, cells)


def windows_around(prompts: Prompts, cells: int, side: int) -> list[Window]:
    """A window for every prompt, in pixels of a frame of `side` pixels: its box and the margin.

    A point does not say where its mask ends: its window is the whole frame.
    """
    if prompts.boxes_N4 is None:
        return [whole(cells)] * len(prompts)
    first_last = np.floor(prompts.boxes_N4 * cells / side).astype(int)
    return [
        Window(
            top=max(0, y0 - MARGIN),
            bottom=min(cells, y1 + 1 + MARGIN),
            left=max(0, x0 - MARGIN),
            right=min(cells, x1 + 1 + MARGIN),
        )
        for x0, y0, x1, y1 in first_last.tolist()
    ]
