"""Patterns of names under which most images have a mask."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from scenarios.inspection.named_files import Named, role_of_folder

# fmt: off
MASK_AFFIXES = [
    (before, after)
    for word in (
        "mask", "masks", "seg", "segmentation", "label", "labels", "gt", "groundtruth", "annotation", "lbl",
        "manual", "manual1", "anno", "instances", "gtFine_instanceIds", "gtFine_labelIds",
    )
    for shown in (word, word.upper(), word.capitalize())
    for before, after in (
        ("", f"_{shown}"), ("", f"-{shown}"), ("", f".{shown}"), (f"{shown}_", ""), (f"{shown}-", ""),
    )
]
IMAGE_AFFIXES = [
    ("", ""), ("", "_image"), ("", "_img"), ("", "-image"), ("", "_0000"), ("", "_leftImg8bit"),
    ("image_", ""), ("img_", ""), ("image-", ""), ("img-", ""), ("volume-", ""),
    ("volume_", ""), ("vol_", ""), ("scan_", ""), ("ct_", ""), ("", "_training"), ("", "_orig"), ("", "_x"),
]
# fmt: on
SOME = 200
"""So many files show whether a pattern can fit."""
ENOUGH = 0.5
"""The least share of files that have a partner; the rest are faults that the check reports."""

Affix = tuple[str, str]
"""(before, after)"""

Match = tuple[float, str, str]
"""(share of files with a partner, pattern of images, pattern of masks)"""


def best_of(found: Sequence[Match | None]) -> tuple[str, str] | None:
    """The patterns that fit most files; None if no pair fits enough."""
    best = max((match for match in found if match), key=lambda match: match[0], default=None)
    return (best[1], best[2]) if best and best[0] >= ENOUGH else None


def names_of_classes(masks: Sequence[Named]) -> bool:
    """Whether the same names return in many folders, and are more than one name with numbers behind it."""
    names = {file.stem for file in masks}
    return 2 * len(names) <= len(masks) and len({name.rstrip("0123456789") for name in names}) > 1


def together(images: Sequence[Named], masks: Sequence[Named]) -> Match | None:
    """The best patterns of images in one place and masks in another."""
    places = {file.place for file in images}
    if len(places) != 1 or not images:
        return None
    place, mask_place = places.pop(), masks[0].place
    found: list[Match] = []
    for affixes in name_affixes(images, masks):
        if match := fitted(images, masks, *affixes):
            found.append(match)
            if match[0] == 1:
                break
    if one := one_image_per_folder(images, masks):
        found.append(one)
    best = max(found, key=lambda match: match[0], default=None)
    if best is None:
        return None
    return best[0], "/".join([*place, best[1]]), "/".join([*mask_place, best[2]])


def one_image_per_folder(images: Sequence[Named], masks: Sequence[Named]) -> Match | None:
    """A folder for each image, with a file for each instance: a/images/a.png with a/masks/1.png, ..."""
    folders = {file.marks for file in images}
    if len(folders) != len(images) or () in folders or len(masks) <= len(images):
        return None
    share = sum(file.marks in folders for file in masks) / len(masks)
    return share * 0.99, "{id}.*", "{class}.*" if names_of_classes(masks) else "*.*"


def name_affixes(images: Sequence[Named], masks: Sequence[Named]) -> Iterator[tuple[Affix, Affix, bool]]:
    """(affix of images, affix of masks, with a number after it) to try, the simplest first."""
    stems = {file.stem for file in images}
    free: Counter[Affix] = Counter()
    for file in masks[:SOME]:
        for start in range(len(file.stem)):
            for end in range(len(file.stem), start, -1):
                if file.stem[start:end] in stems:
                    free[file.stem[:start], re.sub(r"[-_ .]?\(?\d+\)?$", "", file.stem[end:])] += 1
    tried = [("", ""), *(affix for affix, _ in free.most_common(6)), *MASK_AFFIXES]
    for numbered in (False, True):
        for image_affix in IMAGE_AFFIXES:
            for mask_affix in dict.fromkeys(tried):
                yield image_affix, mask_affix, numbered


def fitted(
    images: Sequence[Named], masks: Sequence[Named], image: Affix, mask: Affix, numbered: bool
) -> Match | None:
    """How many files have a partner under these affixes; None if hardly any."""
    ids = {(file.marks, inner) for file in images if (inner := without(file.stem, image)) is not None}
    if len(ids) < ENOUGH * len(images):
        return None
    if numbered or any(mask):
        masks = with_affix(masks, mask)
    if not masks:
        return None
    hits = 0
    found: set[tuple[object, str]] = set()
    for tried, file in enumerate(masks):
        if tried == SOME and hits < ENOUGH / 2 * SOME:
            return None  # hopeless: thousands of files, and dozens of affixes to try
        for stem in [file.stem, *numberless(file.stem)] if numbered else [file.stem]:
            inner = without(stem, mask)
            if inner is not None and (file.marks, inner) in ids:
                hits += 1
                found.add((file.marks, inner))
                break
    share = min(hits / len(masks), len(found) / len(images))
    if share < ENOUGH:
        return None
    number = "{n}" if numbered else ""
    # Simple patterns come first; a number is worth it only if it finds more.
    return share - 0.01 * numbered, f"{image[0]}{{id}}{image[1]}.*", f"{mask[0]}{{id}}{mask[1]}{number}.*"


def with_affix(files: Sequence[Named], affix: Affix) -> list[Named]:
    """The files with this affix, a number behind it or not: another affix is another kind of mask."""
    stems = ((file, [file.stem, *numberless(file.stem)]) for file in files)
    return [file for file, own in stems if any(without(stem, affix) for stem in own)]


NUMBERED = [re.compile(rf"(.+?){form}") for form in (r"[-_ .]\d+", r"\d+", r" ?\(\d+\)")]


def numberless(stem: str) -> Iterator[str]:
    """The stem without a number at its end, in the forms that {n} can have."""
    if stem[-1:].isdigit() or stem.endswith(")"):
        for form in NUMBERED:
            if found := form.fullmatch(stem):
                yield found[1]


def without(stem: str, affix: Affix) -> str | None:
    """The stem without its affix; None if it has another one."""
    before, after = affix
    inside = stem[len(before) : len(stem) - len(after) or None]
    return inside if inside and stem == f"{before}{inside}{after}" else None


def apart(files: Sequence[Named], mask: Affix) -> Match | None:
    """Images and masks in the same folders, told apart by an affix of the masks."""
    masks = [
        file
        for file in files
        if "".join(mask) in file.stem
        and any(without(stem, mask) for stem in (file.stem, *numberless(file.stem)))
    ]
    images = sorted(set(files) - set(masks), key=lambda file: file.path)
    places = {file.place for file in files}
    if not masks or not images or len(places) != 1:
        return None
    found = [
        match
        for numbered in (False, True)
        for affix in IMAGE_AFFIXES
        if (match := fitted(images, masks, affix, mask, numbered))
    ]
    best = max(found, key=lambda match: match[0], default=None)
    if best is None:
        return None
    place = places.pop()
    return best[0], "/".join([*place, best[1]]), "/".join([*place, best[2]])


def by_fixed_names(files: Sequence[Named]) -> list[tuple[str, str]]:
    """A folder for each patient with the same names in all: {patient}/image.nii with {patient}/mask.nii.

    One understanding for each image, as of several series of one patient.
    """
    places, folders = {file.place for file in files}, {file.marks for file in files}
    if len(places) != 1 or () in folders:
        return []
    place = places.pop()
    counts = Counter(f"{own_name_replaced(file)}{file.ending}" for file in files)
    always = [name for name, count in counts.items() if count >= ENOUGH * len(folders)]
    masks = [name for name in always if role_of_folder(name) == "mask"]
    if len(folders) < 2 or len(masks) != 1:
        return []
    return [("/".join([*place, name]), "/".join([*place, masks[0]])) for name in always if name != masks[0]]


def own_name_replaced(file: Named) -> str:
    """The stem with {patient} or {folder} in the place of the folder's own name: p1/p1_t1.nii."""
    for mark, folder in file.marks:
        if mark != "{split}":
            return file.stem.replace(folder, mark)
    return file.stem


def by_ending(files: Sequence[Named]) -> Match | None:
    """Images as JPEG and masks as PNG, with equal names in the same folders."""
    endings: dict[bool, set[tuple[object, str]]] = defaultdict(set)
    shown: dict[bool, str] = {}
    for file in files:
        lossy = file.ending.lower() in (".jpg", ".jpeg")
        endings[lossy].add(file.name)
        shown[lossy] = file.ending
    places = {file.place for file in files}
    if len(endings) != 2 or len(places) != 1:
        return None
    share = len(endings[True] & endings[False]) / max(map(len, endings.values()))
    place = places.pop()
    return (
        (share, "/".join([*place, f"{{id}}{shown[True]}"]), "/".join([*place, f"{{id}}{shown[False]}"]))
        if share >= ENOUGH
        else None
    )
