"""DICOM series as slices, through pydicom, with PNG label maps as masks.

Layout: images/CASE/ holds the slices of one series, masks/CASE/ a PNG for each labelled slice, named
like the slice's file (`IM0007.dcm` -> `IM0007.png`). Slices without a mask or with an empty mask are
excluded. Masks are drawn on the stored pixels.

Ids never contain names. An id consists of short hashes of PatientID and SeriesInstanceUID and the slice's
place in the series, `p3f2a91c07b-s81d3aa07-z042`; the group is the patient's hash. If PatientID is empty,
the name of the case's folder is used instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.errors import DataError
from client.data.damage import for_each
from client.data.dataset import LoadedSample, Sample
from client.data.labels import Meaning, number
from client.data.listing import files_by_stem, is_folder, naming, require_folder, visible_entries
from client.data.pixels import read_mask
from client.data.readers.dicom_headers import (
    SliceHeader,
    in_order,
    privacy_warnings,
    pseudonym,
    read_headers,
    require_one_series,
    slice_stem,
)
from client.data.readers.dicom_pixels import bits_of, gray_range, read_slice, show


@dataclass(frozen=True)
class _Case:
    patient: str
    slices: dict[str, tuple[Path, Path]]
    """(slice, mask) by id, labelled slices only."""

    files: tuple[Path, ...]
    headers: tuple[SliceHeader, ...]


class DicomDataset:
    """Every labelled slice of the series in `path`.

    window: [centre, width] after rescaling (Hounsfield units for CT), mapped to black..white; by default
    each slice's own window, or the series' percentiles if its header has none. `warnings` lists facts about
    patients in the headers.

    The constructor reads every header and mask; the faults of all cases are raised together.
    """

    def __init__(self, path: Path, window: list[float] | None = None, labels: Meaning = "instances") -> None:
        require_folder(path, "images/ and masks/, each with a folder per case")
        self._path, self._window, self._labels = path, window, labels
        names = _case_names(path)
        cases = for_each(lambda name: _read_case(path, name), names)
        self._places: dict[str, tuple[_Case, str]] = {}
        for name, case in zip(names, cases, strict=True):
            for id_ in case.slices:
                if id_ in self._places:
                    raise DataError(
                        f"{path / 'images' / name}: expected a series in one folder, found slices that "
                        f"another folder holds too; remove the copy"
                    )
                self._places[id_] = case, id_
        headers = [header for case in cases for header in case.headers]
        self.empty = len(headers) - len(self._places)
        self.warnings = privacy_warnings(headers)
        self._ranges: dict[Path, tuple[float, float]] = {}

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All labelled slices, sorted by id; slices of one patient share a group."""
        return tuple(Sample(id_, self._places[id_][0].patient) for id_ in sorted(self._places))

    def load(self, sample: Sample) -> LoadedSample:
        """One slice: uint8 RGB and int32 labels 1..n. Raises DataError naming the file."""
        case, file, mask = self._place(sample)
        stored = read_slice(file)
        black_white = self._window_of(case, stored.window)
        image_HW3 = show(stored, black_white)
        values_HW = read_mask(mask)
        if image_HW3.shape[:2] != values_HW.shape:
            raise DataError(
                f"{mask}: expected the size of {file.name}, {image_HW3.shape[1]} x {image_HW3.shape[0]}, "
                f"found {values_HW.shape[1]} x {values_HW.shape[0]}; export the mask at the slice's size"
            )
        if not values_HW.any():
            raise DataError(
                f"{mask}: expected labels, as when the dataset was opened, found none; leave the files alone "
                f"while they are read"
            )
        return LoadedSample(image_HW3, number(values_HW, self._labels))

    def bits(self, sample: Sample) -> int:
        """Bits per value as allocated in the file."""
        return bits_of(self._place(sample)[1])

    def _window_of(self, case: _Case, own: list[float] | None) -> tuple[float, float]:
        window = self._window or own
        if window is not None:
            return window[0] - window[1] / 2, window[0] + window[1] / 2
        if case.files[0] not in self._ranges:
            self._ranges[case.files[0]] = gray_range(case.files)
        return self._ranges[case.files[0]]

    def _place(self, sample: Sample) -> tuple[_Case, Path, Path]:
        if sample.id not in self._places:
            raise DataError(f"{self._path}: expected a sample of this folder, found the id {sample.id!r}")
        case, id_ = self._places[sample.id]
        return case, *case.slices[id_]


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
    patient = ordered[0].patient
    who = pseudonym("patient", patient, 10) if patient else pseudonym("folder", name, 10)
    series = pseudonym("series", ordered[0].series or name, 8)
    slices = {
        f"p{who}-s{series}-z{index:03d}": (file, masks[stem])
        for index, (file, stem) in enumerate(zip(files, stems, strict=True))
        if stem in masks and _has_labels(masks[stem])
    }
    if not slices:
        raise DataError(
            f"{path / 'masks' / name}: expected at least one labelled slice, found none; label the series or "
            f"remove the case"
        )
    return _Case(who, slices, files, tuple(ordered))


def _has_labels(mask: Path) -> bool:
    values: NDArray[Any] = read_mask(mask)
    return bool(np.any(values))
