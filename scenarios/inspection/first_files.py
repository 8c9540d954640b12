"""What only the content of a folder's files says: columns of lists, pages, colours, meanings of values."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from casam_core.errors import DataError
from client.data.file_patterns import Pair, pairs_among
from client.data.listing import naming
from client.data.readers.list_files import delimiter_of, read_split_lists
from scenarios.inspection.layout import Layout, full_patterns
from scenarios.inspection.named_files import ENDINGS, WITHOUT_TRUTH


def patterns_of(layout: Layout) -> tuple[str, str]:
    """The patterns of images and masks of a layout."""
    keys = full_patterns(layout)
    return str(keys["image_files"]), str(keys["mask_files"])


def header_of(table: Path) -> list[str]:
    """The names of the columns of a CSV file; none if it cannot be read."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            line = file.readline()
        return next(csv.reader([line], delimiter=delimiter_of(line)), [])
    except (OSError, ValueError, csv.Error):
        return []


def keys_of(listing: Path) -> list[str]:
    """The keys of the first training image in a list of MONAI or the Decathlon; none if it is another file.

    nnU-Net's first version lists files that it names otherwise; such a list is none.
    """
    try:
        first = json.loads(listing.read_bytes())["training"][0]
        image, label = first["image"], first["label"]
        real = not label.endswith(".npz") and (listing.parent / image).is_file()
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return []
    return list(first) if real else []


def holds_coco(listing: Path) -> bool:
    """Whether a JSON file has the keys of COCO instances, whatever its name is."""
    try:
        content = json.loads(listing.read_bytes())
        return isinstance(content["images"], list) and isinstance(content["annotations"], list)
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return False


def names_in_lists(folder: Path, files: Sequence[str]) -> dict[str, set[str]]:
    """By folder with a train.txt: the names in its lists."""
    found: dict[str, set[str]] = {}
    for file in files:
        if Path(file).name in ("train.txt", "training.txt"):
            where = Path(file).parent.as_posix()
            with contextlib.suppress(DataError):
                found[where] = set(read_split_lists(folder, where))
    return found


def with_contents(folder: Path, files: Sequence[str], layout: Layout) -> Layout:
    """The layout with what only its files say: those that it leaves out, and of the first ones the content:
    pages of a stack, colours of a mask."""
    if layout.reader not in ENDINGS or "list_file" in layout.keys:
        return layout
    endings = ENDINGS[layout.reader]
    lists = layout.keys.get("split_lists")
    try:
        parts = read_split_lists(folder, str(lists)) if lists else None
        pairs = pairs_among(folder, files, *patterns_of(layout), endings, parts)
    except DataError:
        return layout  # a file without a partner: the check names it
    read = {path for pair in pairs for path in (pair.image, *pair.masks)}
    if rest := [file for file in files if may_be_an_image(file, endings) and folder / file not in read]:
        note = (
            f"not read, because no {'list names them' if lists else 'pattern fits'}: {naming(rest, 'file')}"
        )
        layout = replace(layout, notes=(*layout.notes, note))
    return (
        with_pixels(pairs, with_classes(layout, pairs))
        if layout.reader == "folder"
        else with_classes(layout, pairs)
    )


def with_classes(layout: Layout, pairs: Sequence[Pair]) -> Layout:
    """The names of classes and of folders that say nothing else, as notes."""
    images, pattern = patterns_of(layout)
    parts = images.split("/")
    for mark, read_as in (("{folder}", "are one dataset"), ("{patient}", "are patients of one dataset")):
        if mark in parts:
            at = len(parts) - parts.index(mark)
            names = sorted({pair.image.parts[-at] for pair in pairs})
            told = f"{naming(names, 'folder')} {read_as}; if they are different tasks, name one of them"
            layout = replace(layout, notes=(*layout.notes, told))
    if "{class}" not in pattern:
        return layout
    at = next(depth for depth, part in enumerate(reversed(pattern.split("/"))) if "{class}" in part)
    found = sorted({mask.parts[-1 - at].partition(".")[0] for pair in pairs for mask in pair.masks})
    note = f"each mask is a class, and each class of an image is one object: {naming(found, 'name')}"
    return replace(layout, notes=(*layout.notes, note))


def with_pixels(pairs: Sequence[Pair], layout: Layout) -> Layout:
    """What the first pixels say: pages of a stack, colours, values that are no objects."""
    pair, keys = pairs[0], layout.keys
    if has_pages(pair.image):
        notes, count = layout.notes, channels(pair.image)
        if count > 1:
            notes = (*notes, f"images have {count} channels, and channel 0 is read; for another: channel = 1")
        return replace(layout, reader="tiff_stack", notes=notes)
    if has_colours(pair.masks[0]):
        note = "the masks have colours: each colour but black is a class, each connected part an object"
        return replace(layout, keys={**keys, "labels": "colours"}, notes=(*layout.notes, note))
    for words, found, note in VALUES:
        if any(word in patterns_of(layout)[1] for word in words):
            first = [mask for pair in pairs[:FIRST] for mask in pair.masks]
            if "object_values" in found and found["object_values"] == CITYSCAPES and not has_large(first):
                continue
            return replace(layout, keys={**keys, **found}, notes=(*layout.notes, note))
    return layout


CITYSCAPES = [1000, 2**31 - 1]
VALUES: Sequence[tuple[tuple[str, ...], dict[str, object], str]] = (
    (
        ("SegmentationObject",),
        {"object_values": [1, 254]},
        "Pascal VOC: each value is one object; 255, the border, is none",
    ),
    (
        ("SegmentationClass",),
        {"labels": "classes", "object_values": [1, 254]},
        "Pascal VOC: each connected part of a class is one object; 255, the border, is none",
    ),
    (
        ("instanceIds",),
        {"object_values": CITYSCAPES},
        "Cityscapes: each value from 1000 on is one object; smaller ones are areas, and not read",
    ),
    (
        ("labelIds", "labelTrainIds"),
        {"labels": "classes"},
        "Cityscapes: each connected part of a class is one object",
    ),
)
"""What the values of published masks mean: (words of the mask files, keys, note)."""

FIRST = 20
"""So many images show whether instance numbers are those of Cityscapes."""


def has_large(masks: Sequence[Path]) -> bool:
    """Whether a mask holds a number of Cityscapes: 1000 times the class, and more."""
    from client.data.pixels import read_mask

    with contextlib.suppress(DataError):  # the check names it
        return any(read_mask(mask).max() >= CITYSCAPES[0] for mask in masks)
    return False


def channels(image: Path) -> int:
    """How many channels a stack has; 1 if it cannot be read."""
    from client.data.readers.tiff_stack import channels_of

    with contextlib.suppress(DataError):  # the check names it
        return channels_of(image)
    return 1


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
