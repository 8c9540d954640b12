"""NRRD and MetaImage volumes (.nrrd, .nhdr, .mha, .mhd) as slices, through SimpleITK.

Layout: images/ and masks/ with the same stems, equal shapes and the same place in space, or by patterns. As
in client/data/readers/nifti.py, voxels stay in stored order; slice_axis counts the axes as they are stored
(0 is the fastest), and the rows of a slice are the higher of the two remaining axes.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.errors import DataError, optional_module
from client.data.labels import Meaning
from client.data.pixels import one_line
from client.data.readers.pairs import SAME_STEMS, FileRules
from client.data.readers.volumes import (
    VolumeDataset,
    VolumeFormat,
    across,
    gray_slices,
    require_readable_size,
    require_same_place,
    shapes_differ,
    whole_labels,
)

SUFFIXES = frozenset({".nrrd", ".nhdr", ".mha", ".mhd"})
"""File endings that are read, in lower case."""

_PIXELS_ELSEWHERE = re.compile(rb"^(?:ElementDataFile\s*=|data ?file:)[ \t]*(.+?)\s*$", re.MULTILINE | re.I)
"""How a header names the file of its pixels."""


def open_itk(
    path: Path,
    *,
    slice_axis: int = 2,
    window: list[float] | None = None,
    labels: Meaning = "instances",
    rules: FileRules = SAME_STEMS,
) -> VolumeDataset:
    """The labelled slices of every volume of `path`, across stored axis `slice_axis`.

    window: [centre, width] in the volume's units; by default each volume's own percentiles. Raises DataError.
    """
    _itk()
    return VolumeDataset(
        path,
        VolumeFormat(
            suffixes=SUFFIXES,
            names="NRRD or MetaImage (.nrrd, .nhdr, .mha, .mhd)",
            image=partial(_image, slice_axis=slice_axis, window=window),
            mask=partial(_mask, slice_axis=slice_axis),
            compare=_compare,
            bits=_bits,
        ),
        labels,
        rules,
    )


def _image(path: Path, *, slice_axis: int, window: list[float] | None) -> NDArray[np.uint8]:
    return gray_slices(_voxels(path).astype(np.float32), path, slice_axis, window)


def _mask(path: Path, *, slice_axis: int) -> NDArray[Any]:
    return across(whole_labels(_voxels(path), path), slice_axis)


def _compare(image_path: Path, mask_path: Path) -> None:
    image, mask = _header(image_path), _header(mask_path)
    shapes = image.GetSize(), mask.GetSize()
    if shapes[0] != shapes[1]:
        raise shapes_differ(image_path, mask_path, *shapes)
    require_same_place(image_path, mask_path, _corners(image) - _corners(mask))


def _corners(header: Any) -> NDArray[np.float64]:
    """places_83 of the corners of a volume in mm; a small rotation has its largest effect there."""
    columns = np.array(header.GetDirection()).reshape(3, 3) * np.array(header.GetSpacing())
    ends = [[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)] * np.array(header.GetSize())
    places_83: NDArray[np.float64] = ends @ columns.T + np.array(header.GetOrigin())
    return places_83


def _bits(path: Path) -> int:
    name = _itk().GetPixelIDValueAsString(_header(path).GetPixelID())
    return int(found[0]) if (found := re.findall(r"\d+", name)) else 8


def _header(path: Path) -> Any:
    """A SimpleITK reader that has read the header of one gray volume."""
    itk = _itk()
    _require_own_pixels(path)
    reader = itk.ImageFileReader()
    try:
        reader.SetImageIO("NrrdImageIO" if path.suffix.lower() in (".nrrd", ".nhdr") else "MetaImageIO")
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
    except Exception as fault:
        raise _damaged(path, fault) from fault
    size = tuple(int(side) for side in reader.GetSize())
    if len(size) != 3 or reader.GetNumberOfComponents() != 1:
        raise DataError(
            f"{path}: expected one gray volume with three axes, found {len(size)} axes and "
            f"{reader.GetNumberOfComponents()} values per voxel; save each channel, time point or layer as a "
            "file of its own"
        )
    require_readable_size(size, path)
    return reader


def _voxels(path: Path) -> NDArray[Any]:
    """Stored values (X, Y, Z)."""
    reader = _header(path)
    try:
        # SimpleITK gives (Z, Y, X).
        return np.asarray(_itk().GetArrayFromImage(reader.Execute())).transpose(2, 1, 0)
    except Exception as fault:
        raise _damaged(path, fault) from fault


def _require_own_pixels(path: Path) -> None:
    """Raise DataError if the header takes its pixels from outside its own folder."""
    try:
        with path.open("rb") as file:
            head = file.read(65536)
    except OSError as fault:
        raise _damaged(path, fault) from fault
    header = head.partition(b"\n\n")[0] if path.suffix.lower() == ".nrrd" else head
    for found in _PIXELS_ELSEWHERE.finditer(header):
        name = found[1].decode("utf-8", "replace")
        if "/" in name or "\\" in name or name.upper().startswith("LIST"):
            raise DataError(
                f"{path}: expected the pixels in this file or beside it, found {name!r}; save the volume "
                "as one file (.mha or .nrrd)"
            )


def _itk() -> Any:
    return optional_module("SimpleITK", wanted="reader 'itk'", extra="itk", error=DataError)


def _damaged(path: Path, fault: Exception) -> DataError:
    # The text of SimpleITK has several lines with places in its own source; the last one says what is wrong.
    *_, last = str(fault).strip().splitlines() or [type(fault).__name__]
    return DataError(
        f"{path}: expected a complete NRRD or MetaImage volume, found one that cannot be read "
        f"({one_line(ValueError(last))}); export or copy it again"
    )
