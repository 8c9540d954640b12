"""What DICOM headers say about a series: its order, its patient, and what should not leave the site."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from casam_core.errors import DataError
from client.data.listing import naming, visible_entries
from client.data.optional import medical_package
from client.data.pixels import one_line

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
    """A slice's file name without a DICOM ending; names such as 1.2.840.17 are kept whole."""
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def read_headers(case: Path) -> list[tuple[Path, Any]]:
    """(file, header) of every file of one case. Raises DataError."""
    pydicom = medical_package("pydicom", reader="dicom")
    headers = []
    for file in visible_entries(case):
        if file.name == "DICOMDIR":
            continue
        if file.is_dir():
            raise DataError(f"{file}: expected slices only in a case's folder, found a folder; move it up")
        try:
            headers.append((file, pydicom.dcmread(file, stop_before_pixels=True)))
        except Exception as fault:
            raise DataError(
                f"{file}: expected a DICOM file, found one that cannot be read ({one_line(fault)}); "
                f"export it again or remove it"
            ) from fault
    if not headers:
        raise DataError(f"{case}: expected the slices of a series, found no file; add them or remove it")
    return headers


def require_one_series(case: Path, headers: list[tuple[Path, Any]]) -> None:
    """Raises DataError unless all files are single slices of one series of one patient."""
    for key, what in (("SeriesInstanceUID", "series"), ("PatientID", "patient")):
        values = {str(header.get(key, "")) for _, header in headers}
        if len(values) > 1:
            # The values stay out of the message: they may name a person.
            raise DataError(
                f"{case}: expected one {what} per folder, found {len(values)} different {key} values; give "
                f"each {what} a folder of its own"
            )
    frames = [file.name for file, header in headers if int(header.get("NumberOfFrames", 1) or 1) > 1]
    if frames:
        raise DataError(
            f"{case}: expected one slice per file, found {naming(frames, 'file')} with several frames; split "
            f"them into single slices"
        )


def in_order(case: Path, headers: list[tuple[Path, Any]]) -> list[tuple[Path, Any]]:
    """The slices along their normal; by InstanceNumber where positions are absent or repeated.

    Raises DataError if neither gives every slice a place of its own, or if slices lie across each other.
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
    """The first hex digits of a SHA-256. It hides a value from a glance, not from who can list all
    possible values: it stays at the institution like any other id."""
    return hashlib.sha256(f"{kind}:{value}".encode()).hexdigest()[:digits]


def privacy_warnings(headers: list[Any]) -> tuple[str, ...]:
    """What these headers still tell about patients, and whether annotations are burned in. No values."""
    total = len(headers)
    present = Counter(
        key for header in headers for key in IDENTIFIERS if str(header.get(key, "") or "").strip()
    )
    lines = [
        f"{key} is filled in {count} of {total} headers; the reader never uses it as an id, but remove it "
        f"before files are shared"
        for key, count in sorted(present.items())
    ]
    private = sum(any(element.tag.is_private for element in header) for header in headers)
    if private:
        lines.append(f"private tags, which may hold anything, stand in {private} of {total} headers")
    burned = Counter(str(header.get("BurnedInAnnotation", "") or "").strip().upper() for header in headers)
    if burned["YES"]:
        lines.append(
            f"BurnedInAnnotation is YES in {burned['YES']} of {total} headers: names may be in the pixels"
        )
    unstated = total - burned["YES"] - burned["NO"]
    if unstated:
        lines.append(f"BurnedInAnnotation is not stated in {unstated} of {total} headers")
    lines.append("pixels were not searched for burned-in text; only the headers were read for this")
    return tuple(lines)


def _positions(case: Path, headers: list[tuple[Path, Any]]) -> list[float] | None:
    """Distance of each slice along the common normal, in mm; None if a header lacks it."""
    found = [
        (header.get("ImageOrientationPatient"), header.get("ImagePositionPatient")) for _, header in headers
    ]
    if any(orientation is None or position is None for orientation, position in found):
        return None
    try:
        orientations = np.array([[float(v) for v in orientation] for orientation, _ in found]).reshape(
            -1, 2, 3
        )
        positions = np.array([[float(v) for v in position] for _, position in found]).reshape(-1, 3)
    except ValueError as fault:
        raise DataError(
            f"{case}: expected six numbers of orientation and three of position in every header, found "
            f"others; export the series again"
        ) from fault
    if np.abs(orientations - orientations[0]).max() > 1e-2:
        raise DataError(
            f"{case}: expected slices of one orientation, found several; remove localizers from the series"
        )
    normal = np.cross(orientations[0, 0], orientations[0, 1])
    return [round(float(place), 3) for place in positions @ normal]


def _numbers(headers: list[tuple[Path, Any]]) -> list[float] | None:
    numbers = [header.get("InstanceNumber") for _, header in headers]
    return None if any(number is None for number in numbers) else [float(number) for number in numbers]
