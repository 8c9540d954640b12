"""Multi-page TIFF and OME-TIFF files (microscopy stacks) as slices, through tifffile.

Layout: images/*.tif, *.tiff, *.ome.tif or *.ome.tiff and masks/ with the same stems and shapes; each page is
a slice in depth or time. Of several channels one is read, and a mask has none. 8-bit stacks keep their
values. Stacks with more bits are scaled by the percentiles of the whole stack, so that slices keep their
relative brightness.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from casam_core.errors import DataError
from client.data.labels import whole_labels
from client.data.pixels import LOSSY_TIFF, percentile_range, reading, to_uint8
from client.data.readers.volumes import VolumeDataset, require_readable_size


class TiffStackDataset(VolumeDataset):
    """The labelled pages of every stack of a folder. Raises DataError. DataSpec.channel: which one to read of
    images with several."""

    suffixes = frozenset({".tif", ".tiff", ".ome.tif", ".ome.tiff"})
    kinds = "TIFF (.tif, .tiff, .ome.tif, .ome.tiff)"

    def image(self, path: Path) -> NDArray[np.uint8]:
        """Pages as 8 bits."""
        values, inverted = _read(path, channel=self.spec.channel)
        if values.dtype == np.bool_:
            values = values.astype(np.uint8) * 255
        image = values if values.dtype == np.uint8 else to_uint8(values, *percentile_range(values, str(path)))
        return 255 - image if inverted else image

    def mask(self, path: Path) -> NDArray[Any]:
        """Pages of labels. Raises DataError."""
        values, inverted = _read(path, as_mask=True)
        if values.ndim != 3 or inverted:
            found = "an inverted gray scale (MinIsWhite)" if inverted else "colour"
            raise DataError(
                f"{path}: expected a label map with one value per pixel and 0 as background, found {found}; "
                f"save it with a plain gray scale"
            )
        return whole_labels(values, path)

    def grid(self, path: Path) -> tuple[tuple[int, ...], NDArray[np.float64] | None]:
        """Pages, height and width."""
        with _open(path) as file:
            return _grid(_series(file, path)), None

    def bits_in(self, path: Path) -> int:
        """Bits per value."""
        with _open(path) as file:
            return max(8, _series(file, path).dtype.itemsize * 8)


def channels_of(path: Path) -> int:
    """How many channels a stack has. Raises DataError."""
    with _open(path) as file:
        series = _series(file, path)
        return int(series.shape[series.axes.index("C")]) if "C" in series.axes else 1


def _open(path: Path) -> tifffile.TiffFile:
    with _reading(path):
        return tifffile.TiffFile(path)


def _series(file: tifffile.TiffFile, path: Path) -> tifffile.TiffPageSeries:
    """The one stack of a file, as (pages, height, width) or with 3 or 4 samples behind."""
    with _reading(path):
        all_series = file.series
    if len(all_series) != 1:
        raise DataError(
            f"{path}: expected pages of one size and type, found {len(all_series)} different kinds of pages; "
            f"save one stack per file"
        )
    series = all_series[0]
    axes, shape = series.axes, tuple(series.shape)
    plain = axes.removesuffix("S").replace("C", "", 1)
    colour_is_last = shape[-1] in (3, 4) and "C" not in axes if axes.endswith("S") else True
    if not plain.endswith("YX") or len(plain) > 3 or "S" in plain or not colour_is_last:
        raise DataError(
            f"{path}: expected gray or RGB pages along one axis, or channels (C), found the axes {axes} with "
            f"shape {shape}; save each time point as a stack of its own"
        )
    require_readable_size(shape, path)
    return series


def _grid(series: tifffile.TiffPageSeries) -> tuple[int, ...]:
    """(pages, height, width), without colour and channels; a single page counts as a stack of one."""
    sides = zip(series.axes, series.shape, strict=True)
    shape = tuple(int(side) for axis, side in sides if axis not in "CS")
    return shape if len(shape) == 3 else (1, *shape)


def _read(path: Path, *, as_mask: bool = False, channel: int = 0) -> tuple[NDArray[Any], bool]:
    """Stored values (D, H, W) or (D, H, W, 3), and whether 0 means white."""
    with _open(path) as file:
        series = _series(file, path)
        first = file.pages.first
        compression = getattr(first.compression, "name", str(first.compression))
        photometric = getattr(first.photometric, "name", str(first.photometric))
        if as_mask and compression in LOSSY_TIFF:
            raise DataError(
                f"{path}: expected a lossless mask, found {compression} compression; export it without"
            )
        if photometric not in ("MINISBLACK", "MINISWHITE", "RGB"):
            raise DataError(
                f"{path}: expected gray or RGB pages, found the colour space {photometric}; export them again"
            )
        with _reading(path):
            _require_whole(file)
            values = np.asarray(series.asarray())
        if "C" in series.axes and as_mask:
            raise DataError(
                f"{path}: expected one label map, found channels (axes {series.axes}); save one of them, or "
                "merge them into one label map"
            )
        if "C" in series.axes:
            values = _one_channel(values, series.axes, channel, path)
        colour = series.axes.endswith("S")
        values = (
            values.reshape(*_grid(series), *values.shape[-1:]) if colour else values.reshape(_grid(series))
        )
        return (values[..., :3] if colour else values), photometric == "MINISWHITE"


def _one_channel(values: NDArray[Any], axes: str, channel: int, path: Path) -> NDArray[Any]:
    count = values.shape[axes.index("C")]
    if channel >= count:
        raise DataError(
            f"{path}: expected a channel from 0 to {count - 1}, found channel = {channel}; correct the key"
        )
    chosen: NDArray[Any] = values.take(channel, axis=axes.index("C"))
    return chosen


def _require_whole(file: tifffile.TiffFile) -> None:
    """Raise ValueError for an incomplete file: tifffile fills missing strips with zeros."""
    size = file.filehandle.size
    for page in file.pages:
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if count == 0 or offset + count > size:
                raise ValueError("the file ends before its pixels do")


def _reading(path: Path) -> AbstractContextManager[None]:
    advice = "export or copy it again, without compression or with deflate"
    return reading(path, "a complete TIFF stack", advice)
