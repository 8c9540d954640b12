"""NRRD and MetaImage volumes (.nrrd, .nhdr, .mha, .mhd) as slices, through SimpleITK.

Layout: images/ and masks/ with the same stems, equal shapes and the same place in space, or by patterns.
slice_axis counts the axes as they are stored (0 is the fastest).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.config.data_spec import DataSpec
from casam_core.errors import DataError, optional_module
from client.data.pixels import reading
from client.data.readers.pairs import PLAIN
from client.data.readers.volumes import ScanDataset, corners_83, require_readable_size

_PIXELS_ELSEWHERE = re.compile(rb"^(?:ElementDataFile\s*=|data ?file:)[ \t]*(.+?)\s*$", re.MULTILINE | re.I)
"""How a header names the file of its pixels."""


class ItkDataset(ScanDataset):
    """The labelled slices of every volume of a folder. Raises DataError."""

    suffixes = frozenset({".nrrd", ".nhdr", ".mha", ".mhd"})
    kinds = "NRRD or MetaImage (.nrrd, .nhdr, .mha, .mhd)"

    def __init__(self, path: Path, spec: DataSpec = PLAIN) -> None:
        _itk()
        super().__init__(path, spec)

    def voxels(self, path: Path, *, as_labels: bool) -> NDArray[Any]:
        """Stored values (X, Y, Z)."""
        reader = _header(path)
        with _reading(path):
            # SimpleITK gives (Z, Y, X).
            values = np.asarray(_itk().GetArrayFromImage(reader.Execute())).transpose(2, 1, 0)
        return values if as_labels else values.astype(np.float32)

    def grid(self, path: Path) -> tuple[tuple[int, ...], NDArray[np.float64] | None]:
        """The sides, and the places of the corners by direction, spacing and origin."""
        header = _header(path)
        shape = tuple(header.GetSize())
        directions = np.array(header.GetDirection()).reshape(3, 3)
        return shape, corners_83(directions * np.array(header.GetSpacing()) * shape, header.GetOrigin())

    def bits_in(self, path: Path) -> int:
        """Bits per voxel."""
        name = _itk().GetPixelIDValueAsString(_header(path).GetPixelID())
        return int(found[0]) if (found := re.findall(r"\d+", name)) else 8


def _header(path: Path) -> Any:
    """A SimpleITK reader that has read the header of one gray volume."""
    itk = _itk()
    _require_own_pixels(path)
    reader = itk.ImageFileReader()
    with _reading(path):
        reader.SetImageIO("NrrdImageIO" if path.suffix.lower() in (".nrrd", ".nhdr") else "MetaImageIO")
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
    size = tuple(int(side) for side in reader.GetSize())
    if len(size) != 3 or reader.GetNumberOfComponents() != 1:
        raise DataError(
            f"{path}: expected one gray volume with three axes, found {len(size)} axes and "
            f"{reader.GetNumberOfComponents()} values per voxel; save each channel, time point or layer as a "
            "file of its own"
        )
    require_readable_size(size, path)
    return reader


def _require_own_pixels(path: Path) -> None:
    """Raise DataError if the header takes its pixels from outside its own folder."""
    with _reading(path), path.open("rb") as file:
        head = file.read(65536)
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


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    with reading(path, "a complete NRRD or MetaImage volume"):
        try:
            yield
        except RuntimeError as fault:
            # SimpleITK writes several lines with places in its own source; the last one says what is wrong.
            *_, last = str(fault).strip().splitlines() or [type(fault).__name__]
            raise ValueError(last) from fault
