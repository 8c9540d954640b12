"""A folder with images/ and masks/ as a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.errors import DataError
from client.data.dataset import LoadedSample, Sample
from client.data.file_patterns import Pair
from client.data.labels import Meaning, layered, number
from client.data.pixels import SUFFIXES, read_colours, read_image, read_mask, stored_bits
from client.data.readers.pairs import SAME_STEMS, FileRules, listed


class FolderDataset:
    """Pairs of files with the same stem in `path`/images and `path`/masks, or as `rules` say
    (client/data/readers/pairs.py). An image with several masks has one instance in each, or with the mark
    {class} one class; then the mask of a class that the image does not show may be absent or empty.

    The reader accepts .png, .jpg, .jpeg, .tif and .tiff, in upper or lower case; image and mask may have
    different endings. Hidden files and files that are no images (README, .txt, .json) are ignored. Other
    image formats and subfolders are refused, so that no part of a dataset is lost silently.
    client/data/pixels.py says how pixels are read, and why orientation tags are refused.

    labels="instances": each value above 0 of a mask is one instance.
    labels="classes": each connected part (sides or corners) of each value above 0 is one instance.
    labels="colours": the same for each colour of an RGB mask; black is background.
    object_values: [lowest, highest] value of an object; other values of a mask are background.

    The constructor reads only the folder listings; scenarios/inspection/survey.py reads every file. Both
    raise DataError.
    """

    empty = 0
    warnings: tuple[str, ...] = ()

    def __init__(
        self,
        path: Path,
        labels: Meaning = "instances",
        rules: FileRules = SAME_STEMS,
        object_values: list[int] | None = None,
    ) -> None:
        pairs = listed(path, SUFFIXES, "PNG, JPEG or TIFF", rules)
        self._files = {pair.id: pair for pair in pairs}
        self._labels, self._rules = labels, rules
        self._object_values = object_values
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
        classes = self._rules.mask_is_class
        empty = [mask for mask, values_HW in zip(pair.masks, values, strict=True) if not values_HW.any()]
        if empty and not (classes and len(empty) < len(values)):
            kind = "pixel of an object" if self._object_values else "labelled pixel"
            raise DataError(
                f"{empty[0]}: expected at least one {kind}, found only background (0); label the image, or "
                "leave the pair out of the data"
            )
        if len(values) > 1:
            labels_HW, hidden = layered(values, self._labels, one_instance=not classes)
            if hidden:
                raise DataError(
                    f"{pair.masks[hidden[0]]}: expected a visible instance, found one below others; "
                    "correct the mask"
                )
            return LoadedSample(image_HW3, labels_HW)
        return LoadedSample(image_HW3, number(values[0], self._labels))

    def _values(self, name: str, image_HW3: NDArray[np.uint8], mask_path: Path) -> NDArray[Any]:
        """values_HW of one mask file. name: of its image."""
        values_HW = read_colours(mask_path) if self._labels == "colours" else read_mask(mask_path)
        if self._object_values:
            low, high = self._object_values
            values_HW = np.where((values_HW >= low) & (values_HW <= high), values_HW, 0)
        if image_HW3.shape[:2] != values_HW.shape:
            raise DataError(
                f"{mask_path}: expected the size of {name}, {_size(image_HW3)}, found "
                f"{_size(values_HW)}; export image and mask at the same size"
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
