"""Names of files: their folders as in a pattern, what these say, and whether they are images or masks."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from client.data.file_patterns import SPLITS

# fmt: off
IMAGES = {
    "image", "images", "img", "imgs", "imagestr", "jpegimages", "input", "inputs", "scans", "slices", "x",
    "bild", "bilder", "imagen", "imagenes",
}
MASKS = {
    "mask", "masks", "label", "labels", "labelstr", "lbl", "annotation", "annotations", "gt", "groundtruth",
    "seg", "segs", "segmentation", "segmentations", "segmentationobject", "segmentationclass", "target",
    "targets", "y", "instances", "truth", "manual", "anno", "ann", "anns", "gtfine", "maske", "masken",
    "masque", "masques",
}
# fmt: on
PIXELS = (".png", ".jpg", ".jpeg", ".ome.tif", ".ome.tiff", ".tif", ".tiff")
VOLUMES = (".nii.gz", ".nii")
ITK_VOLUMES = (".nrrd", ".nhdr", ".mha", ".mhd")
DICOM = (".dcm", ".dicom", ".ima")
ENDINGS = {"folder": PIXELS, "tiff_stack": PIXELS, "nifti": VOLUMES, "itk": ITK_VOLUMES}
"""By reader: the file endings of images and masks that are files of their own."""

# fmt: off
NO_PATIENTS = {
    "fold", "folds", "part", "batch", "set", "subset", "split", "chunk", "class", "grade", "type", "category",
    "site", "center", "centre", "hospital", "vendor", "dataset", "task", "magnification",
}
# fmt: on
"""Words of numbered folders that are no patients."""

WITHOUT_TRUTH = ("imagests", "labelsts")
"""Folders that are never read: nnU-Net's images for a challenge."""
WORDS = re.compile(r"[A-Za-z0-9]+")


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


def split_words(name: str) -> set[str]:
    """The words of a path, in lower case."""
    return {word.lower() for word in WORDS.findall(name)}


def role_of(file: Named) -> str | None:
    """image or mask, by the deepest folder with such a name; None if no folder says it."""
    return next((role for folder in reversed(file.place) if (role := role_of_folder(folder))), None)


def role_of_folder(name: str) -> str | None:
    """The same for one folder or file name."""
    words = split_words(name)
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
        *folders, name = escaped(file).split("/")
        marks: dict[str, str] = {}
        place = [
            pattern_of(folder, varying.get((depth, folder)), marks) for depth, folder in enumerate(folders)
        ]
        ending = next(name[-len(end) :] for end in endings if name.lower().endswith(end))
        named.append(Named(file, tuple(place), tuple(sorted(marks.items())), name[: -len(ending)], ending))
    return named, left_out


def variable_folders(files: Sequence[str]) -> dict[tuple[int, str], str]:
    """By depth and name, the mark of folders that say neither role nor split.

    They are patients if a name at their depth has a digit or is a long code, but not fold1 or grade2.
    """
    others: dict[int, set[str]] = defaultdict(set)
    parts: dict[int, set[str]] = defaultdict(set)
    for file in files:
        for depth, folder in enumerate(escaped(file).split("/")[:-1]):
            if not says_something(folder):
                others[depth].add(folder)
            elif not split_words(folder) & (IMAGES | MASKS):
                parts[depth].add(folder)
    for depth, folders in parts.items():
        if len(folders) > len(set(SPLITS.values())) + 1:  # patients such as BraTS20_Training_001
            others[depth] |= folders
    found: dict[tuple[int, str], str] = {}
    for depth, folders in others.items():
        if len(folders) > 1:
            codes = any(re.search(r"\d", folder) or len(folder) >= 32 for folder in folders)
            codes &= not all(split_words(re.sub(r"\d", " ", folder)) & NO_PATIENTS for folder in folders)
            found |= {(depth, folder): "{patient}" if codes else "{folder}" for folder in folders}
    return found


def says_something(folder: str) -> bool:
    """Whether a folder's name is a role or a part of a split."""
    return bool(split_words(folder) & (IMAGES | MASKS | set(SPLITS)))


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


def escaped(file: str) -> str:
    """A path as in a pattern: its own braces are doubled."""
    return file.replace("{", "{{").replace("}", "}}")
