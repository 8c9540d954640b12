"""DICOM headers of a series: its order, its patient, and fields that should not leave the site."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from casam_core.errors import DataError
from client.data.listing import naming, visible_entries
from client.data.pixels import reading
from client.data.readers.volumes import medical_package

IDENTIFIERS = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "PatientMotherBirthName",
    "OtherPatientIDs",
    "OtherPatientNames",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "OperatorsName",
    "InstitutionName",
    "InstitutionAddress",
    "StationName",
)
"""Header fields that name a person, a visit or a place."""

_SUFFIXES = (".dcm", ".dicom", ".ima")


def slice_stem(name: str) -> str:
    """A slice's file name without a DICOM ending; names such as 1.2.840.17 stay whole."""
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


@dataclass(frozen=True)
class SliceHeader:
    """The used fields of one file. They are converted here, because pydicom converts, and fails, on access.

    orientation: two directions; position: in mm; number: InstanceNumber; None if absent. identifiers: names
    of filled IDENTIFIERS. burned_in: YES, NO or another value of the header. size: (rows, columns), (0, 0)
    without pixels. spacing: mm between rows and between columns. refers_to: of a SEG or RTSTRUCT, the
    SeriesInstanceUIDs it is drawn on.
    """

    file: Path
    patient: str
    series: str
    frames: int
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    number: int | None
    identifiers: tuple[str, ...]
    has_private: bool
    burned_in: str
    modality: str
    size: tuple[int, int]
    spacing: tuple[float, ...] | None
    refers_to: tuple[str, ...]


def read_headers(case: Path) -> list[SliceHeader]:
    """Headers of every file of one case. Raises DataError."""
    headers = []
    for file in visible_entries(case):
        if file.name == "DICOMDIR":
            continue
        if file.is_dir():
            raise DataError(f"{file}: expected slices only in a case's folder, found a folder; move it up")
        headers.append(header_of(file))
    if not headers:
        raise DataError(f"{case}: expected the slices of a series, found no file; add them or remove it")
    return headers


def header_of(file: Path) -> SliceHeader:
    """The header of one file. Raises DataError."""
    pydicom = medical_package("pydicom", reader="dicom")
    with reading(file, "a DICOM file", "export it again or remove it"):
        return _header(file, pydicom.dcmread(file, stop_before_pixels=True))


def is_dicom(file: Path) -> bool:
    """Whether the name or the first bytes of a file say that it is DICOM, and no index of files."""
    if file.name == "DICOMDIR":
        return False
    if file.name.lower().endswith(_SUFFIXES):
        return True
    try:
        with file.open("rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _header(file: Path, data: Any) -> SliceHeader:
    def text(key: str) -> str:
        return str(data.get(key, "") or "").strip()

    def numbers(key: str, count: int) -> tuple[float, ...] | None:
        value = data.get(key)
        if value is None:
            return None
        found = tuple(float(part) for part in value)
        if len(found) != count or not np.isfinite(found).all():
            raise ValueError(f"{key} has {len(found)} numbers instead of {count}, or one that is not finite")
        return found

    number = data.get("InstanceNumber")
    return SliceHeader(
        file=file,
        patient=text("PatientID"),
        series=text("SeriesInstanceUID"),
        frames=int(data.get("NumberOfFrames", 1) or 1),
        orientation=numbers("ImageOrientationPatient", 6),
        position=numbers("ImagePositionPatient", 3),
        number=None if number is None else int(number),
        identifiers=tuple(key for key in IDENTIFIERS if text(key)),
        has_private=any(tag.is_private for tag in data.keys()),  # noqa: SIM118
        burned_in=text("BurnedInAnnotation").upper(),
        modality=text("Modality"),
        size=(int(data.get("Rows", 0) or 0), int(data.get("Columns", 0) or 0)),
        spacing=numbers("PixelSpacing", 2),
        refers_to=tuple(_referred(data)),
    )


def _referred(data: Any) -> Iterator[str]:
    """Series that a SEG (ReferencedSeriesSequence) or an RTSTRUCT refers to."""
    for series in data.get("ReferencedSeriesSequence", []):
        yield str(series.SeriesInstanceUID)
    for frame in data.get("ReferencedFrameOfReferenceSequence", []):
        for study in frame.get("RTReferencedStudySequence", []):
            for series in study.get("RTReferencedSeriesSequence", []):
                yield str(series.SeriesInstanceUID)


def require_one_series(case: Path, headers: list[SliceHeader]) -> None:
    """Raises DataError unless all files are single slices of one series of one patient."""
    for key, what, values in (
        ("SeriesInstanceUID", "series", {header.series for header in headers}),
        ("PatientID", "patient", {header.patient for header in headers}),
    ):
        if len(values) > 1:
            # The values stay out of the message: they may name a person.
            raise DataError(
                f"{case}: expected one {what} per folder, found {len(values)} different {key} values; give "
                f"each {what} a folder of its own"
            )
    frames = [header.file.name for header in headers if header.frames > 1]
    if frames:
        raise DataError(
            f"{case}: expected one slice per file, found {naming(frames, 'file')} with several frames; split "
            f"them into single slices"
        )


def in_order(case: Path, headers: list[SliceHeader]) -> list[SliceHeader]:
    """The slices sorted along their normal, or by InstanceNumber if positions are missing or repeated.

    Raises DataError if neither gives every slice its own place, or if orientations differ.
    """
    for places in (_positions(case, headers), _numbers(headers)):
        if places is not None and len(set(places)) == len(headers):
            order = sorted(range(len(headers)), key=lambda i: places[i])
            return [headers[i] for i in order]
    raise DataError(
        f"{case}: expected a position or a number of its own for every slice, found repeated or missing "
        f"ImagePositionPatient and InstanceNumber; export the series again, time points apart"
    )


def pseudonym(kind: str, value: str, digits: int) -> str:
    """The first hex digits of a SHA-256. A list of all possible values reveals the value, so the pseudonym
    stays at the institution like any other id."""
    return hashlib.sha256(f"{kind}:{value}".encode()).hexdigest()[:digits]


def privacy_warnings(headers: list[SliceHeader]) -> tuple[str, ...]:
    """Facts about patients in these headers, and whether annotations are burned in; without any values."""
    total = len(headers)
    filled = Counter(key for header in headers for key in header.identifiers)
    lines = [
        f"{key} is filled in {count} of {total} headers; the reader never uses it as an id, but remove it "
        f"before files are shared"
        for key, count in sorted(filled.items())
    ]
    private = sum(header.has_private for header in headers)
    if private:
        lines.append(f"private tags, which may hold anything, are in {private} of {total} headers")
    burned = Counter(header.burned_in for header in headers)
    if burned["YES"]:
        lines.append(
            f"BurnedInAnnotation is YES in {burned['YES']} of {total} headers: names may be in the pixels"
        )
    unstated = total - burned["YES"] - burned["NO"]
    if unstated:
        lines.append(f"BurnedInAnnotation is not stated in {unstated} of {total} headers")
    if unnamed := sum(not header.patient for header in headers):
        lines.append(f"PatientID is empty in {unnamed} of {total} headers: the outer folder is the patient")
    lines.append("pixels were not searched for burned-in text; only the headers were read for this")
    return tuple(lines)


def _positions(case: Path, headers: list[SliceHeader]) -> list[float] | None:
    """Distance of each slice along the common normal, in mm; None if a header lacks it."""
    orientations = [header.orientation for header in headers if header.orientation is not None]
    positions = [header.position for header in headers if header.position is not None]
    if len(orientations) < len(headers) or len(positions) < len(headers):
        return None
    directions = np.array(orientations).reshape(-1, 2, 3)
    if np.abs(directions - directions[0]).max() > 1e-2:
        raise DataError(
            f"{case}: expected slices of one orientation, found several; remove localizers from the series"
        )
    normal = np.cross(directions[0, 0], directions[0, 1])
    return [round(float(place), 3) for place in np.array(positions) @ normal]


def _numbers(headers: list[SliceHeader]) -> list[float] | None:
    numbers = [float(header.number) for header in headers if header.number is not None]
    return numbers if len(numbers) == len(headers) else None
