"""What the masks of a dataset leave in doubt: regions that share one value, and blurred edges.

Such masks can be read, but their objects are probably not those that a person drew. A value with several
regions may be several objects that became one. A mask that was saved as JPEG, or scaled as a picture is, has
many values along its edges, and each of them would be an object.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from casam_core.config.data_spec import OPTIONS, DataSpec
from client.data.dataset import LoadedSample
from client.data.labels import number

BLURRED = 0.08
"""Share of the edges that are single pixels with a label of their own, above which a mask counts as blurred.
Measured: at most 0.03 in the masks of six drawn sets, 0.1 to 0.6 in JPEG of quality 50 to 100 and after
scaling."""

MOST = 0.9
"""So many masks with one value and several regions are in doubt even if some others have several values."""


@dataclass
class Doubts:
    """Counts over the images of one dataset.

    one_value: images with one value, or with one for each class, where nobody said what a value means.
    regions: of those with more regions than values, the number of regions. blurred: images.
    """

    spec: DataSpec
    images: int = 0
    one_value: int = 0
    regions: list[int] = field(default_factory=list)
    blurred: int = 0

    def add(self, loaded: LoadedSample) -> bool:
        """Count one image. Returns whether it shows by itself that its mask is in no doubt."""
        self.images += 1
        if is_blurred(loaded.labels_HW):
            self.blurred += 1
            return False
        instances = int(loaded.labels_HW.max())
        asks = "labels" not in self.spec.model_fields_set and self.spec.reader in OPTIONS["labels"]
        if not asks or (instances > 1 and "{class}" not in (self.spec.mask_files or "")):
            return True
        self.one_value += 1
        if (regions := int(number(loaded.labels_HW, "classes").max())) > instances:
            self.regions.append(regions)
        return False

    @property
    def blurred_masks(self) -> str:
        """The blurred masks in words."""
        return (
            f"blurred edges (single pixels with values of their own, as JPEG or scaling leaves them) in "
            f"{self.blurred} of {self.images} masks"
        )

    def faults(self) -> Iterator[str]:
        """Doubts about most masks, or about all that could show the meaning of their values."""
        if 2 * self.blurred > self.images:
            yield (
                f"masks: expected one value for all pixels of an object, found {self.blurred_masks}; export "
                "the masks again without loss, at the size of the images (masks of one class: mask > 127)"
            )
        several = len(self.regions)
        if several and (self.one_value == self.images or several >= MOST * self.images):
            found = "every mask" if self.one_value == self.images else "most masks"
            yield (
                f"labels: expected one value per object, found one value in {found} and up to "
                f"{max(self.regions)} separate regions in {several} of {self.images} masks; write labels = "
                '"classes" if each region is an object, or labels = "instances" if all regions are one'
            )


def is_blurred(labels_HW: NDArray[np.int32]) -> bool:
    """Whether much of the edges is single pixels with a label of their own beside other labels."""
    alike_HW, beside_HW, edge_HW = (np.zeros(labels_HW.shape, bool) for _ in range(3))
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        same = labels_HW[one] == labels_HW[other]
        both = (labels_HW[one] > 0) & (labels_HW[other] > 0) & ~same
        for side in (one, other):
            alike_HW[side] |= same
            beside_HW[side] |= both
            edge_HW[side] |= ~same
    edge_HW &= labels_HW > 0
    return int((beside_HW & ~alike_HW).sum()) > BLURRED * int(edge_HW.sum())
