"""A folder with images/ and masks/ as a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from casam_core.errors import DataError
from client.data.dataset import LoadedSample, Sample
from client.data.labels import Meaning, number
from client.data.listing import groups_of, paired_files
from client.data.pixels import SUFFIXES, read_image, read_mask, stored_bits


class FolderDataset:
    """Pairs of files with the same stem in `path`/images and `path`/masks.

    The reader accepts .png, .jpg, .jpeg, .tif and .tiff, in upper or lower case; image and mask may have
    different endings. Hidden files and files that are no images (README, .txt, .json) are ignored. Other
    image formats and subfolders are refused, so that no part of a dataset is lost silently.
    client/data/pixels.py says how pixels are read, and why orientation tags are refused.

    labels="instances": each value above 0 of a mask is one instance.
    labels="classes": each connected part (sides or corners) of each value above 0 is one instance.
    group_pattern: regular expression searched in every stem; its first group is the sample's group.

    The constructor reads only the folder listings; scenarios/inspection/survey.py reads every file. Both
    raise DataError.
    """

    empty = 0
    warnings: tuple[str, ...] = ()

    def __init__(self, path: Path, labels: Meaning = "instances", group_pattern: str | None = None) -> None:
        self._files = paired_files(path, SUFFIXES, "PNG, JPEG or TIFF")
        stems = list(self._files)
        groups = groups_of(path, stems, group_pattern)
        self._labels = labels
        self._path = path
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
        image_path, mask_path = self._pair(sample)
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
        return LoadedSample(image_HW3, number(values_HW, self._labels))

    def bits(self, sample: Sample) -> int:
        """Bits per value of the image file."""
        return stored_bits(self._pair(sample)[0])

    def _pair(self, sample: Sample) -> tuple[Path, Path]:
        if sample.id not in self._files:
            raise DataError(f"{self._path}: expected a sample of this folder, found the id {sample.id!r}")
        return self._files[sample.id]


def _size(array: NDArray[Any]) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
