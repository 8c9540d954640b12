"""A folder of DICOM files as an archive exports it: series in any folders, with SEG or RTSTRUCT objects.

Files are ordered by their headers, not by their names: slices by their series, objects by the series that
they refer to. A series without an object is not read. Where a series has both kinds of objects, its SEG is
read, because archives export outlines as masks, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casam_core.errors import DataError
from client.data.dataset import for_each
from client.data.file_patterns import files_below
from client.data.listing import naming
from client.data.pixels import reading
from client.data.readers.dicom.dicom_headers import (
    SliceHeader,
    header_of,
    in_order,
    is_dicom,
    require_one_series,
)
from client.data.readers.dicom.dicom_structures import Drawings, structures_in
from client.data.readers.volumes import Recent, medical_package

OBJECTS = ("SEG", "RTSTRUCT")


@dataclass(frozen=True)
class DrawnSeries:
    """A series in its order, with the drawings on it. source: of the drawings, for messages."""

    slices: tuple[SliceHeader, ...]
    drawings: Drawings
    source: Path


def read_tree(path: Path, wanted: Sequence[str] | None) -> tuple[list[DrawnSeries], tuple[str, ...]]:
    """All series with an object, and what a person should know about the choice.

    wanted: names of the structures to draw. Raises DataError; one error lists the faults of all objects.
    """
    files = [path / name for name in files_below(path) if is_dicom(path / name)]
    series: dict[str, list[SliceHeader]] = defaultdict(list)
    objects: list[SliceHeader] = []
    for header in for_each(header_of, files):
        if header.modality in OBJECTS:
            objects.append(header)
        elif header.size != (0, 0):
            series[header.series].append(header)
    if not objects:
        raise DataError(
            f"{path}: expected DICOM SEG or RTSTRUCT objects beside {len(series)} series, found none; add "
            "them, or label maps as PNG (docs/data.md)"
        )
    chosen = _chosen(objects, series)
    kept = Recent()
    found = for_each(lambda uid: _drawn(series[uid], chosen[uid], wanted, kept), sorted(chosen))
    names = sorted({name for _, held in found for name in held})
    if unknown := sorted(set(wanted or ()) - set(names)):
        raise DataError(
            f"{path}: expected structures among {', '.join(names)}, found {', '.join(unknown)}; correct "
            "structures"
        )
    notes = [f"structures: {', '.join(wanted or names)}"]
    if wanted is None:
        notes = [f"{notes[0]}; choose some with structures = [...]"]
    if rest := len(series) - len(chosen):
        notes.append(f"{rest} series without a SEG or RTSTRUCT are not read")
    if skipped := len(objects) - sum(map(len, chosen.values())):
        notes.append(f"{skipped} RTSTRUCT are not read, because their series has a SEG")
    return [one for one, _ in found if one.drawings], tuple(notes)


def _chosen(
    objects: Sequence[SliceHeader], series: Mapping[str, list[SliceHeader]]
) -> dict[str, list[SliceHeader]]:
    """By series, the objects to read: its SEG, or where it has none its RTSTRUCT."""
    chosen: dict[str, list[SliceHeader]] = defaultdict(list)
    for modality in OBJECTS:
        drawn = set(chosen)
        for header in objects:
            if header.modality == modality and not drawn & set(header.refers_to):
                chosen[_series_of(header, series)].append(header)
    return chosen


def _series_of(header: SliceHeader, series: Mapping[str, list[SliceHeader]]) -> str:
    """The series that an object is drawn on."""
    found = set(header.refers_to) & series.keys()
    if len(found) != 1:
        raise DataError(
            f"{header.file}: expected the one series it refers to in this folder, found {len(found)}; add "
            "it, or leave the object out of the data"
        )
    return found.pop()


def _drawn(
    slices: list[SliceHeader],
    objects: list[SliceHeader],
    wanted: Sequence[str] | None,
    kept: Recent,
) -> tuple[DrawnSeries, tuple[str, ...]]:
    folder = slices[0].file.parent
    require_one_series(folder, slices)
    ordered = in_order(folder, slices)
    drawings: Drawings = defaultdict(list)
    names: list[str] = []
    for found, held in (_structures(header.file, ordered, wanted, kept) for header in objects):
        if again := sorted(set(names) & set(held) & set(wanted or held)):
            raise DataError(
                f"{folder}: expected each structure in one object of its series, found "
                f"{naming(again, 'structure')} in several, as of several readers; leave one object out of "
                "the data"
            )
        names += held
        for index, own in found.items():
            drawings[index] += own
    if not drawings and wanted is None:
        raise DataError(
            f"{objects[0].file}: expected at least one structure on its series, found none; draw it, or "
            "leave the object out of the data"
        )
    return DrawnSeries(tuple(ordered), drawings, objects[0].file), tuple(names)


def _structures(
    file: Path, ordered: Sequence[SliceHeader], wanted: Sequence[str] | None, kept: Recent
) -> tuple[Drawings, tuple[str, ...]]:
    pydicom = medical_package("pydicom", reader="dicom")
    with reading(file, "a DICOM object"):
        data: Any = pydicom.dcmread(file, stop_before_pixels=True)
    return structures_in(file, data, ordered, wanted, kept)
