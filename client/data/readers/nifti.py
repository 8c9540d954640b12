"""NIfTI volumes (CT, MR) as slices, through nibabel.

Layout: images/*.nii or *.nii.gz and masks/ with the same stems, equal shapes and equal affines.
A mask with another affine is refused, because its voxels show other places in the body than the
image's voxels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.config.data_spec import DataSpec
from casam_core.errors import DataError
from client.data.pixels import reading
from client.data.readers.pairs import PLAIN
from client.data.readers.volumes import ScanDataset, corners_83, medical_package, require_readable_size

_CONTENT = "a complete NIfTI file"


class NiftiDataset(ScanDataset):
    """The labelled slices of every volume of a folder. Raises DataError."""

    suffixes = frozenset({".nii", ".nii.gz"})
    kinds = "NIfTI (.nii, .nii.gz)"

    def __init__(self, path: Path, spec: DataSpec = PLAIN) -> None:
        medical_package("nibabel", reader="nifti")
        super().__init__(path, spec)

    def voxels(self, path: Path, *, as_labels: bool) -> NDArray[Any]:
        """All voxels with the header's slope and intercept applied."""
        return voxels_of(path, None if as_labels else np.float32)

    def grid(self, path: Path) -> tuple[tuple[int, ...], NDArray[np.float64] | None]:
        """The sides, and the places of the corners by the affine."""
        image = opened(path)
        shape, affine = _shape(image, path), np.asarray(image.affine, np.float64)
        return shape, corners_83(affine[:3, :3] * shape, affine[:3, 3])

    def bits_in(self, path: Path) -> int:
        """Bits per voxel."""
        return int(opened(path).get_data_dtype().itemsize) * 8


def opened(path: Path) -> Any:
    """The nibabel image; its voxels are not read yet. Raises ValueError and the errors of nibabel."""
    nibabel = medical_package("nibabel", reader="nifti")
    with reading(path, _CONTENT):
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Image):
            raise ValueError(f"{type(image).__name__} is another format")
        return image


def _shape(image: Any, path: Path) -> tuple[int, int, int]:
    """The three sides; further axes of length 1 do not count."""
    shape = tuple(int(side) for side in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise DataError(
            f"{path}: expected one volume with three axes, found the shape {tuple(image.shape)}; save each "
            "time point or channel as a file of its own, and one slice with a third axis of length 1"
        )
    if image.get_data_dtype().kind not in "iufb":
        raise DataError(
            f"{path}: expected one number per voxel, found the type {image.get_data_dtype()}; save it as gray"
        )
    require_readable_size(shape, path)
    return shape


def voxels_of(path: Path, dtype: type[np.floating[Any]] | None) -> NDArray[Any]:
    """All voxels with the header's slope and intercept applied."""
    image = opened(path)
    shape = _shape(image, path)
    with reading(path, _CONTENT):
        values = np.asanyarray(image.dataobj) if dtype is None else image.get_fdata(dtype=dtype)
        return np.asarray(values).reshape(shape)
