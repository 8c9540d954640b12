"""Conversion of stored mask values to instances 1..n."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.draw import polygon

from casam_core.errors import DataError

_EIGHT_CONNECTED = np.ones((3, 3), dtype=int)

Meaning = Literal["instances", "classes", "colours"]
"""instances: each value above 0 is one instance. classes, colours: each connected part of a value is one."""


def whole_labels(values: NDArray[Any], path: Path) -> NDArray[Any]:
    """`values` as integers of 0 and above. Raises DataError for fractions, NaN and negative labels."""
    if np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all() or (values != np.rint(values)).any():
            raise DataError(
                f"{path}: expected whole-number labels, found fractions or non-finite values; save the label "
                f"map itself as whole numbers, not a probability or a resampled one"
            )
        values = values.astype(np.int64)
    elif values.dtype == np.bool_:
        values = values.astype(np.uint8)
    elif not np.issubdtype(values.dtype, np.integer):
        raise DataError(
            f"{path}: expected whole-number labels, found the type {values.dtype}; save it as integers"
        )
    if values.min() < 0:
        raise DataError(
            f"{path}: expected labels of 0 (background) and above, found {int(values.min())}; renumber it"
        )
    if values.max() >= 2**32:
        raise DataError(
            f"{path}: expected labels below {2**32}, found {int(values.max())}; renumber it from 1"
        )
    return values


def number(values_HW: NDArray[Any], meaning: Meaning) -> NDArray[np.int32]:
    """Labels 1..n in the order of the values, 0 background.

    values_HW: integers of 0 and above. Parts of one class (sides or corners touch) follow each other
    in reading order.
    """
    return _instances(values_HW) if meaning == "instances" else _connected_parts(values_HW)


def paint(masks_HW: Sequence[NDArray[np.bool_]]) -> tuple[NDArray[np.int32], list[int]]:
    """One label map of masks that may overlap, and the indices of masks without a visible pixel.

    Mask i becomes label i + 1. Larger masks are painted first, so that smaller ones stay whole: a lumen
    inside a gland keeps its pixels. At least one mask; all have the same size.
    """
    return _painted([np.flatnonzero(mask_HW) for mask_HW in masks_HW], masks_HW[0].shape)


def _painted(
    places: Sequence[NDArray[np.intp]], size: tuple[int, ...]
) -> tuple[NDArray[np.int32], list[int]]:
    """The same; places: of each mask, its pixels as indices into the flat image."""
    labels_HW = np.zeros(size, np.int32)
    for index in sorted(range(len(places)), key=lambda i: -len(places[i])):
        labels_HW.flat[places[index]] = index + 1
    present = set(np.unique(labels_HW).tolist())
    return labels_HW, [index for index in range(len(places)) if index + 1 not in present]


def layered(
    layers_HW: Sequence[NDArray[Any]], meaning: Meaning, *, one_instance: bool = False
) -> tuple[NDArray[np.int32], list[int]]:
    """Labels 1..n of layers that may overlap, and the indices of layers with an instance that no pixel shows.

    layers_HW: integers of 0 and above, all of the same size, one of them not empty.
    one_instance: all values of one of several layers are one instance; otherwise `meaning` says what they
        are.
    """
    if len(layers_HW) == 1:
        return number(layers_HW[0], meaning), []
    places, owners = [], []
    for index, values_HW in enumerate(layers_HW):
        if values_HW.any():
            labels_HW = (values_HW > 0).astype(np.int32) if one_instance else number(values_HW, meaning)
            found = [np.flatnonzero(labels_HW == label) for label in range(1, int(labels_HW.max()) + 1)]
            places += found
            owners += [index] * len(found)
    labels_HW, hidden = _painted(places, layers_HW[0].shape)
    return labels_HW, sorted({owners[index] for index in hidden})


def require_same_size(
    values_HW: NDArray[Any], where: Path, image_HW3: NDArray[np.uint8], image: Path
) -> None:
    """Raises DataError unless the labels of the file `where` have the size of the file `image`."""
    sizes = [f"{array.shape[1]} x {array.shape[0]}" for array in (image_HW3, values_HW)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"{where}: expected the size of {image.name}, {sizes[0]}, found {sizes[1]}; export image and "
            "mask at the same size"
        )


def fill_polygon(xy_K2: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """mask_HW of `size` (height, width): pixels whose centre lies inside.

    xy_K2: in pixels. The origin is a pixel's corner, as in annotation tools; in scikit-image it is the
    centre.
    """
    mask_HW = np.zeros(size, np.bool_)
    mask_HW[polygon(xy_K2[:, 1] - 0.5, xy_K2[:, 0] - 0.5, size)] = True
    return mask_HW


def _instances(values_HW: NDArray[Any]) -> NDArray[np.int32]:
    present, index = np.unique(values_HW, return_inverse=True)
    # Without any background the lowest value is an instance too and must not become 0.
    first = 0 if present[0] == 0 else 1
    return (index.reshape(values_HW.shape) + first).astype(np.int32)


def _connected_parts(values_HW: NDArray[Any]) -> NDArray[np.int32]:
    labels_HW = np.zeros(values_HW.shape, np.int32)
    count = 0
    for value in np.unique(values_HW[values_HW > 0]):
        parts_HW, parts = ndimage.label(values_HW == value, structure=_EIGHT_CONNECTED)
        labels_HW[parts_HW > 0] = parts_HW[parts_HW > 0] + count
        count += parts
    return labels_HW
