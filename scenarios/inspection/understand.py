"""The data table of a folder: its layout, chosen by a person where the files allow several."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from casam_core.errors import DataError
from client.data.file_patterns import files_below
from client.data.listing import naming, require_folder
from client.data.readers.dicom.dicom_headers import is_dicom
from scenarios.inspection.first_files import header_of, holds_coco, keys_of, names_in_lists, with_contents
from scenarios.inspection.layout import NNUNET, UNREAD, Layout, layouts
from scenarios.inspection.name_matching import SOME
from scenarios.inspection.named_files import ITK_VOLUMES, PIXELS, VOLUMES, role_of_folder

Choose = Callable[[Sequence[str]], int]
"""Asks a person: (one line for each understanding) -> the index of the chosen one."""


def understand(folder: Path, choose: Choose | None = None) -> Layout:
    """How to read the dataset in `folder`.

    choose: asks on a terminal; without it, several understandings are an error.

    Raises:
        DataError: no reader fits the files, or several do.
    """
    require_folder(folder, "images and masks")
    files = files_below(folder)
    found = readings(folder, files)
    if len(found) == 1:
        return found[0]
    if not found:
        if (folder / "images").is_dir() or (folder / "masks").is_dir():
            return Layout("folder")  # whose message names the files without a partner
        tables = naming([file for file in files if re.fullmatch(r"[^/]+\.csv", file.lower())], "table")
        unread = "" if tables.startswith("0") else f" ({tables} without the columns image and mask)"
        raise DataError(f"{folder}: {why_not(files)}{unread}")
    lines = [describe(layout) for layout in found]
    if choose is None:
        raise DataError(
            f"{folder}: expected one way to read these files, found {len(found)}: {'; '.join(lines)}; choose "
            "one with --reader and its options (docs/data.md)"
        )
    return found[choose(lines)]


def readings(folder: Path, files: Sequence[str]) -> list[Layout]:
    """All understandings, from the names of the files and the first ones' content."""
    headers = {file: header_of(folder / file) for file in files if re.fullmatch(r"[^/]+\.csv", file.lower())}
    lists = {file: keys_of(folder / file) for file in files if re.fullmatch(r"[^/]+\.json", file.lower())}
    found = [
        with_contents(folder, files, layout)
        for layout in layouts(files, headers | lists, names_in_lists(folder, files))
    ]
    if not found and any(not Path(file).suffix and is_dicom(folder / file) for file in files[:SOME]):
        return [Layout("dicom")]
    if not found:
        possible = [file for file in files if file.lower().endswith(".json")][:SOME]
        return [Layout("coco", {"annotations": file}) for file in possible if holds_coco(folder / file)]
    if unused := [file for file in headers if not any(file in layout.keys.values() for layout in found)]:
        note = f"not read: {', '.join(unused)} (a list needs the columns image and mask)"
        found = [replace(layout, notes=(*layout.notes, note)) for layout in found]
    return found


def describe(layout: Layout) -> str:
    """One understanding in one line, as in a data table."""
    table = {"reader": layout.reader, **layout.keys}
    return ", ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items())


def why_not(files: Sequence[str]) -> str:
    """Why no reader fits, and what to do."""
    advice = "describe the names with --image-files and --mask-files (docs/data.md)"
    if len(several := sorted({found[1] for file in files if (found := NNUNET.match(file))})) > 1:
        return f"expected one dataset, found {naming(several, 'nnU-Net dataset')}; name the folder of one"
    unread = Counter(end for file in files if (end := next(filter(file.lower().endswith, UNREAD), "")))
    readable = [file for file in files if file.lower().endswith((*PIXELS, *VOLUMES, *ITK_VOLUMES))]
    if not readable:
        if unread:
            ending, count = unread.most_common(1)[0]
            return (
                f"expected a format of docs/data.md, found {count} {ending} files, which no reader reads; "
                "convert copies of them to PNG, TIFF, NIfTI or NRRD"
            )
        return "expected images and masks, found no file that a reader knows; correct the path"
    if not any(role_of_folder(name) == "mask" for file in readable for name in file.split("/")):
        return (
            f"expected images and masks, found {len(readable)} files and no folder or name of "
            f"masks{not_read(files)}; add the masks, or {advice}"
        )
    return (
        f"expected images and masks with matching names, found {len(readable)} files "
        f"without{not_read(files)}; {advice}"
    )


def not_read(files: Sequence[str]) -> str:
    """The files that may hold the masks, but whose format is not read; empty if there are none."""
    known = (*PIXELS, *VOLUMES, *ITK_VOLUMES, ".txt", ".csv", ".md", ".json", ".raw", ".yaml", ".yml", ".pdf")
    endings = Counter(Path(file).suffix.lower() for file in files if not file.lower().endswith(known))
    return "".join(f" ({count} {end or 'other'} files are not read)" for end, count in endings.most_common(1))
