"""Patterns of file names: which files are images, which are their masks, and what a name says.

A pattern is a path inside the dataset's folder, with `/` between folders. Its marks:

    {id}        a part of a name that image and mask share
    {patient}   a folder or a part of a name; its images are one group and stay together
    {folder}    a folder that says nothing about the patient, such as a class
    {split}     a folder or a part of a name: train, val or test, also as training, validation, testing
    {n}         nothing, or the number of a mask: then each mask of an image is one instance
    {class}     in masks only, a folder or a part of a name: then each mask of an image is one class
    *           any part of a name; `.*` at the end is any file ending that the reader knows
    {{ and }}   a brace that is part of a name

For example `{patient}/{id}.*` with `{patient}/{id}_mask{n}.*`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from casam_core.errors import DataError
from client.data.listing import naming, require_folder, require_partners

SPLITS: Mapping[str, Literal["train", "val", "test"]] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Names of the parts of a split, in lower case."""

KEYS = ("split", "folder", "patient", "id")
_MARK = re.compile(r"\{\{|\}\}|\{(\w+)\}|\*")
_NUMBERS = ("", r"[-_ .]\d+", r"\d+", r" ?\(\d+\)")
"""What {n} can be. The first form that leads to an image is taken."""


FilePart = Literal["train", "test"]


@dataclass(frozen=True)
class Pair:
    """One image with its masks.

    part: None if the names do not say it. Images of val count as train, because casam draws its validation
    images from the training part; without a test part, val is the test part.
    """

    id: str
    image: Path
    masks: tuple[Path, ...]
    group: str | None
    part: FilePart | None


Key = tuple[str, ...]
"""What image and mask have in common."""


def find_pairs(
    path: Path,
    image_files: str,
    mask_files: str,
    suffixes: Collection[str],
    parts: Mapping[str, FilePart | None] | None = None,
) -> list[Pair]:
    """The images of a folder with their masks, sorted by id. Raises DataError.

    image_files, mask_files: the patterns, with {id} for what a pair has in common.
    suffixes: the file endings that the reader knows, in lower case. Hidden files are ignored.
    parts: only the images with these values of {id} are read, and belong to these parts.
    """
    require_folder(path, f"{image_files} and {mask_files}")
    return pairs_among(path, files_below(path), image_files, mask_files, suffixes, parts)


def pairs_among(
    path: Path,
    files: Sequence[str],
    image_files: str,
    mask_files: str,
    suffixes: Collection[str],
    parts: Mapping[str, FilePart | None] | None = None,
) -> list[Pair]:
    """The same for the paths `files` inside the folder `path`.

    Raises DataError; one error lists all missing partners.
    """
    marks = [mark for mark in KEYS if f"{{{mark}}}" in image_files and f"{{{mark}}}" in mask_files]
    if not marks or "{class}" in image_files:
        raise DataError(
            f"{path}: expected {{id}} or {{patient}} in both image_files and mask_files, and {{class}} in "
            f"mask_files only, found {image_files!r} and {mask_files!r}; correct the patterns"
        )
    images, masks, orphans = _matched(
        path, files, marks, _forms(image_files, suffixes)[0], _forms(mask_files, suffixes), parts
    )
    _require_pairs(path, images, masks, orphans, (image_files, mask_files))
    _require_one_mask(path, images, masks, mask_files)
    splits = {image[0]: image.groupdict().get("split") for image in images.values()}
    part_of = parts_of({file: SPLITS[split.lower()] for file, split in splits.items() if split})
    pairs = []
    for key, image in images.items():
        names = image.groupdict()
        label = "_".join(names[mark] for mark in KEYS if names.get(mark))
        own = tuple(path / mask for mask in sorted(masks[key]))
        part = part_of.get(image[0]) if parts is None else parts[names["id"]]
        pairs.append(Pair(label, path / image[0], own, names.get("patient"), part))
    if len({pair.id for pair in pairs}) < len(pairs):
        raise DataError(f"{path}: expected names that differ, found two images with the same id; rename one")
    if parts is not None:
        _require_all_listed(path, images, parts)
    return sorted(pairs, key=lambda pair: pair.id)


def _require_all_listed(path: Path, images: Mapping[Key, re.Match[str]], listed: Collection[str]) -> None:
    if absent := sorted(set(listed) - {image.groupdict()["id"] for image in images.values()}):
        raise DataError(
            f"{path}: expected an image for every name in the lists, found {naming(absent, 'name')} without; "
            "correct the lists or image_files"
        )


def _matched(
    path: Path,
    files: Sequence[str],
    marks: Sequence[str],
    image_form: re.Pattern[str],
    mask_forms: Sequence[re.Pattern[str]],
    only: Collection[str] | None,
) -> tuple[dict[Key, re.Match[str]], dict[Key, list[str]], list[str]]:
    """Images and masks by what they have in common, and masks without an image.

    only: the values of {id} to read.
    """
    images: dict[Key, re.Match[str]] = {}
    possible: dict[str, list[Key]] = {}
    for file in files:
        if fits := [found for form in mask_forms if (found := form.fullmatch(file))]:
            # First, because `a_mask.png` fits `{id}.*`, too.
            possible[file] = [tuple(found[mark] for mark in marks) for found in fits]
        elif image := image_form.fullmatch(file):
            key = tuple(image[mark] for mark in marks)
            if only is not None and image.groupdict()["id"] not in only:
                continue
            if key in images:
                raise DataError(
                    f"{path}: expected one image for each {' and '.join(marks)}, found {images[key][0]} and "
                    f"{file}; rename one or correct image_files"
                )
            images[key] = image
    masks: dict[Key, list[str]] = {}
    orphans = []
    for file, keys in possible.items():
        if known := [key for key in keys if key in images]:
            masks.setdefault(known[0], []).append(file)
        elif only is None:
            orphans.append(file)
    return images, masks, orphans


def parts_of(splits: Mapping[str, str]) -> dict[str, FilePart]:
    """The part of every image from its split (a value of SPLITS), by its path; empty for one split only."""
    if len(set(splits.values())) < 2:
        return {}
    kept_back = "test" if "test" in splits.values() else "val"
    return {file: "test" if split == kept_back else "train" for file, split in splits.items()}


def _require_pairs(
    path: Path,
    images: Mapping[Key, re.Match[str]],
    masks: Collection[Key],
    orphans: Sequence[str],
    patterns: tuple[str, str],
) -> None:
    if not images:
        raise DataError(f"{path}: expected files like {patterns[0]}, found none; correct image_files")
    unmasked = [image[0] for key, image in images.items() if key not in masks]
    require_partners(path, unmasked, orphans, patterns, "split_lists")


def _require_one_mask(
    path: Path, images: Mapping[Key, re.Match[str]], masks: Mapping[Key, list[str]], mask_files: str
) -> None:
    if several_masks(mask_files):
        return
    for key, found in masks.items():
        if len(found) > 1:
            raise DataError(
                f"{path}: expected one mask for {images[key][0]}, found {naming(found, 'file')}; "
                "write {n} where the number of an instance is, or {class} where the name of a class is"
            )


def several_masks(mask_files: str) -> bool:
    """Whether an image may have several masks, each of one instance or one class."""
    return any(mark in mask_files.removesuffix(".*") for mark in ("{n}", "{class}", "*"))


def files_below(path: Path) -> list[str]:
    """Paths of all files inside `path` that are not hidden, with `/`, sorted. Raises DataError.

    Links to folders are followed.
    """
    found = []

    def refuse(fault: OSError) -> None:
        raise DataError(f"{fault.filename}: expected a readable folder, found: {fault.strerror}") from fault

    for folder, inside, names in os.walk(path, onerror=refuse, followlinks=True):
        inside[:] = sorted(
            name
            for name in inside
            if not name.startswith((".", "__MACOSX")) and not _leads_back(path, Path(folder, name))
        )
        relative = Path(folder).relative_to(path)
        found += [(relative / name).as_posix() for name in names if not name.startswith(".")]
    return sorted(found)


def _leads_back(path: Path, folder: Path) -> bool:
    """Whether `folder`, below `path`, is a link to a folder that holds it: it would be listed without end."""
    if not folder.is_symlink():
        return False
    real = folder.resolve()
    above = (parent for parent in folder.parents if parent.is_relative_to(path))
    return any(parent.resolve().is_relative_to(real) for parent in above)


def _forms(pattern: str, suffixes: Collection[str]) -> list[re.Pattern[str]]:
    """The regular expressions of a pattern: one, or with {n} one for each form of a number."""
    endings = "|".join(_ending(suffix, suffixes) for suffix in suffixes)
    stem = pattern.removesuffix(".*")
    ending = f"(?i:{endings})" if pattern.endswith(".*") else ""
    return [
        re.compile(_translated(stem, number) + ending) for number in (_NUMBERS if "{n}" in pattern else ("",))
    ]


def fitting(pattern: str, suffixes: Collection[str]) -> Callable[[str], bool]:
    """Whether a path is like the pattern."""
    forms = _forms(pattern, suffixes)
    return lambda file: any(form.fullmatch(file) for form in forms)


def _ending(suffix: str, suffixes: Collection[str]) -> str:
    """The expression of a file ending that is not the end of a longer one: .tif but not .ome.tif."""
    longer = [other for other in suffixes if other.endswith(suffix) and other != suffix]
    return "".join(f"(?<!{re.escape(other.removesuffix(suffix))})" for other in longer) + re.escape(suffix)


def _translated(stem: str, number: str) -> str:
    splits = "(?i:" + "|".join(SPLITS) + ")"
    parts, seen, end = [], set(), 0
    for mark in _MARK.finditer(stem):
        parts.append(re.escape(stem[end : mark.start()]))
        end, name = mark.end(), mark[1]
        if mark[0] in ("{{", "}}"):
            parts.append(re.escape(mark[0][0]))
        elif name is None:
            parts.append("[^/]*")
        elif name == "n":
            parts.append(number)
        elif name in seen:
            parts.append(f"(?P={name})")
        elif name in (*KEYS, "class"):
            seen.add(name)
            parts.append(f"(?P<{name}>{splits if name == 'split' else '[^/]+'})")
        else:
            raise DataError(
                f"{stem!r}: expected the marks {{id}}, {{patient}}, {{folder}}, {{split}}, {{class}} or "
                f"{{n}}, found {{{name}}}; correct the pattern, and write {{{{ for a brace that is part of a "
                f"name"
            )
    return "".join([*parts, re.escape(stem[end:])])
