"""Images with the outlines of their labels, drawn into a folder that only its owner can open."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import find_boundaries

from casam_core.errors import DataError
from client.data.dataset import Sample

PRIVATE = 0o700
"""Mode of folders with pictures of patients: only the owner may read, write and enter."""


def outlines(labels_HW: NDArray[np.int32]) -> NDArray[np.bool_]:
    """The pixels of each label's outline, inside its border."""
    edges_HW: NDArray[np.bool_] = find_boundaries(labels_HW, mode="inner")
    width = max(labels_HW.shape) // 500
    if width > 1:
        edges_HW = ndimage.binary_dilation(edges_HW, iterations=width - 1) & (labels_HW > 0)
    return edges_HW


def private_folder(folder: Path) -> None:
    """Create `folder` with mode 0700. Raises DataError if it exists and others may open it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=PRIVATE)
        folder.mkdir(mode=PRIVATE, exist_ok=True)
        mode = stat.S_IMODE(folder.stat().st_mode)
    except OSError as fault:
        raise DataError(
            f"{folder}: expected a folder for pictures, found: {fault.strerror}; choose another --out"
        ) from fault
    if mode & 0o077:
        raise DataError(
            f"{folder}: expected a folder that only its owner can open (mode 0700), found {mode:04o}; choose "
            f"a new one, as it will hold pictures of patients"
        )


def spread(samples: tuple[Sample, ...], count: int) -> list[Sample]:
    """At most `count` samples, evenly spread over their order."""
    places = np.linspace(0, len(samples) - 1, min(count, len(samples)))
    return [samples[int(place)] for place in places]
