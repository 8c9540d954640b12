"""A folder with images/ and masks/ as a dataset."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from casam_core.errors import DataError
from client.data.dataset import LoadedSample, Sample
from client.data.pixels import SUFFIXES, read_image, read_mask

# fmt: off
_UNREAD_IMAGE_SUFFIXES = frozenset({
    ".avif", ".bmp", ".czi", ".dcm", ".dicom", ".dib", ".exr", ".gif", ".heic", ".heif", ".hdr", ".jfif",
    ".j2k", ".jp2", ".jxl", ".lif", ".mha", ".mhd", ".mrxs", ".nd2", ".ndpi", ".nii", ".npy", ".npz",
    ".nrrd", ".pbm", ".pgm", ".ppm", ".psd", ".raw", ".svs", ".tga", ".webp",
})
# fmt: on
_EIGHT_CONNECTED = np.ones((3, 3), dtype=int)


class FolderDataset:
    """Pairs of files with the same stem in `path`/images and `path`/masks.

    Read are .png, .jpg, .jpeg, .tif and .tiff in either case of letters; image and mask may differ in
    their ending. Hidden files and endings that no image has (README, .txt, .json) are passed over. Other
    image formats and subfolders are refused, so that no part of a dataset goes missing in silence.
    How pixels are read, and why orientation tags are refused, stands in client/data/pixels.py.

    labels="instances": each value above 0 of a mask is one instance.
    labels="classes": each connected part (sides or corners) of each value above 0 is one instance.
    group_pattern: regular expression searched in every stem; its first group is the sample's group.

    The constructor looks at folder listings only; `client.data.check.check` reads every file. Both
    raise DataError.
    """

    def __init__(
        self,
        path: Path,
        labels: Literal["instances", "classes"] = "instances",
        group_pattern: str | None = None,
    ) -> None:
        if not _is_folder(path):
            found = "a file" if path.exists() else "nothing"
            raise DataError(
                f"{path}: expected a folder with images/ and masks/, found {found}; correct the path"
            )
        images = _files_by_stem(path / "images")
        masks = _files_by_stem(path / "masks")
        if not images:
            raise DataError(
                f"{path / 'images'}: expected at least one PNG, JPEG or TIFF, found none; put images there"
            )
        _require_pairs(path, images, masks)
        stems = sorted(images)
        groups = _groups(path, stems, group_pattern)
        self._labels = labels
        self._path = path
        self._files = {stem: (images[stem], masks[stem]) for stem in stems}
        self._samples = tuple(Sample(stem, group) for stem, group in zip(stems, groups, strict=True))

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All samples, sorted by id; the id is the file's stem."""
        return self._samples

    def load(self, sample: Sample) -> LoadedSample:
        """Read one pair: uint8 RGB and int32 labels 1..n, in the order of the mask's own values.

        With labels="classes" parts of one class follow each other in reading order. Raises DataError
        naming the file.
        """
        if sample.id not in self._files:
            raise DataError(f"{self._path}: expected a sample of this folder, found the id {sample.id!r}")
        image_path, mask_path = self._files[sample.id]
        image_HW3 = read_image(image_path)
        values_HW = read_mask(mask_path)
        if image_HW3.shape[:2] != values_HW.shape:
            raise DataError(
                f"{mask_path}: expected the size of {image_path.name}, {_size(image_HW3)}, found "
                f"{_size(values_HW)}; export image and mask at the same size"
            )
        if not values_HW.any():
            raise DataError(
                f"{mask_path}: expected at least one labelled pixel, found only background (0); "
                f"label the image or remove the pair"
            )
        number = _number_instances if self._labels == "instances" else _number_connected_parts
        return LoadedSample(image_HW3, number(values_HW))


def _number_instances(values_HW: NDArray[Any]) -> NDArray[np.int32]:
    present, index = np.unique(values_HW, return_inverse=True)
    # Without any background the lowest value is an instance too and must not become 0.
    first = 0 if present[0] == 0 else 1
    return (index.reshape(values_HW.shape) + first).astype(np.int32)


def _number_connected_parts(values_HW: NDArray[Any]) -> NDArray[np.int32]:
    labels_HW = np.zeros(values_HW.shape, np.int32)
    count = 0
    for value in np.unique(values_HW[values_HW > 0]):
        parts_HW, parts = ndimage.label(values_HW == value, structure=_EIGHT_CONNECTED)
        labels_HW[parts_HW > 0] = parts_HW[parts_HW > 0] + count
        count += parts
    return labels_HW


def _files_by_stem(folder: Path) -> dict[str, Path]:
    """Image files of `folder` by stem."""
    if not _is_folder(folder):
        raise DataError(
            f"{folder}: expected this folder beside its {'masks' if folder.name == 'images' else 'images'}/, "
            f"found none; a dataset has images/ and masks/"
        )
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as fault:
        raise _not_readable(folder, fault) from fault
    subfolders = [entry.name for entry in entries if entry.is_dir()]
    if subfolders:
        raise DataError(
            f"{folder}: expected files only, found {_naming(subfolders, 'folder')}; move the files up"
        )
    unread = [entry.name for entry in entries if _format_suffix(entry) in _UNREAD_IMAGE_SUFFIXES]
    if unread:
        raise DataError(
            f"{folder}: expected PNG, JPEG or TIFF, found {_naming(unread, 'file')} of another format; "
            f"convert or remove them"
        )
    files: dict[str, Path] = {}
    for entry in entries:
        if entry.suffix.lower() not in SUFFIXES:
            continue
        if entry.stem in files:
            raise DataError(
                f"{folder}: expected one file per stem, found {files[entry.stem].name} and {entry.name}; "
                f"rename or remove one"
            )
        files[entry.stem] = entry
    return files


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as fault:
        raise _not_readable(path, fault) from fault


def _not_readable(path: Path, fault: OSError) -> DataError:
    return DataError(f"{path}: expected a readable folder, found: {fault.strerror}; check its permissions")


def _format_suffix(entry: Path) -> str:
    """The ending in lower case; the one before .gz for packed files."""
    return Path(entry.name.lower().removesuffix(".gz")).suffix


def _require_pairs(path: Path, images: dict[str, Path], masks: dict[str, Path]) -> None:
    unmasked = [images[stem].name for stem in sorted(images.keys() - masks.keys())]
    if unmasked:
        raise DataError(
            f"{path}: expected a mask for every image, found {_naming(unmasked, 'image')} without; "
            f"add files with the same stems to masks/ or remove the images"
        )
    orphans = [masks[stem].name for stem in sorted(masks.keys() - images.keys())]
    if orphans:
        raise DataError(
            f"{path}: expected an image for every mask, found {_naming(orphans, 'mask')} without; "
            f"add files with the same stems to images/ or remove the masks"
        )


def _groups(path: Path, stems: list[str], pattern: str | None) -> list[str | None]:
    if pattern is None:
        return [None] * len(stems)
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
    groups = [match.group(1) if match else None for match in matches]
    unmatched = [stem for stem, group in zip(stems, groups, strict=True) if not group]
    if unmatched:
        raise DataError(
            f"{path}: expected group_pattern {pattern!r} to find a group in every file name, found "
            f"{_naming(unmatched, 'name')} without; correct the pattern or rename the files"
        )
    return groups


def _naming(names: Iterable[str], noun: str) -> str:
    """`1 image (a.png)`, `5 images (a.png, b.png, c.png, ...)`."""
    listed = list(names)
    shown = ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
    return f"{len(listed)} {noun}{'s' if len(listed) != 1 else ''} ({shown})"


def _size(array: NDArray[Any]) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
