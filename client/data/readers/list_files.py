"""Files that list a dataset: CSV and JSON with images and their masks, and lists of the parts of a split."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from casam_core.errors import DataError
from client.data.dataset import DataFaultsError
from client.data.file_patterns import SPLITS, FilePart, Pair, parts_of
from client.data.listing import inside, is_file, naming
from client.data.pixels import one_line, reading

Model = TypeVar("Model", bound=BaseModel)


def read_json(source: Path, model: type[Model], content: str) -> Model:
    """The JSON file `source` as a `model`. content: its expected content, for messages.

    Raises DataError; one error lists all entries of a wrong type.
    """
    try:
        parsed = json.loads(source.read_bytes())
    except OSError as fault:
        raise DataError(
            f"{source}: expected a file with {content}, found: {fault.strerror}; correct the path"
        ) from fault
    except (ValueError, RecursionError) as fault:
        raise DataError(
            f"{source}: expected JSON with {content}, found text that is none ({one_line(fault)}); export it "
            f"again"
        ) from fault
    try:
        return model.model_validate(parsed)
    except ValidationError as fault:
        raise DataFaultsError(
            [
                f"{source}: expected {content}, found a fault at "
                f"{'.'.join(map(str, error['loc'])) or 'the top'}: {error['msg']}; correct the entry"
                for error in fault.errors(include_url=False)
            ]
        ) from fault


COLUMNS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "image_path", "img", "image_file", "bild"),
    "mask": ("mask", "mask_path", "label", "label_path", "mask_file", "segmentation", "maske"),
    "split": ("split", "set", "part", "subset"),
    "patient": ("patient", "patient_id", "case", "subject", "slide", "group"),
}
"""Names of the columns, in lower case, the first before the others; split and patient may be absent."""


def delimiter_of(first_line: str) -> str:
    """What stands between the columns of a CSV file."""
    return max(",;\t", key=first_line.count)


def columns_of(header: Sequence[str]) -> dict[str, str] | None:
    """The columns of a list by their meaning; None if there is no column of images or none of masks."""
    known = {name.strip().lower(): name for name in header}
    there = {meaning: [known[n] for n in names if n in known] for meaning, names in COLUMNS.items()}
    found = {meaning: columns[0] for meaning, columns in there.items() if columns}
    return found if {"image", "mask"} <= found.keys() else None


Row = tuple[str, Mapping[str, str]]
"""(where it stands, its cells by the keys of COLUMNS)"""


def read_list(path: Path, list_file: str) -> list[Pair]:
    """The pairs that the file lists, sorted by id. Raises DataError; one error names all missing files.

    An image with several lines has a mask for each instance. Ids are the paths of the images.
    """
    source = inside(path, list_file, str(path))
    masks: dict[str, list[Path]] = {}
    facts: dict[str, tuple[str | None, str | None]] = {}
    for where, row in _entries(source) if source.suffix.lower() == ".json" else _rows(source):
        # One name for one file: `./a.png` and `a.png` in two parts would be one image in both.
        image = PurePosixPath(row["image"]).as_posix() if row["image"] else ""
        said = _split(row.get("split", ""), where), row.get("patient") or None
        if facts.setdefault(image, said) != said:
            raise DataError(f"{where}: expected one split and patient for {image}, found another; correct it")
        inside(path, image, where)
        masks.setdefault(image, []).append(inside(path, row["mask"], where))
    if missing := [file for image in masks for file in (path / image, *masks[image]) if not is_file(file)]:
        raise DataFaultsError(
            [f"{source}: expected {file}, found no such file; correct the line" for file in missing]
        )
    part_of = parts_of({image: split for image, (split, _) in facts.items() if split})
    return [
        Pair(image, path / image, tuple(masks[image]), facts[image][1], part_of.get(image))
        for image in sorted(masks)
    ]


class _Listed(BaseModel):
    """One image of a JSON list, as MONAI and the Medical Segmentation Decathlon write it."""

    image: str
    label: str | None = None


class _Lists(BaseModel):
    training: list[_Listed]
    validation: list[_Listed | str] = []
    test: list[_Listed | str] = []


def _entries(source: Path) -> list[Row]:
    """The images with a label of a JSON list; images without one, as of a challenge's test, are left out."""
    lists = read_json(source, _Lists, "training: a list of image and label, each one file")
    return [
        (
            f"{source}, {part} {number}",
            {"image": entry.image, "mask": entry.label, "split": SPLITS[part]},
        )
        for part, entries in lists
        for number, entry in enumerate(entries)
        if isinstance(entry, _Listed) and entry.label is not None
    ]


def read_split_lists(path: Path, folder: str) -> dict[str, FilePart | None]:
    """The part of every {id} that the lists in `folder` name; None for all if there is one list only.

    Lists are called train.txt, val.txt, test.txt and so on (SPLITS); a line is an id, of Pascal VOC also with
    -1, 0 or 1 behind it. Raises DataError.
    """
    where = inside(path, folder, str(path))
    splits: dict[str, str] = {}
    for split, named in SPLITS.items():
        file = where / f"{split}.txt"
        if not file.exists():
            continue
        with reading(file, "a text file"):
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        ids = [_id_in(line.strip()) for line in lines if line.strip()]
        if twice := sorted({name for name in ids if splits.get(name, named) != named}):
            raise DataError(
                f"{where}: expected each image in one list, found {naming(twice, 'image')} in two; correct "
                "them"
            )
        splits |= dict.fromkeys(ids, named)
    if not splits:
        raise DataError(
            f"{where}: expected train.txt, val.txt or test.txt with names, found none; correct it"
        )
    part_of = parts_of(splits)
    return {name: part_of.get(name) for name in splits}


def _id_in(line: str) -> str:
    """The {id} in a line: a name, a file's name or its path."""
    name = PurePosixPath(re.sub(r"\s+(-1|0|1)$", "", line)).name
    return re.sub(r"\.(png|jpe?g|(ome\.)?tiff?|nii(\.gz)?|nrrd|nhdr|mha|mhd)$", "", name, flags=re.I)


def _rows(source: Path) -> list[Row]:
    """The lines of a CSV list. Raises DataError."""
    with reading(source, "a CSV file"), source.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter=delimiter_of(file.readline()))
        file.seek(0)
        columns = columns_of(reader.fieldnames or [])
        rows = list(reader)
    if columns is None or not rows:
        raise DataError(f"{source}: expected lines with the columns image and mask, found none; correct it")
    return [
        (
            f"{source}, line {number}",
            {meaning: (row[name] or "").strip() for meaning, name in columns.items()},
        )
        for number, row in enumerate(rows, 2)
    ]


def _split(written: str, where: str) -> str | None:
    """A value of SPLITS; None for an empty cell. Raises DataError."""
    if written and written.lower() not in SPLITS:
        raise DataError(f"{where}: expected a split of {', '.join(SPLITS)}, found {written!r}; correct it")
    return SPLITS[written.lower()] if written else None
