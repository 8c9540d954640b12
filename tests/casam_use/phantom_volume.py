"""A phantom volume: the spleen of one body, wide in its middle slices and gone at both ends.

python -m tests.casam_use.phantom_volume SEED volume.nii.gz truth.nii.gz
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from casam_use.scan import Scan, write_labels
from client.data.phantoms.spleen_ct import paint

SPACING = (2.5, 0.8, 0.8)


def phantom_volume(
    seed: int = 0, size: int = 256, slices: int = 24
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """(gray slices_DHW, labels_DHW): an ellipsoid spleen over the middle two thirds of the slices."""
    images, labels = [], []
    for index in range(slices):
        place = (index - (slices - 1) / 2) / (slices / 3)
        extent = float(np.sqrt(max(0.0, 1 - place**2)))
        drawn = paint(
            np.random.default_rng([seed, 1]),
            size,
            np.random.default_rng([seed, 2]),
            extent=extent,
            noise=np.random.default_rng([seed, 3, index]),
        )
        images.append(drawn.image_HW3[..., 0])
        labels.append(drawn.labels_HW * (extent > 0))
    return np.stack(images), np.stack(labels).astype(np.int32)


def scan_of(images_DHW: NDArray[np.uint8]) -> Scan:
    """The slices as a scan along its last axis."""
    between, rows, columns = SPACING
    return Scan(images_DHW, 2, np.diag([columns, rows, between, 1.0]))


def main(seed: int, volume: Path, truth: Path) -> None:
    """Write the volume and its mask as NIfTI."""
    images_DHW, labels_DHW = phantom_volume(seed)
    scan = scan_of(images_DHW)
    write_labels(images_DHW.astype(np.int32), scan, volume)
    write_labels(labels_DHW, scan, truth)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
