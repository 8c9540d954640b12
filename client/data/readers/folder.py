"""A folder with images/ and masks/ as a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.errors import DataError
from client.data.dataset import LoadedSample, Sample
from client.data.file_patterns import Pair, Patterns, grouped, listed
from client.data.labels import Meaning, number, paint
from client.data.pixels import SUFFIXES, read_colours, read_image, read_mask, stored_bits
from client.data.readers.list_files import read_list


class FolderDataset:
    """Pairs of files with the same stem in `path`/images and `path`/masks, or as patterns of names say
    (client/data/file_patterns.py) or a CSV file lists (client/data/readers/list_files.py). An image with
    several masks has one instance in each.

    The reader accepts .png, .jpg, .jpeg, .tif and .tiff, in upper or lower case; image and mask may have
    different endings. Hidden files and files that are no images (README, .txt, .json) are ignored. Other
    image formats and subfolders are refused, so that no part of a dataset is lost silently.
    client/data/pixels.py says how pixels are read, and why orientation tags are refused.

    labels="instances": each value above 0 of a mask is one instance.
    labels="classes": each connected part (sides or corners) of each value above 0 is one instance.
    labels="colours": the same for each colour of an RGB mask; black is background.
    group_pattern: regular expression searched in every stem; its first group is the sample's group.

    The constructor reads only the folder listings; scenarios/inspection/survey.py reads every file. Both
    raise DataError.
    """

    empty = 0
    warnings: tuple[str, ...] = ()

    def __init__(
        self,
        path: Path,
        labels: Meaning = "instances",
        group_pattern: str | None = None,
        patterns: Patterns | None = None,
        list_file: str | None = None,
    ) -> None:
        if list_file is not None:
            pairs = grouped(path, read_list(path, list_file), group_pattern)
        else:
            pairs = listed(path, SUFFIXES, "PNG, JPEG or TIFF", patterns, group_pattern)
        self._files = {pair.id: pair for pair in pairs}
        self._labels = labels
        self._path = path
        self._samples = tuple(Sample(pair.id, pair.group, pair.part) for pair in pairs)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All samples, sorted by id; the id is the file's stem."""
        return self._samples

    def load(self, sample: Sample) -> LoadedSample:
        """Read one pair: uint8 RGB and int32 labels 1..n, in the order of the mask's own values.

        With labels="classes" parts of one class follow each other in reading order. Raises DataError
        naming the file.
        """
        pair = self._pair(sample)
        image_HW3 = read_image(pair.image)
        values = [self._values(pair.image.name, image_HW3, mask_path) for mask_path in pair.masks]
        if len(values) > 1:
            labels_HW, hidden = paint([values_HW > 0 for values_HW in values])
            if hidden:
                raise DataError(
                    f"{pair.masks[hidden[0]]}: expected a visible instance, found one below others; remove it"
                )
            return LoadedSample(image_HW3, labels_HW)
        return LoadedSample(image_HW3, number(values[0], self._labels))

    def _values(self, name: str, image_HW3: NDArray[np.uint8], mask_path: Path) -> NDArray[Any]:
        """values_HW of one mask file. name: of its image."""
        values_HW = read_colours(mask_path) if self._labels == "colours" else read_mask(mask_path)
        if image_HW3.shape[:2] != values_HW.shape:
            raise DataError(
                f"{mask_path}: expected the size of {name}, {_size(image_HW3)}, found "
                f"{_size(values_HW)}; export image and mask at the same size"
            )
        if not values_HW.any():
            raise DataError(
                f"{mask_path}: expected at least one labelled pixel, found only background (0); "
                f"label the image or remove the pair"
            )
        return values_HW

    def bits(self, sample: Sample) -> int:
        """Bits per value of the image file."""
        return stored_bits(self._pair(sample).image)

    def _pair(self, sample: Sample) -> Pair:
        if sample.id not in self._files:
            raise DataError(f"{self._path}: expected a sample of this folder, found the id {sample.id!r}")
        return self._files[sample.id]


def _size(array: NDArray[Any]) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
