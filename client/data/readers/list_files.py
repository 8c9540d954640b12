"""Files that list a dataset: JSON, read into a checked model, and CSV with images and their masks."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from casam_core.errors import DataError
from client.data.damage import DataFaultsError
from client.data.file_patterns import SPLITS, Pair, parts_of
from client.data.listing import inside
from client.data.pixels import one_line

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
    "image": ("image", "image_path", "img", "image_file"),
    "mask": ("mask", "mask_path", "label", "label_path", "mask_file", "segmentation"),
    "split": ("split", "set", "part", "subset"),
    "patient": ("patient", "patient_id", "case", "subject", "slide", "group"),
}
"""Names of the columns, in lower case; split and patient may be absent."""


def columns_of(header: Sequence[str]) -> dict[str, str] | None:
    """The columns of a list by their meaning; None if there is no column of images or none of masks."""
    found = {
        meaning: name
        for meaning, names in COLUMNS.items()
        for name in header
        if name.strip().lower() in names
    }
    return found if {"image", "mask"} <= found.keys() else None


def read_list(path: Path, list_file: str) -> list[Pair]:
    """The pairs that the CSV file lists, sorted by id. Raises DataError; one error names all missing files.

    An image with several lines has a mask for each instance. Ids are the paths of the images.
    """
    source = inside(path, list_file, str(path))
    masks: dict[str, list[Path]] = {}
    facts: dict[str, tuple[str | None, str | None]] = {}
    for number, row in enumerate(_rows(source), 2):
        where = f"{source}, line {number}"
        # One name for one file: `./a.png` and `a.png` in two parts would be one image in both.
        image = PurePosixPath(row["image"]).as_posix() if row["image"] else ""
        said = _split(row.get("split", ""), where), row.get("patient") or None
        if facts.setdefault(image, said) != said:
            raise DataError(f"{where}: expected one split and patient for {image}, found another; correct it")
        inside(path, image, where)
        masks.setdefault(image, []).append(inside(path, row["mask"], where))
    missing = [file for image in masks for file in (path / image, *masks[image]) if not file.is_file()]
    if missing:
        raise DataFaultsError(
            [f"{source}: expected {file}, found no such file; correct the line" for file in missing]
        )
    part_of = parts_of({image: split for image, (split, _) in facts.items() if split})
    return [
        Pair(image, path / image, tuple(masks[image]), facts[image][1], part_of.get(image))
        for image in sorted(masks)
    ]


def _rows(source: Path) -> list[dict[str, str]]:
    """The lines of a list, by what a column means. Raises DataError."""
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = columns_of(reader.fieldnames or [])
            rows = list(reader)
    except (OSError, ValueError, csv.Error) as fault:
        raise DataError(f"{source}: expected a CSV file, it cannot be read: {one_line(fault)}") from fault
    if columns is None or not rows:
        raise DataError(f"{source}: expected lines with the columns image and mask, found none; correct it")
    return [{meaning: (row[name] or "").strip() for meaning, name in columns.items()} for row in rows]


def _split(written: str, where: str) -> str | None:
    """A value of SPLITS; None for an empty cell. Raises DataError."""
    if written and written.lower() not in SPLITS:
        raise DataError(f"{where}: expected a split of {', '.join(SPLITS)}, found {written!r}; correct it")
    return SPLITS[written.lower()] if written else None
