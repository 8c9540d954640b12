"""Folders of files: which files belong together, and which must not be ignored silently."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from casam_core.errors import DataError
from client.data.dataset import DataFaultsError

# fmt: off
_IMAGE_SUFFIXES = frozenset({
    ".avif", ".bmp", ".czi", ".dcm", ".dicom", ".dib", ".exr", ".gif", ".heic", ".heif", ".hdr", ".jfif",
    ".j2k", ".jp2", ".jpeg", ".jpg", ".jxl", ".lif", ".mha", ".mhd", ".mrxs", ".nd2", ".ndpi", ".nii", ".npy",
    ".npz", ".nrrd", ".pbm", ".pgm", ".png", ".ppm", ".psd", ".raw", ".svs", ".tga", ".tif", ".tiff", ".webp",
})
# fmt: on


def require_folder(path: Path, content: str) -> None:
    """Raises DataError unless `path` is a folder. content: what it should hold, for the message."""
    if not is_folder(path):
        found = "a file" if path.exists() else "nothing"
        raise DataError(f"{path}: expected a folder with {content}, found {found}; correct the path")


def files_by_stem(folder: Path, suffixes: frozenset[str], names: str) -> dict[str, Path]:
    """Files of `folder` whose endings are in `suffixes`, by stem. Raises DataError. names: what they are."""
    if not is_folder(folder):
        raise DataError(
            f"{folder}: expected this folder beside its {'masks' if folder.name == 'images' else 'images'}/, "
            f"found none; a dataset has images/ and masks/"
        )
    entries = visible_entries(folder)
    if subfolders := [entry.name for entry in entries if entry.is_dir()]:
        raise DataError(
            f"{folder}: expected files only, found {naming(subfolders, 'folder')}; describe the names "
            "with image_files and mask_files (docs/data.md)"
        )
    stems = {entry: _stem(entry, suffixes) for entry in entries}
    foreign = _IMAGE_SUFFIXES - ({".raw"} if ".mhd" in suffixes else set())  # pixels of a header beside them
    if unread := [e.name for e, stem in stems.items() if stem is None and _format(e) in foreign]:
        raise DataError(
            f"{folder}: expected {names}, found {naming(unread, 'file')} of another format; "
            f"name the reader of this format (docs/data.md), or convert copies of them"
        )
    files: dict[str, Path] = {}
    for entry, stem in stems.items():
        if stem is None:
            continue
        if stem in files:
            raise DataError(
                f"{folder}: expected one file per stem, found {files[stem].name} and {entry.name}; "
                f"rename or remove one"
            )
        files[stem] = entry
    return files


def visible_entries(folder: Path) -> list[Path]:
    """Files and folders of `folder` that are not hidden, sorted. Raises DataError."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as fault:
        raise _not_readable(folder, fault) from fault


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder. Raises DataError if the path cannot be read."""
    try:
        return path.is_dir()
    except OSError as fault:
        raise _not_readable(path, fault) from fault


def is_file(path: Path) -> bool:
    """Whether `path` is a file that can be looked at; a name that is too long for the disk names none."""
    return os.path.isfile(path)  # noqa: PTH113  (Path.is_file raises OSError for such a name)


def groups_of(path: Path, stems: list[str], pattern: str) -> list[str]:
    """The group of every stem: the first group of the regular expression `pattern`. Raises DataError."""
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as fault:
        raise DataError(
            f"{path}: expected a regular expression as group_pattern, found {pattern!r} ({fault}); correct it"
        ) from fault
    if compiled.groups < 1:
        raise DataError(
            f"{path}: expected a group in group_pattern, found none in {pattern!r}; put the part that names "
            f"the patient or slide in parentheses"
        )
    matches = [compiled.search(stem) for stem in stems]
    groups = [(match.group(1) if match else None) or "" for match in matches]
    if unmatched := [stem for stem, group in zip(stems, groups, strict=True) if not group]:
        raise DataError(
            f"{path}: expected group_pattern {pattern!r} to find a group in every file name, found "
            f"{naming(unmatched, 'name')} without; correct the pattern or rename the files"
        )
    return groups


def inside(folder: Path, written: object, source: str) -> Path:
    """The file `written` below `folder`. Raises DataError unless it is a relative path inside the folder.

    source: the file that contains the path, for the message. A list file comes with the data and must not
    give access to other files of the site.
    """
    if not isinstance(written, str) or not written:
        raise DataError(f"{source}: expected a file name, found {written!r}; correct the entry")
    relative = Path(written)
    if relative.is_absolute() or ".." in relative.parts or "\0" in written:
        raise DataError(
            f"{source}: expected a path that stays inside {folder}, found {written!r}; correct the entry"
        )
    return folder / relative


def naming(names: Iterable[str], noun: str) -> str:
    """`1 image (a.png)`, `5 images (a.png, b.png, c.png, ...)`."""
    listed = list(names)
    shown = ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
    return f"{len(listed)} {noun}{'s' if len(listed) != 1 else ''} ({shown})"


def _not_readable(path: Path, fault: OSError) -> DataError:
    return DataError(f"{path}: expected a readable folder, found: {fault.strerror}; check its permissions")


def _stem(entry: Path, suffixes: frozenset[str]) -> str | None:
    """The name without the longest ending in `suffixes`; None if it has none of them."""
    endings = [suffix for suffix in suffixes if entry.name.lower().endswith(suffix)]
    return entry.name[: -len(max(endings, key=len))] if endings else None


def _format(entry: Path) -> str:
    """The file ending in lower case; for .gz files, the ending before .gz."""
    return Path(entry.name.lower().removesuffix(".gz")).suffix


def require_partners(
    path: Path, unmasked: Iterable[str], orphans: Iterable[str], patterns: tuple[str, str], elsewhere: str
) -> None:
    """Raises one DataError for all images without a mask and all masks without an image.

    patterns: of images and of masks. elsewhere: the key that can name the files to read instead.
    """
    faults = [
        f"{path}: expected {wanted} like {pattern} for every {kind}, found {naming(alone, kind)} without; "
        f"add the files, or name the others in {elsewhere} (docs/data.md)"
        for wanted, pattern, kind, alone in (
            ("a mask", patterns[1], "image", sorted(unmasked)),
            ("an image", patterns[0], "mask", sorted(orphans)),
        )
        if alone
    ]
    if faults:
        raise DataFaultsError(faults)
