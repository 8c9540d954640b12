"""What a folder of images means, from the names of its files alone: the reader and its patterns.

`layouts` is pure: paths in, understandings out. It finds folders that are called like images, masks or parts
of a split, and then the pair of name patterns (client/data/file_patterns.py) under which most files have a
partner. Several understandings mean that a person must choose.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from client.data.file_patterns import SPLITS
from client.data.readers.list_files import columns_of

IMAGES = {
    "image",
    "images",
    "img",
    "imgs",
    "imagestr",
    "jpegimages",
    "input",
    "inputs",
    "scans",
    "slices",
    "x",
}
# fmt: off
MASKS = {
    "mask", "masks", "label", "labels", "labelstr", "lbl", "annotation", "annotations", "gt", "groundtruth",
    "seg", "segs", "segmentation", "segmentations", "segmentationobject", "segmentationclass", "target",
    "targets", "y", "instances", "truth", "manual", "anno", "gtfine",
}
MASK_AFFIXES = [
    (before, after)
    for word in (
        "mask", "masks", "seg", "segmentation", "label", "labels", "gt", "groundtruth", "annotation", "lbl",
        "manual", "manual1", "anno", "instances", "gtFine_instanceIds", "gtFine_labelIds",
    )
    for shown in (word, word.upper(), word.capitalize())
    for before, after in (("", f"_{shown}"), ("", f"-{shown}"), (f"{shown}_", ""), (f"{shown}-", ""))
]
IMAGE_AFFIXES = [
    ("", ""), ("", "_image"), ("", "_img"), ("", "-image"), ("", "_0000"), ("", "_leftImg8bit"),
    ("image_", ""), ("img_", ""), ("image-", ""), ("img-", ""), ("", "_training"), ("", "_orig"), ("", "_x"),
]
# fmt: on
PIXELS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
VOLUMES = (".nii.gz", ".nii")
UNREAD = (".nrrd", ".mha", ".mhd", ".gif", ".bmp", ".webp", ".svs", ".ndpi", ".npy", ".npz", ".jp2", ".czi")
WITHOUT_TRUTH = ("imagests", "labelsts")
"""Folders that are never read: nnU-Net's images for a challenge."""
WORDS = re.compile(r"[A-Za-z0-9]+")
SOME = 200
"""So many files show whether a pattern can fit."""
ENOUGH = 0.5
"""The least share of files that have a partner; the rest are faults that the check reports."""


@dataclass(frozen=True)
class Layout:
    """One understanding. keys: of the data table, besides `reader` and `path`. notes: what else to know."""

    reader: str
    keys: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Named:
    """One file. place: its folders as in a pattern. marks: the values of {split}, {patient} or {folder}."""

    path: str
    place: tuple[str, ...]
    marks: tuple[tuple[str, str], ...]
    stem: str
    ending: str

    @property
    def name(self) -> tuple[object, str]:
        """What must be equal for image and mask."""
        return self.marks, self.stem


def layouts(files: Sequence[str], headers: Mapping[str, Sequence[str]] | None = None) -> list[Layout]:
    """All understandings of a folder with these relative paths; empty if there is none.

    headers: the names of the columns of CSV files, by path.
    """
    tables = sorted(file for file, header in (headers or {}).items() if columns_of(header))
    if tables:
        return [Layout("folder", {"list_file": table}) for table in tables]
    if has(files, r"labels/[^/]+\.txt") and not has(files, "images/.*"):
        return []  # outlines of YOLO without images
    return by_lists(files) or by_readers(files) or by_pairs(files)


def by_lists(files: Sequence[str]) -> list[Layout]:
    """COCO: one understanding for each file of annotations."""
    lists = sorted(file for file in files if is_coco(file))
    return [Layout("coco", {} if name == "annotations.json" else {"annotations": name}) for name in lists]


def by_readers(files: Sequence[str]) -> list[Layout]:
    """The readers that have a layout of their own."""
    readers = (name for name, (needed, no) in BY_NAMES.items() if has(files, needed) and not has(files, no))
    return [Layout(reader) for reader in itertools.islice(readers, 1)]


def by_pairs(files: Sequence[str]) -> list[Layout]:
    """Images and masks that are files of their own."""
    for reader, endings in (("nifti", VOLUMES), ("folder", PIXELS)):
        if any(file.lower().endswith(endings) for file in files):
            return pairs(files, endings, reader)
    return []


BY_NAMES = {
    "med_datasets": (r"dataset\.json", r"imagesTr/.*"),
    "yolo": (r"labels/[^/]+\.txt", r"masks/.*"),
    "dicom": (r"images/[^/]+/([^/]+\.(?i:dcm|dicom)|[^/.]+)", r"images/.*\.(?i:png|jpe?g|tiff?)"),
}
"""By reader: paths of which the folder must have one, and paths of which it must have none."""


def has(files: Sequence[str], pattern: str) -> bool:
    """Whether a path is like this."""
    return any(re.fullmatch(pattern, file) for file in files)


def is_coco(file: str) -> bool:
    """Whether a JSON file is called like COCO instances, at the top or in annotations/."""
    path = PurePosixPath(file.lower())
    return (
        path.suffix == ".json"
        and path.parent.as_posix() in (".", "annotations")
        and re.fullmatch(r"_?annotations|instances_\w+|_annotations\.coco|(\w+_)?coco", path.stem) is not None
    )


def pairs(files: Sequence[str], endings: Sequence[str], reader: str) -> list[Layout]:
    """The understandings of images and masks that are files of their own."""
    named, left_out = placed([file for file in files if file.lower().endswith(tuple(endings))], endings)
    notes = tuple(f"not read: {count} files in {folder}/" for folder, count in sorted(left_out.items()))
    roles = {role: [file for file in named if role_of(file) == role] for role in ("image", "mask", None)}
    images, masks = roles["image"] or roles[None], roles["mask"]
    if not masks:
        found = in_the_same_folders(images)
    else:
        places = sorted({file.place for file in masks})
        matches = [together(images, [file for file in masks if file.place == place]) for place in places]
        found = [best for match in matches if (best := best_of([match]))]
    return [layout(reader, *patterns, notes) for patterns in found]


def in_the_same_folders(files: Sequence[Named]) -> list[tuple[str, str]]:
    """The patterns of images and masks that no folder tells apart."""
    affixes = dict.fromkeys([*MASK_AFFIXES, *longer_names(files)])
    best = best_of([*(apart(files, affix) for affix in affixes), by_ending(files)])
    return [best] if best else by_fixed_names(files)


def longer_names(files: Sequence[Named]) -> Iterator[Affix]:
    """Suffixes with a word for masks, such as _cp_masks, of names that begin like another file's."""
    names = {file.name for file in files}
    for file in files[:SOME]:
        for end in range(1, len(file.stem)):
            suffix = file.stem[end:]
            if (file.marks, file.stem[:end]) in names and role_of_folder(suffix) == "mask":
                yield "", suffix


Match = tuple[float, str, str]
"""(share of files with a partner, pattern of images, pattern of masks)"""


def best_of(found: Sequence[Match | None]) -> tuple[str, str] | None:
    """The patterns that fit most files; None if no pair fits enough."""
    best = max((match for match in found if match), key=lambda match: match[0], default=None)
    return (best[1], best[2]) if best and best[0] >= ENOUGH else None


def layout(reader: str, image_files: str, mask_files: str, notes: tuple[str, ...]) -> Layout:
    """With the patterns, unless they are the reader's own."""
    if (image_files, mask_files) == ("images/{id}.*", "masks/{id}.*"):
        return Layout(reader, {}, notes)
    keys = {"image_files": image_files, "mask_files": mask_files}
    if "_0000" in image_files:
        notes = (*notes, "of each case only the first channel (_0000) is read")
    return Layout(reader, keys, notes)


def role_of(file: Named) -> str | None:
    """image or mask, by the deepest folder with such a name; None if no folder says it."""
    return next((role for folder in reversed(file.place) if (role := role_of_folder(folder))), None)


def role_of_folder(name: str) -> str | None:
    """The same for one folder or file name."""
    words = {word.lower() for word in WORDS.findall(name)}
    return "mask" if words & MASKS else "image" if words & IMAGES else None


def placed(files: Sequence[str], endings: Sequence[str]) -> tuple[list[Named], Counter[str]]:
    """The files with their places in a pattern; and by folder, files left out (nnU-Net's imagesTs)."""
    kept, left_out = [], Counter[str]()
    for file in files:
        *folders, _ = file.split("/")
        tests = [folder for folder in folders if folder.lower() in WITHOUT_TRUTH]
        if tests:
            left_out[tests[0]] += 1
        else:
            kept.append(file)
    varying = variable_folders(kept)
    named = []
    for file in kept:
        *folders, name = file.split("/")
        marks: dict[str, str] = {}
        place = [
            pattern_of(folder, varying.get((depth, folder)), marks) for depth, folder in enumerate(folders)
        ]
        ending = next(name[-len(end) :] for end in endings if name.lower().endswith(end))
        named.append(Named(file, tuple(place), tuple(sorted(marks.items())), name[: -len(ending)], ending))
    return named, left_out


def variable_folders(files: Sequence[str]) -> dict[tuple[int, str], str]:
    """By depth and name, the mark of folders that say neither role nor split.

    They are patients if a name at their depth has a digit or is a long code.
    """
    others: dict[int, set[str]] = defaultdict(set)
    for file in files:
        for depth, folder in enumerate(file.split("/")[:-1]):
            if not says_something(folder):
                others[depth].add(folder)
    found: dict[tuple[int, str], str] = {}
    for depth, folders in others.items():
        if len(folders) > 1:
            codes = any(re.search(r"\d", folder) or len(folder) >= 32 for folder in folders)
            found |= {(depth, folder): "{patient}" if codes else "{folder}" for folder in folders}
    return found


def says_something(folder: str) -> bool:
    """Whether a folder's name is a role or a part of a split."""
    words = {word.lower() for word in WORDS.findall(folder)}
    return bool(words & (IMAGES | MASKS | set(SPLITS)))


def pattern_of(folder: str, varies: str | None, marks: dict[str, str]) -> str:
    """The folder as in a pattern; what it says is added to `marks`. varies: its mark, if it has one."""
    if varies is not None:
        # Of nested folders the outer one counts as the patient: that can only make groups larger.
        mark = next((mark for mark in (varies, "{folder}") if mark not in marks), "*")
        if mark != "*":
            marks[mark] = folder
        return mark
    for word in WORDS.findall(folder):
        if word.lower() in SPLITS:
            marks["{split}"] = word
            return folder.replace(word, "{split}", 1)
    return folder


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
    return share * 0.99, "{id}.*", "*.*"


Affix = tuple[str, str]


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
