"""The data table of a folder: its layout, chosen by a person where the files allow several."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from casam_core.errors import DataError
from client.data.file_patterns import files_below, pairs_among
from client.data.listing import naming, require_folder
from scenarios.inspection.layout import (
    PIXELS,
    UNREAD,
    VOLUMES,
    WITHOUT_TRUTH,
    Layout,
    layouts,
    role_of_folder,
)

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
    headers = {file: header_of(folder / file) for file in files if re.fullmatch(r"[^/]+\.csv", file.lower())}
    found = [with_contents(folder, files, layout) for layout in layouts(files, headers)]
    if unused := [file for file in headers if not any(file in layout.keys.values() for layout in found)]:
        note = f"not read: {', '.join(unused)} (a list needs the columns image and mask)"
        found = [replace(layout, notes=(*layout.notes, note)) for layout in found]
    if len(found) == 1:
        return found[0]
    if not found:
        if (folder / "images").is_dir() or (folder / "masks").is_dir():
            return Layout("folder")  # whose message names the files without a partner
        raise DataError(f"{folder}: {why_not(files)}")
    lines = [describe(layout) for layout in found]
    if choose is None:
        raise DataError(
            f"{folder}: expected one way to read these files, found {len(found)}: {'; '.join(lines)}; choose "
            "one with --reader and its options (docs/data.md)"
        )
    return found[choose(lines)]


def patterns_of(layout: Layout) -> tuple[str, str]:
    """The patterns of images and masks of a layout."""
    keys = layout.keys
    return keys.get("image_files", "images/{id}.*"), keys.get("mask_files", "masks/{id}.*")


def header_of(table: Path) -> list[str]:
    """The names of the columns of a CSV file; none if it cannot be read."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            return next(csv.reader(file), [])
    except (OSError, ValueError, csv.Error):
        return []


def with_contents(folder: Path, files: Sequence[str], layout: Layout) -> Layout:
    """The layout with what only its files say: those that it leaves out, and of the first ones the content:
    pages of a stack, colours of a mask."""
    if layout.reader not in ("folder", "nifti") or "list_file" in layout.keys:
        return layout
    endings = VOLUMES if layout.reader == "nifti" else PIXELS
    patterns = (
        layout.keys.get("image_files", "images/{id}.*"),
        layout.keys.get("mask_files", "masks/{id}.*"),
    )
    try:
        pairs = pairs_among(folder, files, *patterns, endings)
    except DataError:
        return layout  # a file without a partner: the check names it
    read = {path for pair in pairs for path in (pair.image, *pair.masks)}
    if rest := [file for file in files if may_be_an_image(file, endings) and folder / file not in read]:
        note = f"not read, because no pattern fits: {naming(rest, 'file')}"
        layout = replace(layout, notes=(*layout.notes, note))
    if layout.reader == "nifti":
        return layout
    pair = pairs[0]
    if has_pages(pair.image):
        return replace(layout, reader="tiff_stack")
    if has_colours(pair.masks[0]):
        note = "the masks have colours: each colour but black is a class, each connected part an object"
        return Layout(layout.reader, {**layout.keys, "labels": "colours"}, (*layout.notes, note))
    return layout


def may_be_an_image(file: str, endings: tuple[str, ...]) -> bool:
    """Whether the file has such an ending, and the layout has not counted it as left out."""
    folders = file.lower().split("/")[:-1]
    return file.lower().endswith(endings) and not any(name in WITHOUT_TRUTH for name in folders)


def has_pages(image: Path) -> bool:
    """Whether the file is a TIFF of several pages."""
    if image.suffix.lower() not in (".tif", ".tiff"):
        return False
    import tifffile

    try:
        with tifffile.TiffFile(image) as file:
            return len(file.pages) > 1
    except (tifffile.TiffFileError, OSError, ValueError):
        return False  # the reader will say what is wrong with it


def has_colours(mask: Path) -> bool:
    """Whether the mask is RGB and not gray."""
    from PIL import Image

    try:
        with Image.open(mask) as file:
            if file.mode not in ("RGB", "RGBA") or file.format not in ("PNG", "TIFF"):
                return False
            red, green, blue = file.convert("RGB").split()
            return bool(red.tobytes() != green.tobytes() or red.tobytes() != blue.tobytes())
    except (OSError, ValueError, Image.DecompressionBombError):
        return False


def describe(layout: Layout) -> str:
    """One understanding in one line, as in a data table."""
    return ", ".join(f'{key} = "{value}"' for key, value in {"reader": layout.reader, **layout.keys}.items())


def why_not(files: Sequence[str]) -> str:
    """Why no reader fits, and what to do."""
    advice = "describe the names with --image-files and --mask-files (docs/data.md)"
    unread = Counter(end for file in files if (end := next(filter(file.lower().endswith, UNREAD), "")))
    readable = [file for file in files if file.lower().endswith((*PIXELS, *VOLUMES))]
    if not readable:
        if unread:
            ending, count = unread.most_common(1)[0]
            return (
                f"expected a format of docs/data.md, found {count} {ending} files, which no reader reads; "
                "convert copies of them to PNG, TIFF or NIfTI"
            )
        return "expected images and masks, found no file that a reader knows; correct the path"
    if not any(role_of_folder(folder) == "mask" for file in readable for folder in file.split("/")[:-1]):
        return (
            f"expected a mask for each of {len(readable)} images, found no folder and no name of masks; add "
            f"the masks, or {advice}"
        )
    return f"expected images and masks with matching names, found {len(readable)} files without; {advice}"
