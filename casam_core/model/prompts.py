"""Prompts: a box, points or both per instance, in the image's pixels or in a backbone's frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from casam_core.model.frame import Frame

Labels = NDArray[np.int32]

Places = Sequence[tuple[slice, ...] | None]
"""Of instance 1, 2, ...: its rows and columns in labels_HW; None if it is not there."""


@dataclass(frozen=True)
class Prompts:
    """N prompts of the same kinds, one object each: a box, P points or both, and perhaps an earlier mask.

    Coordinates in pixels, float32. boxes_N4: x0, y0, x1, y1 of the first and last pixel. points_NP2: x, y.
    labels_NP: 1 for a point of the object, 0 for one that is not; None: all 1. masks_Nhw: logits of an
    earlier mask, float32, at the decoder's resolution; they always lie in the frame.
    """

    boxes_N4: NDArray[np.float32] | None = None
    points_NP2: NDArray[np.float32] | None = None
    labels_NP: NDArray[np.int64] | None = None
    masks_Nhw: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.boxes_N4 is None and self.points_NP2 is None:
            raise ValueError("expected boxes, points or both")
        points = () if self.points_NP2 is None else self.points_NP2.shape[:2]
        if self.labels_NP is not None and self.labels_NP.shape != points:
            raise ValueError("expected one label per point")
        if {len(self)} != {len(part) for part in self._parts.values()}:
            raise ValueError("expected the same number of boxes, points and masks")

    @property
    def _parts(self) -> dict[str, NDArray[Any]]:
        return {name: part for name, part in vars(self).items() if part is not None}

    def __len__(self) -> int:
        return len(self.xy)

    @property
    def xy(self) -> NDArray[np.float32]:
        """boxes_N4; without boxes, the first point of each prompt, points_N2."""
        if self.boxes_N4 is not None:
            return self.boxes_N4
        assert self.points_NP2 is not None
        return self.points_NP2[:, 0]

    def __getitem__(self, some: slice) -> Prompts:
        return Prompts(**{name: part[some] for name, part in self._parts.items()})

    def into(self, frame: Frame) -> Prompts:
        """The same prompts in the frame's pixels."""
        boxes, points = (
            None if xy is None else frame.to_frame(xy) for xy in (self.boxes_N4, self.points_NP2)
        )
        return replace(self, boxes_N4=boxes, points_NP2=points)


def single_points(points_N2: ArrayLike) -> Prompts:
    """One point of each object."""
    return Prompts(points_NP2=np.asarray(points_N2, np.float32).reshape(-1, 1, 2))


def place_of(instance: int, places: Places) -> tuple[slice, ...]:
    """The rows and columns of an instance that is there."""
    place = places[instance - 1]
    assert place is not None
    return place


def tight_boxes(labels_HW: Labels, instances: NDArray[np.int32], places: Places | None = None) -> Prompts:
    """The tight box of each instance, which must be in labels_HW. places: of all instances, if known."""
    places = ndimage.find_objects(labels_HW) if places is None else places
    return boxes_at([place_of(i, places) for i in instances])


def boxes_at(places: Places) -> Prompts:
    """The tight boxes of the instances that are there."""
    boxes = [(x.start, y.start, x.stop - 1, y.stop - 1) for y, x in filter(None, places)]
    return Prompts(boxes_N4=np.array(boxes, np.float32).reshape(-1, 4))


def jittered_boxes(
    labels_HW: Labels,
    instances: NDArray[np.int32],
    amount: float,
    rng: np.random.Generator,
    places: Places | None = None,
) -> Prompts:
    """Tight boxes with each side moved by up to `amount` of the box's width or height, kept in the image."""
    boxes = tight_boxes(labels_HW, instances, places).xy
    width = boxes[:, 2] - boxes[:, 0] + 1
    height = boxes[:, 3] - boxes[:, 1] + 1
    moved = boxes + rng.uniform(-amount, amount, boxes.shape) * np.stack([width, height, width, height], 1)
    # In a small box, opposite sides can pass each other; sorting keeps a valid box.
    moved = np.hstack([np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])])
    limit = np.array([labels_HW.shape[1] - 1, labels_HW.shape[0] - 1] * 2)
    return Prompts(boxes_N4=np.clip(moved, 0, limit).astype(np.float32))


def random_points(
    labels_HW: Labels,
    instances: NDArray[np.int32],
    rng: np.random.Generator,
    places: Places | None = None,
) -> Prompts:
    """One uniformly drawn pixel of each instance."""
    places, points = ndimage.find_objects(labels_HW) if places is None else places, []
    for instance in instances:
        rows, columns = place_of(instance, places)
        ys, xs = np.nonzero(labels_HW[rows, columns] == instance)
        k = rng.integers(len(ys))
        points.append((columns.start + xs[k], rows.start + ys[k]))
    return single_points(points)


def central_points(labels_HW: Labels, instances: NDArray[np.int32]) -> Prompts:
    """The pixel of each instance that is farthest from its border; the first of several, by rows."""
    slices = ndimage.find_objects(labels_HW)
    points = []
    for instance in instances:
        where = slices[instance - 1]
        depth = ndimage.distance_transform_edt(np.pad(labels_HW[where] == instance, 1))
        y, x = np.unravel_index(int(np.argmax(depth)), depth.shape)
        points.append((where[1].start + x - 1, where[0].start + y - 1))
    return single_points(points)
