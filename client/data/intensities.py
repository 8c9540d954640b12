"""From stored intensities (Hounsfield units, 16-bit counts, floats) to the 8 bits SAM sees."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.errors import DataError

PERCENTILES = (0.5, 99.5)
"""Of a volume without a window: what lies outside becomes black or white. A few hot voxels (metal,
vessels) would otherwise press all tissue into a few grays."""


def window_range(window: list[float]) -> tuple[float, float]:
    """(black, white) of a window [centre, width]."""
    centre, width = window
    return centre - width / 2, centre + width / 2


def percentile_range(values: NDArray[Any], source: str) -> tuple[float, float]:
    """(black, white) of a volume by PERCENTILES; its minimum and maximum if these agree.

    source: the file, for the message. Raises DataError for NaN and infinity.
    """
    if not np.isfinite(values).all():
        raise DataError(f"{source}: expected finite intensities, found NaN or infinity; replace these voxels")
    low, high = (float(value) for value in np.percentile(values, PERCENTILES))
    return (low, high) if low < high else (float(values.min()), float(values.max()))


def to_uint8(values: NDArray[Any], black: float, white: float) -> NDArray[np.uint8]:
    """`values` mapped linearly from black..white to 0..255, clipped; all 0 where black equals white."""
    if black == white:
        return np.zeros(values.shape, np.uint8)
    scaled = (values.astype(np.float32) - np.float32(black)) * np.float32(255 / (white - black))
    result: NDArray[np.uint8] = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    return result


def as_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(height, width) repeated over three channels; (height, width, 3) as it is."""
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    return np.ascontiguousarray(image, dtype=np.uint8)
