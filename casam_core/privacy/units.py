"""The units that a private release protects: single images, or groups of images (patient, slide).

A unit counts once: before clipping, the values of its images become one mean, or their gradients one sum.
At most a fixed number of its images count; the number comes from the policy, never from the data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Unit:
    """One unit: its name, and the indices and ids of those of its images that count."""

    name: str
    images: tuple[int, ...]
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Units:
    """All units of one split, and the counts of them that are public.

    Everything that divides by a number of images or units uses these counts, not the lists: whoever leaves
    one unit out can keep the counts. images: of all units. counted: those that count.
    """

    members: tuple[Unit, ...]
    images: int
    counted: int
    count: int

    def __iter__(self) -> Iterator[Unit]:
        return iter(self.members)


def units_of(ids: Sequence[str], groups: Sequence[str | None], unit: str, most: int = 1) -> Units:
    """Single images (`unit` "image"), or the images of each group, in the order of appearance.

    An image without a group is a unit of its own. Of a group with more than `most` images, those with the
    lowest hashes of their ids count, so that no other image decides about one.

    Args:
        ids, groups: of every image.
        most: largest number of images per unit that count.

    >>> [unit.images for unit in units_of(["1", "2", "3"], ["a", "b", "a"], "group", most=2)]
    [(0, 2), (1,)]
    >>> units_of(["1", "2", "3"], ["a", "b", "a"], "image").count
    3
    """
    members: dict[tuple[str, str], list[int]] = {}
    for i, (image, group) in enumerate(zip(ids, groups, strict=True)):
        key = ("image", image) if unit == "image" or group is None else ("group", group)
        members.setdefault(key, []).append(i)
    units = []
    for (kind, name), images in members.items():
        counted = sorted(sorted(images, key=lambda i: rank(ids[i]))[:most], key=lambda i: ids[i])
        units.append(Unit(f"{kind} {name}", tuple(counted), tuple(ids[i] for i in counted)))
    return Units(tuple(units), len(ids), sum(len(unit.images) for unit in units), len(units))


def rank(image: str) -> bytes:
    """The place of an image among those of its unit; the lowest ones count."""
    return hashlib.sha256(b"rank" + image.encode()).digest()


def single_images(count: int) -> Units:
    """`count` images, each of them a unit, named by their indices."""
    names = [str(i) for i in range(count)]
    return units_of(names, names, "image")


def unit_mean(values_ND: NDArray[np.float64], unit: Unit) -> NDArray[np.float64]:
    """mean_D over the unit's images. It is computed for one unit alone: no other unit changes a bit of it."""
    mean_D: NDArray[np.float64] = values_ND[list(unit.images)].mean(0)
    return mean_D
