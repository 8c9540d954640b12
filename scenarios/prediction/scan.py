"""A scan as slices: a NIfTI file, or a folder with one DICOM series; and the mask that is written for it.

The mask is NIfTI on the scan's own grid. Places are in millimetres, in NIfTI's axes (right, anterior,
superior); DICOM's are (left, posterior, superior), so the first two change their sign.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from casam_core.errors import DataError
from casam_core.files import write_atomic
from client.data.labels import whole_labels
from client.data.pixels import as_rgb, window_range
from client.data.readers.dicom.dicom_headers import SliceHeader, in_order, read_headers, require_one_series
from client.data.readers.dicom.dicom_pixels import gray_range, read_slice, show
from client.data.readers.nifti import opened, voxels_of
from client.data.readers.volumes import corners_83, gray_slices, medical_package, require_same_place

SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True, eq=False)
class Scan:
    """slices_DHW: gray, uint8. axis: of the stored voxels that the slices cut, 0 to 2. affine: (4, 4), from
    voxel indices to millimetres.
    """

    slices_DHW: NDArray[np.uint8]
    axis: int
    affine: NDArray[np.float64]

    @property
    def order(self) -> tuple[int, int, int]:
        """The stored voxels' axes as (slice, row, column)."""
        columns, rows = (axis for axis in range(3) if axis != self.axis)
        return self.axis, rows, columns

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres from slice to slice, row to row, column to column."""
        sides = np.linalg.norm(self.affine[:3, :3], axis=0)
        slices, rows, columns = (float(sides[axis]) for axis in self.order)
        return slices, rows, columns

    def image(self, index: int) -> NDArray[np.uint8]:
        """RGB pixels_HW3 of one slice."""
        return as_rgb(self.slices_DHW[index])


def read_scan(path: Path, axis: int = 2, window: list[float] | None = None) -> Scan:
    """The scan in a NIfTI file, or in a folder with one DICOM series (cut as it was scanned).

    Args:
        axis: of the voxels that the slices cut; NIfTI only.
        window: [centre, width] in the scan's units. Default: the scan's percentiles, for DICOM the header's
            window if it has one; as the readers of training images do.

    Raises:
        DataError: not a scan, or a damaged one.
    """
    if window is not None and not (np.isfinite(window).all() and window[1] > 0):
        raise DataError(f"window: expected CENTRE,WIDTH with a width above 0, found {window}; correct it")
    if path.is_dir():
        return _dicom(path, window)
    if not path.name.lower().endswith(SUFFIXES) or not path.is_file():
        raise DataError(
            f"{path}: expected a NIfTI file (.nii, .nii.gz) or a folder with one DICOM series, found "
            f"{'another file' if path.exists() else 'nothing'}; check the path"
        )
    affine = np.asarray(opened(path).affine, np.float64)
    return Scan(gray_slices(voxels_of(path, np.float32), path, axis, window), axis, affine)


def read_labels(path: Path, scan: Scan) -> NDArray[np.int64]:
    """labels_DHW of a NIfTI mask on the scan's grid. Raises DataError for another shape or place."""
    labels_DHW = whole_labels(voxels_of(path, None), path).transpose(scan.order)
    if labels_DHW.shape != scan.slices_DHW.shape:
        raise DataError(
            f"{path}: expected a mask of {scan.slices_DHW.shape} (slices, rows, columns) as the scan, found "
            f"{labels_DHW.shape}; export both on the same grid"
        )
    sides = np.array(labels_DHW.shape)[np.argsort(scan.order)]
    own, theirs = (corners_83(a[:3, :3] * sides, a[:3, 3]) for a in (scan.affine, opened(path).affine))
    require_same_place("the scan", path, own, theirs)
    return labels_DHW.astype(np.int64)


def write_labels(labels_DHW: NDArray[np.int32], scan: Scan, path: Path) -> None:
    """Write the mask as NIfTI with the scan's grid: 0 background, 1..n the objects."""
    nibabel = medical_package("nibabel", reader="nifti")
    stored = np.transpose(labels_DHW, np.argsort(scan.order))
    image = nibabel.Nifti1Image(stored.astype(np.uint8 if stored.max() < 256 else np.uint16), scan.affine)
    image.header.set_xyzt_units("mm")
    data: bytes = image.to_bytes()
    # Without a time stamp: equal masks give equal files.
    write_atomic(path, gzip.compress(data, mtime=0) if path.name.lower().endswith(".gz") else data)


def _dicom(folder: Path, window: list[float] | None) -> Scan:
    headers = read_headers(folder)
    require_one_series(folder, headers)
    headers = in_order(folder, headers)
    files = tuple(header.file for header in headers)
    own: tuple[float, float] | None = None
    slices = []
    for file in files:
        stored = read_slice(file)
        if stored.values.ndim == 3:
            raise DataError(f"{file}: expected gray slices, found colour; segment such images one by one")
        if chosen := window or stored.window:
            black_white = window_range(chosen)
        else:
            own = own or gray_range(files)
            black_white = own
        slices.append(show(stored, black_white)[..., 0])
    if len({one.shape for one in slices}) > 1:
        raise DataError(f"{folder}: expected slices of one size, found several; give each series a folder")
    return Scan(np.stack(slices), 2, _affine(folder, headers))


def _affine(folder: Path, headers: list[SliceHeader]) -> NDArray[np.float64]:
    """From (column, row, slice) to millimetres (DICOM PS3.3 C.7.6.2.1.1), in NIfTI's axes."""
    first, last = headers[0], headers[-1]
    if first.orientation is None or first.position is None or first.spacing is None or last.position is None:
        raise DataError(
            f"{folder}: expected ImageOrientationPatient, ImagePositionPatient and PixelSpacing in every "
            "slice, found slices without; without them the mask would have no place in space"
        )
    along_row, along_column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    between_rows, between_columns = first.spacing
    steps = len(headers) - 1
    step = (np.array(last.position) - np.array(first.position)) / steps if steps else np.zeros(3)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = (
        along_row * between_columns,
        along_column * between_rows,
        step,
    )
    affine[:3, 3] = first.position
    if not steps:
        affine[:3, 2] = np.cross(along_row, along_column)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
