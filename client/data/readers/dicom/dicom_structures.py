"""Structures drawn on a DICOM series: DICOM SEG and RTSTRUCT objects, as masks of its slices.

A SEG holds a mask for each slice and segment, an RTSTRUCT outlines in millimetres. Both are placed by their
position in space and refused if they do not lie on the slices: nothing is resampled. Outlines of one
structure on one slice are joined by exclusive or, so an inner outline is a hole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.errors import DataError
from client.data.labels import fill_polygon
from client.data.pixels import reading
from client.data.readers.dicom.dicom_headers import SliceHeader
from client.data.readers.volumes import Recent, corners_83, medical_package, require_readable_size

Drawing = Callable[[], NDArray[Any]]
"""Draws one structure on one slice: values_HW, 0 is background."""

Drawings = dict[int, list[Drawing]]
"""By the index of a slice: the structures on it. Their names may be equal, as of several lesions."""

_OUTLINE = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_BODY = "EXTERNAL"


class Grid:
    """Where the pixels of a series are. slices: in their order, with places and spacing."""

    def __init__(self, source: Path, slices: Sequence[SliceHeader]) -> None:
        self.size = slices[0].size
        if any(s.size != self.size or s.spacing != slices[0].spacing for s in slices):
            raise DataError(f"{source}: expected slices of one size in its series, found several; split it")
        positions, directions = slices[0].position, slices[0].orientation
        if positions is None or directions is None or slices[0].spacing is None:
            raise DataError(
                f"{source}: expected ImagePositionPatient, ImageOrientationPatient and PixelSpacing in the "
                "slices that it refers to, found none; export the series again"
            )
        self.directions_23 = np.array(directions).reshape(2, 3)
        self.along_row, self.along_column = self.directions_23
        self.normal = np.cross(self.along_row, self.along_column)
        self.spacing = self.between_rows, self.between_columns = slices[0].spacing
        self.origins_N3 = np.array([s.position for s in slices], float)
        self.heights_N = self.origins_N3 @ self.normal
        if (np.diff(self.heights_N) <= 0).any():
            raise DataError(f"{source}: expected one slice at each place, found several; split its series")

    def slice_at(self, place_3: NDArray[np.float64]) -> int | None:
        """The slice at a place in mm, no farther than half a pixel; None if there is none."""
        distances_N = np.abs(self.heights_N - place_3 @ self.normal)
        index = int(distances_N.argmin())
        return index if distances_N[index] <= min(self.spacing) / 2 else None

    def corners(
        self, place_3: NDArray[np.float64], directions_23: NDArray[np.float64], spacing: Sequence[float]
    ) -> NDArray[np.float64]:
        """Places in mm of the corners of a plane with this size, each twice. spacing: as in a header."""
        sides_23 = directions_23 * [[spacing[1] * self.size[1]], [spacing[0] * self.size[0]]]
        return corners_83(np.vstack([sides_23, np.zeros(3)]).T, place_3)

    def pixels(self, index: int, places_K3: NDArray[np.float64]) -> NDArray[np.float64]:
        """xy_K2 of places in mm on a slice, in pixels from the corner of its first pixel."""
        inside_K3 = places_K3 - self.origins_N3[index]
        columns_K = inside_K3 @ self.along_row / self.between_columns
        rows_K = inside_K3 @ self.along_column / self.between_rows
        return np.stack([columns_K, rows_K], axis=1) + 0.5  # DICOM names the centre of the first pixel


def structures_in(
    source: Path, data: Any, slices: Sequence[SliceHeader], wanted: Sequence[str] | None, kept: Recent
) -> tuple[Drawings, tuple[str, ...]]:
    """The drawings of a SEG or RTSTRUCT object on the slices of its series, and the names of what it holds.

    data: the object's header. wanted: names to draw; by default all but the outline of the body. kept: masks
    that stay in memory.
    Raises DataError.
    """
    with reading(source, "a complete DICOM SEG or RTSTRUCT", "export it again"):
        grid = Grid(source, slices)
        names = _segments(data) if data.Modality == "SEG" else _rois(data, wanted)
        chosen = {number: name for number, name in names.items() if wanted is None or name in wanted}
        if data.Modality == "SEG":
            return _segmented(source, data, grid, chosen, kept), tuple(names.values())
        return _contoured(source, data, grid, chosen), tuple(names.values())


def _segments(data: Any) -> dict[int, str]:
    numbered = {int(item.SegmentNumber): str(item.SegmentLabel) for item in data.SegmentSequence}
    return {number: name for number, name in numbered.items() if number}  # 0 is the background of a label map


def _rois(data: Any, wanted: Sequence[str] | None) -> dict[int, str]:
    """Names by number, without the outline of the body unless somebody asks for it."""
    kinds = {
        int(item.ReferencedROINumber): str(item.get("RTROIInterpretedType", ""))
        for item in data.get("RTROIObservationsSequence", [])
    }
    names = {int(item.ROINumber): str(item.ROIName) for item in data.StructureSetROISequence}
    return {
        number: name for number, name in names.items() if wanted is not None or kinds.get(number) != _BODY
    }


def _segmented(source: Path, data: Any, grid: Grid, chosen: Mapping[int, str], kept: Recent) -> Drawings:
    if (int(data.Rows), int(data.Columns)) != grid.size:
        raise DataError(
            f"{source}: expected the size of its slices, {grid.size[1]} x {grid.size[0]}, found "
            f"{data.Columns} x {data.Rows}; resample the segmentation to the series"
        )
    shared = data.get("SharedFunctionalGroupsSequence", [{}])[0]
    kind = str(data.SegmentationType)
    highest = int(data.get("MaximumFractionalValue", 1)) if kind == "FRACTIONAL" else None
    frames = Frames(source, highest, kept)
    by_value = kind == "LABELMAP"
    drawings: Drawings = defaultdict(list)
    drawn: set[tuple[int, int]] = set()
    for frame, own in enumerate(data.PerFrameFunctionalGroupsSequence):
        numbers = list(chosen)
        if not by_value:
            segment = _in_either("SegmentIdentificationSequence", own, shared)
            numbers = [int(segment.ReferencedSegmentNumber)]
        found = frames.get(frame)
        for number in numbers:
            seen = found == number if by_value else found
            if number not in chosen or not seen.any():
                continue
            index = _slice_of(source, own, shared, grid)
            if (index, number) in drawn:
                raise DataError(
                    f"{source}: expected one mask of each segment on a slice, found two of "
                    f"{chosen[number]!r}; export it again"
                )
            drawn.add((index, number))
            drawings[index].append(partial(frames.draw, frame, number if by_value else None))
    return drawings


class Frames:
    """The masks of a SEG. highest: of a fractional one, the value of 1. kept: masks that stay in memory."""

    def __init__(self, source: Path, highest: int | None, kept: Recent) -> None:
        self._source, self._highest, self._kept = source, highest, kept

    def get(self, frame: int) -> NDArray[Any]:
        """values_HW of one frame; of fractions, whether they are a half or more."""
        values_FHW = self._kept.get(self._source, _frames)
        values_HW: NDArray[Any] = values_FHW[frame]
        return values_HW if self._highest is None else values_HW.astype(np.int64) * 2 >= self._highest

    def draw(self, frame: int, number: int | None) -> NDArray[Any]:
        """mask_HW of a frame; number: of the segment in a label map."""
        values_HW = self.get(frame)
        return (values_HW > 0 if number is None else values_HW == number).astype(np.uint8)


def _frames(source: Path) -> NDArray[Any]:
    data = medical_package("pydicom", reader="dicom").dcmread(source)
    shape = int(data.NumberOfFrames), int(data.Rows), int(data.Columns)
    require_readable_size(shape, source)
    return np.asarray(data.pixel_array).reshape(shape)


def _in_either(key: str, own: Any, shared: Any) -> Any:
    """The item of a functional group of a frame, or of all frames."""
    found = own.get(key) or shared.get(key)
    if not found:
        raise ValueError(f"{key} is absent")
    return found[0]


def _slice_of(source: Path, own: Any, shared: Any, grid: Grid) -> int:
    """The slice of a frame. Raises DataError if a corner lies over half a pixel from the slice's."""
    place_3 = np.array(_in_either("PlanePositionSequence", own, shared).ImagePositionPatient, float)
    turned = _in_either("PlaneOrientationSequence", own, shared).ImageOrientationPatient
    spacing = _in_either("PixelMeasuresSequence", own, shared).PixelSpacing
    index = grid.slice_at(place_3)
    if index is not None:
        own_83 = grid.corners(grid.origins_N3[index], grid.directions_23, grid.spacing)
        frame_83 = grid.corners(place_3, np.array(turned, float).reshape(2, 3), spacing)
        if np.abs(frame_83 - own_83).max() <= min(grid.spacing) / 2:
            return index
    raise _not_on_the_slices(source, "segmentation")


def _contoured(source: Path, data: Any, grid: Grid, chosen: Mapping[int, str]) -> Drawings:
    outlines: dict[int, dict[int, list[NDArray[np.float64]]]] = defaultdict(lambda: defaultdict(list))
    for roi in data.ROIContourSequence:
        number = int(roi.ReferencedROINumber)
        name = chosen.get(number)
        for contour in roi.get("ContourSequence", []) if name is not None else []:
            if str(contour.ContourGeometricType) not in _OUTLINE:
                continue  # points and open lines have no area
            places_K3 = np.array(contour.ContourData, float).reshape(-1, 3)
            indices = {grid.slice_at(places_K3[0]), grid.slice_at(places_K3[-1])}
            if len(indices) != 1 or (index := indices.pop()) is None:
                raise _not_on_the_slices(source, f"outline of {name!r}")
            outlines[index][number].append(grid.pixels(index, places_K3))
    drawings: Drawings = defaultdict(list)
    for index, found in outlines.items():
        for rings in found.values():
            if _filled(rings, grid.size).any():
                drawings[index].append(partial(_filled, rings, grid.size))
    return drawings


def _filled(rings: Sequence[NDArray[np.float64]], size: tuple[int, int]) -> NDArray[np.uint8]:
    mask_HW = np.zeros(size, np.bool_)
    for xy_K2 in rings:
        mask_HW ^= fill_polygon(xy_K2, size)
    return mask_HW.astype(np.uint8)


def _not_on_the_slices(source: Path, what: str) -> DataError:
    return DataError(
        f"{source}: expected every {what} on a slice of its series, found one beside them or turned; "
        "resample it to the series, or add the slices that are missing"
    )
