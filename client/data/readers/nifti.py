"""NIfTI volumes (CT, MR) as slices, through nibabel.

Layout: images/*.nii or *.nii.gz and masks/ with the same stems, equal shapes and equal affines.
Voxels stay in stored order and are never resampled or rotated to anatomical axes. Image and mask are cut in
the same way; the rows of a slice are the higher of the two remaining axes. A mask with another affine is
refused, because its voxels show other places in the body than the image's voxels.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.errors import DataError
from client.data.labels import Meaning
from client.data.pixels import one_line
from client.data.readers.pairs import SAME_STEMS, FileRules
from client.data.readers.volumes import (
    VolumeDataset,
    VolumeFormat,
    across,
    gray_slices,
    medical_package,
    require_readable_size,
    require_same_place,
    shapes_differ,
    whole_labels,
)


def open_nifti(
    path: Path,
    *,
    slice_axis: int = 2,
    window: list[float] | None = None,
    labels: Meaning = "instances",
    rules: FileRules = SAME_STEMS,
) -> VolumeDataset:
    """The labelled slices of every volume of `path`, across voxel axis `slice_axis`.

    window: [centre, width] in the volume's units (Hounsfield units for CT), mapped to black..white;
    by default each volume's own percentiles (client/data/pixels.py). Raises DataError.
    """
    medical_package("nibabel", reader="nifti")
    return VolumeDataset(
        path,
        VolumeFormat(
            suffixes=frozenset({".nii", ".nii.gz"}),
            names="NIfTI (.nii, .nii.gz)",
            image=partial(_image, slice_axis=slice_axis, window=window),
            mask=partial(_mask, slice_axis=slice_axis),
            compare=_compare,
            bits=_bits,
        ),
        labels,
        rules,
    )


def _image(path: Path, *, slice_axis: int, window: list[float] | None) -> NDArray[np.uint8]:
    return gray_slices(voxels_of(path, np.float32), path, slice_axis, window)


def _mask(path: Path, *, slice_axis: int) -> NDArray[Any]:
    return across(whole_labels(voxels_of(path, None), path), slice_axis)


def _compare(image_path: Path, mask_path: Path) -> None:
    image, mask = opened(image_path), opened(mask_path)
    shapes = _shape(image, image_path), _shape(mask, mask_path)
    if shapes[0] != shapes[1]:
        raise shapes_differ(image_path, mask_path, *shapes)
    # Measured at the corners of the volume, where a small rotation has the largest effect.
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    corners[:, :3] *= shapes[0]
    require_same_place(image_path, mask_path, (image.affine - mask.affine) @ corners.T)


def _bits(path: Path) -> int:
    return int(opened(path).get_data_dtype().itemsize) * 8


def opened(path: Path) -> Any:
    """The nibabel image; its voxels are not read yet."""
    nibabel = medical_package("nibabel", reader="nifti")
    try:
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Image):
            raise ValueError(f"{type(image).__name__} is another format")
        return image
    except Exception as fault:
        raise _damaged(path, fault) from fault


def _shape(image: Any, path: Path) -> tuple[int, int, int]:
    """The three sides; further axes of length 1 do not count."""
    shape = tuple(int(side) for side in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise DataError(
            f"{path}: expected one volume with three axes, found the shape {tuple(image.shape)}; save each "
            f"time point or channel as a file of its own"
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
    try:
        values = np.asanyarray(image.dataobj) if dtype is None else image.get_fdata(dtype=dtype)
        return np.asarray(values).reshape(shape)
    except Exception as fault:
        raise _damaged(path, fault) from fault


def _damaged(path: Path, fault: Exception) -> DataError:
    # nibabel, gzip and zlib raise many kinds of exceptions for damaged files; none is a defect of this code.
    return DataError(
        f"{path}: expected a complete NIfTI file, found one that cannot be read ({one_line(fault)}); "
        f"export or copy it again"
    )
