"""The units that a private release protects: single images, or groups of images (patient, slide).

A unit counts once: before clipping, the values of its images become one mean, or their gradients one sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Units = Sequence[Sequence[int]]
"""For every unit, the indices of its images."""


def units_of(groups: Sequence[str], unit: str) -> list[list[int]]:
    """Single images (`unit` "image"), or the images of each group, in the order of appearance.

    >>> units_of(["a", "b", "a"], "group")
    [[0, 2], [1]]
    """
    if unit == "image":
        return [[i] for i in range(len(groups))]
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    return list(members.values())


def unit_means(values_ND: NDArray[np.float64], units: Units) -> NDArray[np.float64]:
    """mean_UD: one row per unit, the mean of its images."""
    return np.stack([values_ND[list(unit)].mean(0) for unit in units])


def add_rows(rows: Sequence[Tensor], parameters: Sequence[nn.Parameter], unit_of: Sequence[int]) -> None:
    """Add the gradients of a backward pass's images to the rows of their units, and delete them.

    unit_of: for every image of the pass, the row of its unit.
    """
    index = torch.tensor(unit_of)
    for p, row in zip(parameters, rows, strict=True):
        row.index_add_(0, index.to(row.device), p.grad_sample.to(row.dtype))  # type: ignore[attr-defined]
        p.grad_sample = None  # type: ignore[attr-defined]


def without_broken(rows: list[Tensor]) -> list[Tensor]:
    """The rows, with zeros for every unit whose gradient is not finite in some parameter."""
    usable = torch.stack([row.flatten(1).isfinite().all(1) for row in rows]).all(0)
    return [torch.where(usable.to(row.device).view(-1, *[1] * (row.dim() - 1)), row, 0.0) for row in rows]
