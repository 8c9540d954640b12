"""Images with the outlines of their labels, drawn into a folder that only its owner can open."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.segmentation import find_boundaries

from casam_core.errors import DataError
from client.data.dataset import Dataset, LoadedSample, Sample

PRIVATE = 0o700
"""Mode of folders with pictures of patients: only the owner may read, write and enter."""

# First those that stand out from red and purple tissue, and from gray.
_COLOURS = np.array(
    [[40, 210, 220], [250, 200, 40], [60, 200, 90], [230, 60, 60], [70, 130, 255], [220, 90, 230]], np.uint8
)


def draw_previews(
    dataset: Dataset,
    folder: Path,
    *,
    count: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Write `count` overlays, spread evenly over the ids, as PNG; returns the files.

    folder: created with mode 0700; an existing one must give no rights to others. Raises DataError.
    """
    samples = spread(dataset.samples, count)
    private_folder(folder)
    files = []
    for done, sample in enumerate(samples, start=1):
        overlay = overlay_of(dataset.load(sample))
        file = folder / f"{done:03d}-{re.sub(r'[^A-Za-z0-9._-]', '_', sample.id)[-100:]}.png"
        Image.fromarray(overlay).save(file)
        files.append(file)
        progress(done, len(samples))
    return files


def overlay_of(loaded: LoadedSample) -> NDArray[np.uint8]:
    """The image, (height, width, 3) uint8, with each instance's outline inside its border.

    The outline is one pixel wide, and wider in images of 1000 pixels or more. Consecutive labels differ in
    colour.
    """
    labels_HW = loaded.labels_HW
    edges_HW = outlines(labels_HW)
    overlay = loaded.image_HW3.copy()
    overlay[edges_HW] = _COLOURS[(labels_HW[edges_HW] - 1) % len(_COLOURS)]
    return overlay


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
