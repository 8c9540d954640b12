"""DICOM series as slices, through pydicom, with SEG or RTSTRUCT objects or PNG label maps as masks.

A folder without images/ is read as an archive exports it (dicom_tree.py). Otherwise images/CASE/ holds the
slices of one series, masks/CASE/ a PNG for each labelled slice, named
like the slice's file (`IM0007.dcm` -> `IM0007.png`). Slices without a mask or with an empty mask are
excluded. Masks are drawn on the stored pixels.

Ids never contain names. An id consists of short hashes of PatientID and SeriesInstanceUID and the slice's
place in the series, `p3f2a91c07b-s81d3aa07-z042`; the group is the patient's hash. If PatientID is empty,
the name of the case's folder is used instead: of nested folders the outer one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.config.data_spec import DataSpec
from casam_core.errors import DataError
from client.data.dataset import LoadedSample, Sample, for_each
from client.data.file_patterns import Pair
from client.data.labels import layered, require_same_size
from client.data.listing import files_by_stem, is_folder, naming, require_folder, visible_entries
from client.data.pixels import read_mask, window_range
from client.data.readers.dicom.dicom_headers import (
    SliceHeader,
    in_order,
    privacy_warnings,
    pseudonym,
    read_headers,
    require_one_series,
    slice_stem,
)
from client.data.readers.dicom.dicom_pixels import bits_of, gray_range, read_slice, show
from client.data.readers.dicom.dicom_structures import Drawing
from client.data.readers.dicom.dicom_tree import DrawnSeries, read_tree
from client.data.readers.pairs import PLAIN, FileDataset


@dataclass(frozen=True)
class _Labelled:
    """A slice with its masks. source: the file they come from. draw: one drawing for each structure."""

    file: Path
    source: Path
    draw: tuple[Drawing, ...]


@dataclass(frozen=True)
class _Case:
    patient: str
    slices: dict[str, _Labelled]
    """By id, labelled slices only."""

    files: tuple[Path, ...]
    headers: tuple[SliceHeader, ...]


class DicomDataset(FileDataset):
    """Every labelled slice of the series in `path`.

    window: [centre, width] after rescaling (Hounsfield units for CT), mapped to black..white; by default
    each slice's own window, or the series' percentiles if its header has none. structures: names to read from
    SEG and RTSTRUCT. `warnings` lists the structures and facts about patients in the headers.

    The constructor reads every header and mask; the faults of all cases are raised together.
    """

    def __init__(self, path: Path, spec: DataSpec = PLAIN) -> None:
        require_folder(path, "DICOM series")
        self._spec = spec
        cases, notes = _cases(path, spec.structures)
        self._places: dict[str, tuple[_Case, _Labelled]] = {}
        for case in cases:
            for id_, labelled in case.slices.items():
                if id_ in self._places:
                    raise DataError(
                        f"{case.files[0].parent}: expected a series in one folder, found slices that "
                        f"another folder holds too; leave the copy out of the data"
                    )
                self._places[id_] = case, labelled
        headers = [header for case in cases for header in case.headers]
        self.empty = len(headers) - len(self._places)
        self.warnings = (*notes, *privacy_warnings(headers))
        self._ranges: dict[Path, tuple[float, float]] = {}
        super().__init__(
            path,
            [
                Pair(id_, labelled.file, (labelled.source,), case.patient, None)
                for id_, (case, labelled) in self._places.items()
            ],
        )

    def load(self, sample: Sample) -> LoadedSample:
        """One slice: uint8 RGB and int32 labels 1..n. Raises DataError naming the file."""
        self.pair(sample)  # refuses a sample of another dataset
        case, labelled = self._places[sample.id]
        stored = read_slice(labelled.file)
        image_HW3 = show(stored, self._window_of(case, stored.window))
        values = [draw() for draw in labelled.draw]
        for values_HW in values:
            require_same_size(values_HW, labelled.source, image_HW3, labelled.file)
        if not all(values_HW.any() for values_HW in values):
            raise DataError(
                f"{labelled.source}: expected labels, as when the dataset was opened, found none; leave the "
                "files alone while they are read"
            )
        labels_HW, hidden = layered(values, self._spec.labels)
        if hidden:
            raise DataError(
                f"{labelled.source}: expected structures that differ on {labelled.file.name}, found one "
                "below others; choose with structures = [...]"
            )
        return LoadedSample(image_HW3, labels_HW)

    def bits(self, sample: Sample) -> int:
        """Bits per value as allocated in the file."""
        return bits_of(self.pair(sample).image)

    def _window_of(self, case: _Case, own: list[float] | None) -> tuple[float, float]:
        window = self._spec.window or own
        if window is not None:
            return window_range(window)
        if case.files[0] not in self._ranges:
            self._ranges[case.files[0]] = gray_range(case.files)
        return self._ranges[case.files[0]]


def _cases(path: Path, structures: list[str] | None) -> tuple[list[_Case], tuple[str, ...]]:
    """All cases, and what a person should know about their choice."""
    if is_folder(path / "images") or is_folder(path / "masks"):
        if structures is not None:
            raise DataError(
                f"{path}: expected structures for SEG and RTSTRUCT only, found images/ and masks/; leave "
                "it out"
            )
        return for_each(lambda name: _read_case(path, name), _case_names(path)), ()
    drawn, notes = read_tree(path, structures)
    return [_drawn_case(path, series) for series in drawn], notes


def _drawn_case(path: Path, series: DrawnSeries) -> _Case:
    labelled = {
        index: _Labelled(series.slices[index].file, series.source, tuple(series.drawings[index]))
        for index in sorted(series.drawings)
    }
    outer, *inner = series.slices[0].file.relative_to(path).parts
    return _case(series.slices, labelled, outer if inner else path.name)


def _case(ordered: Sequence[SliceHeader], labelled: dict[int, _Labelled], name: str) -> _Case:
    """name: of the folder, where the headers name no patient or series."""
    patient = ordered[0].patient
    who = pseudonym("patient", patient, 10) if patient else pseudonym("folder", name, 10)
    series = pseudonym("series", ordered[0].series or name, 8)
    slices = {f"p{who}-s{series}-z{index:03d}": found for index, found in labelled.items()}
    return _Case(who, slices, tuple(header.file for header in ordered), tuple(ordered))


def _case_names(path: Path) -> list[str]:
    """Names of the folders in images/. Raises DataError unless masks/ has the same folders."""
    found: dict[str, list[str]] = {}
    for side in ("images", "masks"):
        if not is_folder(path / side):
            raise DataError(f"{path / side}: expected this folder with a folder per case, found none; add it")
        entries = visible_entries(path / side)
        loose = [entry.name for entry in entries if not entry.is_dir() and entry.name != "DICOMDIR"]
        if loose:
            raise DataError(
                f"{path / side}: expected a folder per case, found {naming(loose, 'file')} beside them; move "
                f"each series into a folder of its own"
            )
        found[side] = [entry.name for entry in entries if entry.is_dir()]
    if not found["images"]:
        raise DataError(f"{path / 'images'}: expected at least one case, found none; add a series' folder")
    for side, other in (("images", "masks"), ("masks", "images")):
        alone = sorted(set(found[side]) - set(found[other]))
        if alone:
            raise DataError(
                f"{path}: expected every case in images/ and masks/, found {naming(alone, 'case')} in "
                f"{side}/ only; add the folder to {other}/ or remove the case"
            )
    return found["images"]


def _read_case(path: Path, name: str) -> _Case:
    folder = path / "images" / name
    headers = read_headers(folder)
    require_one_series(folder, headers)
    ordered = in_order(folder, headers)
    masks = files_by_stem(path / "masks" / name, frozenset({".png"}), "PNG")
    files = tuple(header.file for header in ordered)
    stems = [slice_stem(file.name) for file in files]
    orphans = [masks[stem].name for stem in sorted(masks.keys() - set(stems))]
    if orphans:
        raise DataError(
            f"{path / 'masks' / name}: expected masks named like slices, found {naming(orphans, 'mask')} of "
            f"none; rename or remove them"
        )
    if len(set(stems)) < len(stems):
        raise DataError(f"{folder}: expected one file per stem, found a repeated one; rename or remove it")
    labelled = {
        index: _Labelled(file, masks[stem], (partial(read_mask, masks[stem]),))
        for index, (file, stem) in enumerate(zip(files, stems, strict=True))
        if stem in masks and _has_labels(masks[stem])
    }
    if not labelled:
        raise DataError(
            f"{path / 'masks' / name}: expected at least one labelled slice, found none; label the series or "
            f"remove the case"
        )
    return _case(ordered, labelled, name)


def _has_labels(mask: Path) -> bool:
    values: NDArray[Any] = read_mask(mask)
    return bool(np.any(values))
