"""Multi-page TIFF files (microscopy stacks) as slices, through tifffile.

Layout: images/*.tif or *.tiff and masks/ with the same stems and shapes; each page is a slice. 8-bit
stacks keep their values. Stacks with more bits are scaled by the percentiles of the whole stack, so that
slices keep their relative brightness.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from casam_core.errors import DataError
from client.data.file_patterns import Patterns
from client.data.labels import Meaning
from client.data.pixels import LOSSY_TIFF, one_line, percentile_range, to_uint8
from client.data.readers.volumes import (
    VolumeDataset,
    VolumeFormat,
    require_readable_size,
    shapes_differ,
    whole_labels,
)


def open_tiff_stack(
    path: Path,
    *,
    labels: Meaning = "instances",
    group_pattern: str | None = None,
    patterns: Patterns | None = None,
) -> VolumeDataset:
    """The labelled pages of every stack of `path`. Raises DataError."""
    return VolumeDataset(
        path,
        VolumeFormat(
            suffixes=frozenset({".tif", ".tiff"}),
            names="TIFF (.tif, .tiff)",
            image=_image,
            mask=_mask,
            compare=_compare,
            bits=_bits,
        ),
        labels,
        group_pattern,
        patterns,
    )


def _image(path: Path) -> NDArray[np.uint8]:
    values, inverted = _read(path)
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    image = values if values.dtype == np.uint8 else to_uint8(values, *percentile_range(values, str(path)))
    return 255 - image if inverted else image


def _mask(path: Path) -> NDArray[Any]:
    values, inverted = _read(path, as_mask=True)
    if values.ndim != 3 or inverted:
        found = "an inverted gray scale (MinIsWhite)" if inverted else "colour"
        raise DataError(
            f"{path}: expected a label map with one value per pixel and 0 as background, found {found}; "
            f"save it with a plain gray scale"
        )
    return whole_labels(values, path)


def _compare(image_path: Path, mask_path: Path) -> None:
    grids = []
    for path in (image_path, mask_path):
        with _open(path) as file:
            grids.append(_grid(_series(file, path)))
    if grids[0] != grids[1]:
        raise shapes_differ(image_path, mask_path, *grids)


def _bits(path: Path) -> int:
    with _open(path) as file:
        return max(8, _series(file, path).dtype.itemsize * 8)


def _open(path: Path) -> tifffile.TiffFile:
    try:
        return tifffile.TiffFile(path)
    except Exception as fault:
        raise _damaged(path, fault) from fault


def _series(file: tifffile.TiffFile, path: Path) -> tifffile.TiffPageSeries:
    """The one stack of a file, as (pages, height, width) or with 3 or 4 samples behind."""
    try:
        all_series = file.series
    except Exception as fault:
        raise _damaged(path, fault) from fault
    if len(all_series) != 1:
        raise DataError(
            f"{path}: expected pages of one size and type, found {len(all_series)} different kinds of pages; "
            f"save one stack per file"
        )
    series = all_series[0]
    axes, shape = series.axes, tuple(series.shape)
    plain = axes.removesuffix("S")
    colour_is_last = shape[-1] in (3, 4) if axes.endswith("S") else True
    if not plain.endswith("YX") or len(plain) > 3 or plain[:-2] in ("C", "S") or not colour_is_last:
        raise DataError(
            f"{path}: expected gray or RGB pages along one axis, found the axes {axes} with shape {shape}; "
            f"save each channel or time point as a stack of its own"
        )
    require_readable_size(shape, path)
    return series


def _grid(series: tifffile.TiffPageSeries) -> tuple[int, ...]:
    """(pages, height, width), without colour; a single page counts as a stack of one."""
    shape = tuple(int(side) for side in series.shape)
    shape = shape[:-1] if series.axes.endswith("S") else shape
    return shape if len(shape) == 3 else (1, *shape)


def _read(path: Path, *, as_mask: bool = False) -> tuple[NDArray[Any], bool]:
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
        try:
            _require_whole(file)
            values = np.asarray(series.asarray())
        except Exception as fault:
            raise _damaged(path, fault) from fault
        colour = series.axes.endswith("S")
        values = (
            values.reshape(*_grid(series), *values.shape[-1:]) if colour else values.reshape(_grid(series))
        )
        return (values[..., :3] if colour else values), photometric == "MINISWHITE"


def _require_whole(file: tifffile.TiffFile) -> None:
    """Raise ValueError for an incomplete file: tifffile fills missing strips with zeros."""
    size = file.filehandle.size
    for page in file.pages:
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if count == 0 or offset + count > size:
                raise ValueError("the file ends before its pixels do")


def _damaged(path: Path, fault: Exception) -> DataError:
    return DataError(
        f"{path}: expected a complete TIFF stack, found one that cannot be read ({one_line(fault)}); "
        f"export or copy it again, without compression or with deflate"
    )
