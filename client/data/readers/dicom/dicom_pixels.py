"""Pixels of one DICOM slice: decoded, rescaled and shown as 8 bits."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.errors import DataError
from client.data.pixels import MAX_PIXELS, as_rgb, percentile_range, reading, to_uint8
from client.data.readers.volumes import medical_package


@dataclass(frozen=True)
class StoredSlice:
    """values: (height, width) after slope and intercept, or (height, width, 3) uint8 colour.
    inverted: whether low values are bright. window: [centre, width] of the header, if it has one.
    """

    values: NDArray[Any]
    inverted: bool
    window: list[float] | None


def read_slice(path: Path) -> StoredSlice:
    """Decode one file. Raises DataError; for compressions without a decoder, it names the compression."""
    pydicom = medical_package("pydicom", reader="dicom")
    with _reading(path):
        data = pydicom.dcmread(path)
        rows, columns = int(data.Rows), int(data.Columns)
        colours = str(data.PhotometricInterpretation)
    if rows * columns > MAX_PIXELS:
        raise DataError(f"{path}: expected at most {MAX_PIXELS} pixels, found {columns} x {rows}; crop it")
    if colours not in ("MONOCHROME1", "MONOCHROME2", "RGB"):
        raise DataError(
            f"{path}: expected MONOCHROME1, MONOCHROME2 or RGB pixels, found {colours}; convert the series"
        )
    _require_decoder(path, data)
    with _reading(path):
        values = data.pixel_array
        if colours == "RGB":
            if values.dtype != np.uint8 or values.ndim != 3:
                raise ValueError(f"{values.dtype} colour of shape {values.shape} is not read")
            return StoredSlice(values, False, None)
        rescaled = medical_package("pydicom.pixels", reader="dicom").apply_modality_lut(values, data)
        return StoredSlice(np.asarray(rescaled, np.float32), colours == "MONOCHROME1", _window(data))


def show(stored: StoredSlice, black_white: tuple[float, float]) -> NDArray[np.uint8]:
    """uint8 RGB; colour unchanged, gray scaled from black to white and reversed if low values are bright."""
    if stored.values.ndim == 3:
        return as_rgb(stored.values)
    image_HW = to_uint8(stored.values, *black_white)
    return as_rgb(255 - image_HW if stored.inverted else image_HW)


def gray_range(files: tuple[Path, ...]) -> tuple[float, float]:
    """(black, white) of a whole series by its percentiles. Raises DataError."""
    pixels = [read_slice(file).values.ravel() for file in files]
    return percentile_range(np.concatenate(pixels), str(files[0].parent))


def bits_of(path: Path) -> int:
    """Bits per value as allocated in the file."""
    pydicom = medical_package("pydicom", reader="dicom")
    with _reading(path):
        return max(8, int(pydicom.dcmread(path, stop_before_pixels=True).BitsAllocated))


def _require_decoder(path: Path, data: Any) -> None:
    with _reading(path):
        syntax = data.file_meta.TransferSyntaxUID
        compressed = syntax.is_compressed
    if not compressed or syntax.name.startswith("Deflated"):
        return
    try:
        decoder = medical_package("pydicom.pixels", reader="dicom").get_decoder(syntax)
        available = decoder.is_available
    except NotImplementedError:
        available = False
    if not available:
        raise DataError(
            f"{path}: expected pixels that can be decoded here, found {syntax.name} compression without a "
            f"decoder; install pylibjpeg with its plugins, or decompress the series (e.g. gdcmconv --raw)"
        )


def _window(data: Any) -> list[float] | None:
    """The first window of the header, read as linear."""
    centre, width = data.get("WindowCenter"), data.get("WindowWidth")
    if centre is None or width is None:
        return None
    first = [value if isinstance(value, (int, float)) else value[0] for value in (centre, width)]
    window = [float(value) for value in first]
    return window if window[1] > 0 else None


def _reading(path: Path) -> AbstractContextManager[None]:
    return reading(path, "a complete DICOM slice")
