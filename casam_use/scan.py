"""A scan as slices: a NIfTI file, or a folder with one DICOM series; and the mask that is written for it.

The mask is NIfTI on the scan's own grid. The mask of a NIfTI scan gets every field of its header that says
where voxels are, because programs differ in which of them they believe. Places are in millimetres, in NIfTI's
axes (right, anterior, superior); DICOM's are (left, posterior, superior), so the first two change their sign.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.errors import DataError
from casam_core.files import write_atomic
from client.data.labels import whole_labels
from client.data.pixels import as_rgb, reading, window_range
from client.data.readers.dicom.dicom_headers import SliceHeader, in_order, read_headers, require_one_series
from client.data.readers.dicom.dicom_pixels import gray_range, read_slice, show
from client.data.readers.nifti import opened, voxels_of
from client.data.readers.volumes import corners_83, gray_slices, medical_package, require_same_place

SUFFIXES = (".nii", ".nii.gz")

PLACE = (
    *("xyzt_units", "pixdim", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)
"""Fields of a NIfTI header that say where voxels are. Others may hold words about the patient."""

MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
"""By NIfTI's name of a unit. A header without a unit means millimetres."""

UNEVEN = 0.1
"""How far a slice may lie from its place between first and last, in steps. Scanners round positions; where a
slice is missing, one lies at least half a step away."""


@dataclass(frozen=True, eq=False)
class Scan:
    """slices_DHW: gray, uint8. axis: of the stored voxels that the slices cut, 0 to 2. affine: (4, 4), from
    voxel indices to millimetres. header: of a NIfTI file; None where the affine says all about the place.
    """

    slices_DHW: NDArray[np.uint8]
    axis: int
    affine: NDArray[np.float64]
    header: Any = None

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

    @property
    def voxel(self) -> float:
        """Cubic millimetres of a voxel, also where its edges are not at right angles (a tilted gantry)."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def rectangular(self) -> bool:
        """Whether the edges of a voxel are at right angles, to 0.1 degrees."""
        directions = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        return bool(np.abs(directions.T @ directions - np.eye(3)).max() < np.radians(0.1))

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
        if axis != 2:
            raise DataError(
                f"{path}: expected slice axis 2, as a DICOM series was scanned, found {axis}; leave it out, "
                "or convert the series to NIfTI"
            )
        return _dicom(path, window)
    if not path.name.lower().endswith(SUFFIXES) or not path.is_file():
        raise DataError(
            f"{path}: expected a NIfTI file (.nii, .nii.gz) or a folder with one DICOM series, found "
            f"{'another file' if path.exists() else 'nothing'}; check the path"
        )
    header = opened(path).header
    return Scan(gray_slices(voxels_of(path, np.float32), path, axis, window), axis, _place_of(path), header)


def read_labels(path: Path, scan: Scan) -> NDArray[np.int64]:
    """labels_DHW of a NIfTI mask on the scan's grid. Raises DataError for another shape or place."""
    labels_DHW = whole_labels(voxels_of(path, None), path).transpose(scan.order)
    if labels_DHW.shape != scan.slices_DHW.shape:
        raise DataError(
            f"{path}: expected a mask of {scan.slices_DHW.shape} (slices, rows, columns) as the scan, found "
            f"{labels_DHW.shape}; export both on the same grid"
        )
    sides = np.array(labels_DHW.shape)[np.argsort(scan.order)]
    own, theirs = (corners_83(a[:3, :3] * sides, a[:3, 3]) for a in (scan.affine, _place_of(path)))
    require_same_place("the scan", path, own, theirs)
    return labels_DHW.astype(np.int64)


def write_labels(labels_DHW: NDArray[np.int32], scan: Scan, path: Path) -> None:
    """Write the mask as NIfTI with the scan's grid: 0 background, 1..n the objects."""
    nibabel = medical_package("nibabel", reader="nifti")
    stored = np.transpose(labels_DHW, np.argsort(scan.order))
    header = nibabel.Nifti1Header()
    header.set_xyzt_units("mm")
    header.set_sform(scan.affine, code="aligned")
    header["pixdim"][1:4] = np.linalg.norm(scan.affine[:3, :3], axis=0)
    for field in PLACE if scan.header is not None else ():
        header[field] = scan.header[field]
    kind = np.uint8 if stored.max() < 256 else np.uint16
    header.set_data_dtype(kind)
    data: bytes = nibabel.Nifti1Image(stored.astype(kind), None, header).to_bytes()
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
    placed = [(header.orientation, header.position, header.spacing) for header in headers]
    if any(part is None for one in placed for part in one):
        raise DataError(
            f"{folder}: expected ImageOrientationPatient, ImagePositionPatient and PixelSpacing in every "
            "slice, found slices without; without them the mask would have no place in space"
        )
    if len({header.spacing for header in headers}) > 1:
        raise DataError(f"{folder}: expected one PixelSpacing, found several; give each series a folder")
    orientation, first, (between_rows, between_columns) = (np.array(part) for part in placed[0])
    steps_N3 = np.array([header.position for header in headers]) - first
    last = len(headers) - 1
    normal = np.cross(orientation[:3], orientation[3:])
    step = steps_N3[-1] / last if last else normal * _thickness(headers[0].file)
    apart = np.linalg.norm(steps_N3 - np.arange(len(headers))[:, None] * step, axis=1)
    if apart.max() > UNEVEN * np.linalg.norm(step):
        raise DataError(
            f"{folder}: expected slices at equal distances, found one {apart.max():.2f} mm from its place; "
            "add missing slices, or export time points apart"
        )
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = orientation[:3] * between_columns, orientation[3:] * between_rows
    affine[:3, 2], affine[:3, 3] = step, first
    return _solid(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, folder)


def _thickness(file: Path) -> float:
    """SliceThickness in mm: a lone slice has no next one to measure to. 1 where the header has none."""
    pydicom = medical_package("pydicom", reader="dicom")
    with reading(file, "a DICOM file", "export it again"):
        return float(pydicom.dcmread(file, stop_before_pixels=True).get("SliceThickness") or 1)


def _place_of(path: Path) -> NDArray[np.float64]:
    """The affine of a NIfTI file, in millimetres."""
    image = opened(path)
    unit = MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
    return _solid(np.diag([unit, unit, unit, 1.0]) @ np.asarray(image.affine, np.float64), path)


def _solid(affine: NDArray[np.float64], source: Path) -> NDArray[np.float64]:
    """The affine, if its voxels have a place and a volume. Raises DataError."""
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) < 4:
        raise DataError(
            f"{source}: expected a header with a place in space and three directions, found numbers that are "
            "not finite or a voxel without a volume; correct the header"
        )
    return affine
