"""What a private release protects: units, each one image or a group of them (patient, slide)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Units = Sequence[Sequence[int]]
"""Indices of the images of every unit."""


def units_of(groups: Sequence[str], unit: str) -> list[list[int]]:
    """Each image by itself (`unit` "image"), or the images of each group, in order of appearance.

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
    """mean_UD: one row per unit, the mean over its images."""
    return np.stack([values_ND[list(unit)].mean(0) for unit in units])
