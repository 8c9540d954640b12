"""Training images that a caller gives as arrays, checked like files before the slow encoder sees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from casam_core.errors import DataError
from casam_core.model.backbones import Backbone
from casam_core.model.examples import Example
from casam_use.segmenter import embedding_of, require_rgb
from client.data.labels import number, whole_labels


def examples_of(
    images: Sequence[NDArray[np.uint8]], labels: Sequence[NDArray[np.int32]], backbone: Backbone
) -> list[Example]:
    """Embeddings and numbered instances of images_HW3 and their labels_HW.

    Raises:
        ValueError: the numbers of images and labels differ.
        PromptError: an image is not uint8 RGB.
        DataError: labels are not whole numbers, have another size than their image, or hold no instance at
            all.
    """
    numbered = []
    for index, (image_HW3, labels_HW) in enumerate(zip(images, labels, strict=True)):
        require_rgb(image_HW3, f"images[{index}]")
        values_HW, where = np.asarray(labels_HW), f"labels[{index}]"
        if values_HW.shape != image_HW3.shape[:2]:
            raise DataError(
                f"{where}: expected the height and width of its image, {image_HW3.shape[:2]}, found "
                f"{values_HW.shape}; give one number per pixel"
            )
        values_HW = whole_labels(values_HW, Path(where))
        numbered.append(
            number(values_HW, "instances") if values_HW.any() else np.zeros_like(values_HW, np.int32)
        )
    if not any(labels_HW.any() for labels_HW in numbered):
        raise DataError(
            f"labels: expected an instance in one image or more, found none in {len(numbered)}; "
            "label an object"
        )
    return [
        Example(embedding_of(backbone, image_HW3)[0], labels_HW)
        for image_HW3, labels_HW in zip(images, numbered, strict=True)
    ]
