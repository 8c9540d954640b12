"""What a folder of images means, from the names of its files alone: the reader and its patterns.

`layouts` is pure: paths in, understandings out. It finds folders that are called like images, masks or parts
of a split, and then the pair of name patterns (client/data/file_patterns.py) under which most files have a
partner. Several understandings mean that a person must choose.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from client.data.file_patterns import fitting
from client.data.readers.list_files import columns_of
from scenarios.inspection.name_matching import (
    ENOUGH,
    MASK_AFFIXES,
    SOME,
    Affix,
    apart,
    best_of,
    by_ending,
    by_fixed_names,
    names_of_classes,
    together,
)
from scenarios.inspection.named_files import (
    DICOM,
    ENDINGS,
    ITK_VOLUMES,
    MASKS,
    PIXELS,
    VOLUMES,
    Named,
    placed,
    role_of,
    role_of_folder,
    split_words,
)

# fmt: off
RATERS = {
    "expert", "rater", "annotator", "reader", "observer", "doctor", "manual", "auto", "automatic", "pred",
    "prediction", "predictions", "version", "old", "new", "final", "corrected", "refined",
}
# fmt: on
"""Words of folders that hold other drawings of the same objects, and not other classes."""

OBJECTS = ("SegmentationObject", "instanceIds")
CLASSES = ("SegmentationClass", "labelIds", "labelTrainIds", "color")
"""Words of the masks of objects and of classes in Pascal VOC and Cityscapes."""

KINDS = 6
"""At most so many kinds of masks in one place are told."""

UNREAD = (".gif", ".bmp", ".webp", ".svs", ".ndpi", ".npy", ".npz", ".jp2", ".czi")
NNUNET = re.compile(r"((?:.*/)?(?:Dataset|Task)\d{2,3}_[^/]+)/dataset\.json$")


@dataclass(frozen=True)
class Layout:
    """One understanding. keys: of the data table, besides `reader` and `path`. notes: what else to know."""

    reader: str
    keys: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def layouts(
    files: Sequence[str],
    headers: Mapping[str, Sequence[str]] | None = None,
    listed: Mapping[str, Collection[str]] | None = None,
) -> list[Layout]:
    """All understandings of a folder with these relative paths; empty if there is none.

    headers: the names of the columns of CSV files and of the keys of lists in JSON, by path.
    listed: by folder with train.txt and so on, the names in these lists.
    """
    tables = sorted(file for file, header in (headers or {}).items() if columns_of(header))
    if tables:
        return [Layout(reader_of(files), {"list_file": table}) for table in tables]
    if len({found[1] for file in files if (found := NNUNET.match(file))}) > 1:
        return []  # several datasets of nnU-Net
    if has(files, r"labels/[^/]+\.txt") and not has(files, "images/.*"):
        return []  # outlines of YOLO without images
    return by_lists(files) or by_outlines(files) or by_readers(files) or by_pairs(files, listed or {})


def reader_of(files: Sequence[str]) -> str:
    """The reader of the images in a folder, by their endings."""
    for reader in ("nifti", "itk"):
        if any(file.lower().endswith(ENDINGS[reader]) for file in files):
            return reader
    return "folder"


def by_lists(files: Sequence[str]) -> list[Layout]:
    """COCO: one understanding for each file of annotations."""
    lists = sorted(file for file in files if is_coco(file))
    return [Layout("coco", {} if name == "annotations.json" else {"annotations": name}) for name in lists]


def by_outlines(files: Sequence[str]) -> list[Layout]:
    """YOLO with folders between or above images/ and labels/, as of a split."""
    endings = (*PIXELS, ".txt")
    named, _ = placed([file for file in files if file.lower().endswith(endings)], endings)
    images = [file for file in named if role_of(file) == "image" and file.ending.lower() in PIXELS]
    masks = [file for file in named if role_of(file) == "mask"]
    texts = [file for file in masks if file.ending.lower() == ".txt" and file.marks]
    if not texts or any(file.ending.lower() in PIXELS for file in masks):
        return []
    best = best_of([together(images, texts)])
    return [layout("yolo", *best, ())] if best else []


def by_readers(files: Sequence[str]) -> list[Layout]:
    """The readers that have a layout of their own."""
    readers = (name for name, (needed, no) in BY_NAMES.items() if has(files, needed) and not has(files, no))
    found = [Layout(reader) for reader in itertools.islice(readers, 1)]
    slices = sum(file.lower().endswith(DICOM) for file in files)
    others = sum(file.lower().endswith((*PIXELS, *VOLUMES, *ITK_VOLUMES)) for file in files)
    return found or ([Layout("dicom")] if slices > others else [])


def by_pairs(files: Sequence[str], listed: Mapping[str, Collection[str]]) -> list[Layout]:
    """Images and masks that are files of their own."""
    reader = reader_of(files)
    stems = {PurePosixPath(file).name.partition(".")[0] for file in files}
    known = (folder for folder, named in listed.items() if len(stems & set(named)) >= ENOUGH * len(named))
    lists = sorted(known, key=lambda folder: (split_words(folder) & MASKS == set(), folder))
    found = pairs(files, ENDINGS[reader], reader, listed[lists[0]] if lists else None)
    if not lists:
        return found
    note = f"only the images that the lists in {lists[0]}/ name are read"
    return [
        replace(one, keys={**full_patterns(one), "split_lists": lists[0]}, notes=(*one.notes, note))
        for one in found
    ]


def full_patterns(layout: Layout) -> Mapping[str, object]:
    """The keys with both patterns, also those that are the reader's own."""
    return {"image_files": "images/{id}.*", "mask_files": "masks/{id}.*", **layout.keys}


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
        and re.fullmatch(r"_?annotations|instances_\w+|_annotations\.coco|(\w+_)?coco(_\w+)?", path.stem)
        is not None
    )


def pairs(
    files: Sequence[str], endings: Sequence[str], reader: str, only: Collection[str] | None = None
) -> list[Layout]:
    """The understandings of images and masks that are files of their own. only: names of images to read."""
    named, left_out = placed([file for file in files if file.lower().endswith(tuple(endings))], endings)
    notes = tuple(f"not read: {count} files in {folder}/" for folder, count in sorted(left_out.items()))
    roles = {role: [file for file in named if role_of(file) == role] for role in ("image", "mask", None)}
    images, masks = roles["image"] or roles[None], roles["mask"]
    if only is not None:
        images = [file for file in images if file.stem in only]
    if not masks:
        found = in_the_same_folders(images)
    else:
        found = in_folders_of_classes(images, masks) or [
            best
            for place in sorted({file.place for file in masks})
            for best in kinds_of_masks(images, [file for file in masks if file.place == place], endings)
        ]
    return [layout(reader, *patterns, notes) for patterns in preferred(found)]


def kinds_of_masks(
    images: Sequence[Named], masks: Sequence[Named], endings: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """The patterns of masks in one place: several, if each image has x_liver.png and x_spleen.png there."""
    for _ in range(KINDS):
        if not masks or (best := best_of([together(images, masks)])) is None:
            return
        yield best
        fits = fitting(best[1], endings)
        masks = [file for file in masks if not fits(file.path)]


def preferred(found: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Of masks of objects and of classes (Pascal VOC, Cityscapes) those of objects."""
    objects = [patterns for patterns in found if any(word in patterns[1] for word in OBJECTS)]
    others = [patterns for patterns in found if any(word in patterns[1] for word in CLASSES)]
    return objects if len(objects) == 1 and len(others) == len(found) - 1 else list(found)


def in_folders_of_classes(images: Sequence[Named], masks: Sequence[Named]) -> list[tuple[str, str]]:
    """A folder of masks for each class: images/a.png with masks/liver/a.png and masks/spleen/a.png.

    Or a folder for each image, with a mask for each class: images/a.png with masks/a/liver.png. Folders of
    several persons or versions are readings of their own.
    """
    if (mark := mark_of_masks_only(images, masks)) is None:
        return []
    folders = {dict(file.marks)[mark] for file in masks}
    of_images = folders <= {file.stem for file in images}
    moved = [at_place(file, mark, None if of_images else "{class}") for file in masks]
    found = best_of([together(images, moved)])
    if found is None:
        return []
    if of_images:
        inner = "{class}" if names_of_classes(masks) else "*"
        return [(found[0], f"{found[1].removesuffix('.*')}/{inner}.*")]
    if of_persons(folders):
        return [(found[0], found[1].replace("{class}", folder)) for folder in sorted(folders)]
    return [found]


def mark_of_masks_only(images: Sequence[Named], masks: Sequence[Named]) -> str | None:
    """The folder that only masks have, if there is one and all masks have it."""
    places = {file.place for file in masks}
    if len(places) != 1 or not images:
        return None
    own = {mark for file in images for mark, _ in file.marks}
    extra = [mark for mark in places.pop() if mark in ("{folder}", "{patient}") and mark not in own]
    return extra[0] if len(extra) == 1 else None


def of_persons(folders: Collection[str]) -> bool:
    """Whether folders hold the drawings of several persons or versions."""
    return any(split_words(re.sub(r"\d", " ", folder)) & RATERS for folder in folders)


def at_place(file: Named, mark: str, instead: str | None) -> Named:
    """The file without this mark of a folder. instead: what stands there; None: the folder names the file."""
    marks = tuple(found for found in file.marks if found[0] != mark)
    if instead is None:
        place = tuple(folder for folder in file.place if folder != mark)
        return replace(file, place=place, marks=marks, stem=dict(file.marks)[mark])
    place = tuple(instead if folder == mark else folder for folder in file.place)
    return replace(file, place=place, marks=marks)


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


def layout(reader: str, image_files: str, mask_files: str, notes: tuple[str, ...]) -> Layout:
    """With the patterns, unless they are the reader's own."""
    if (image_files, mask_files) == ("images/{id}.*", "masks/{id}.*"):
        return Layout(reader, {}, notes)
    keys = {"image_files": image_files, "mask_files": mask_files}
    if "_0000" in image_files:
        notes = (*notes, "of each case only the first channel (_0000) is read")
    return Layout(reader, keys, notes)
