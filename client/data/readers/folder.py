"""A folder with images/ and masks/ as a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.config.data_spec import DataSpec
from casam_core.errors import DataError
from client.data.dataset import LoadedSample, Sample
from client.data.labels import layered, require_same_size
from client.data.pixels import SUFFIXES, read_colours, read_image, read_mask
from client.data.readers.pairs import PLAIN, FileDataset, listed, masks_are_classes


class FolderDataset(FileDataset):
    """Pairs of files with the same stem in `path`/images and `path`/masks, or as the spec says
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

    def __init__(self, path: Path, spec: DataSpec = PLAIN) -> None:
        super().__init__(path, listed(path, SUFFIXES, "PNG, JPEG or TIFF", spec))
        self._spec = spec

    def load(self, sample: Sample) -> LoadedSample:
        """Read one pair: uint8 RGB and int32 labels 1..n, in the order of the mask's own values.

        With labels="classes" parts of one class follow each other in reading order. Raises DataError
        naming the file.
        """
        pair = self.pair(sample)
        image_HW3 = read_image(pair.image)
        values = [self._values(pair.image, image_HW3, mask_path) for mask_path in pair.masks]
        classes = masks_are_classes(self._spec)
        empty = [mask for mask, values_HW in zip(pair.masks, values, strict=True) if not values_HW.any()]
        if empty and not (classes and len(empty) < len(values)):
            kind = "pixel of an object" if self._spec.object_values else "labelled pixel"
            raise DataError(
                f"{empty[0]}: expected at least one {kind}, found only background (0); label the image, or "
                "leave the pair out of the data"
            )
        labels_HW, hidden = layered(values, self._spec.labels, one_instance=not classes)
        if hidden:
            raise DataError(
                f"{pair.masks[hidden[0]]}: expected a visible instance, found one below others; "
                "correct the mask"
            )
        return LoadedSample(image_HW3, labels_HW)

    def _values(self, image: Path, image_HW3: NDArray[np.uint8], mask_path: Path) -> NDArray[Any]:
        """values_HW of one mask file."""
        values_HW = read_colours(mask_path) if self._spec.labels == "colours" else read_mask(mask_path)
        if self._spec.object_values:
            low, high = self._spec.object_values
            values_HW = np.where((values_HW >= low) & (values_HW <= high), values_HW, 0)
        require_same_size(values_HW, mask_path, image_HW3, image)
        return values_HW
