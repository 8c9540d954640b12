"""The interface of all readers: a list of samples, and a method that loads one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sample:
    """One image of a dataset.

    id: stable, unique within the dataset (a file's stem, a phantom's number).
    group: patient, slide or sequence this image belongs to; None if unknown. A split never divides the
        images of one group.
    part: the dataset's own list that contains this image; None if the dataset leaves the split to the
        scenario. A dataset marks all of its samples or none.
    """

    id: str
    group: str | None = None
    part: Literal["train", "test"] | None = None


@dataclass(frozen=True)
class LoadedSample:
    """image_HW3: uint8 RGB. labels_HW: int32, 0 background, 1..n one label per instance (n >= 1)."""

    image_HW3: NDArray[np.uint8]
    labels_HW: NDArray[np.int32]


class Dataset(Protocol):
    """A task's images at one institution, in a stable order."""

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All samples, sorted by id."""

    def load(self, sample: Sample) -> LoadedSample:
        """Read one sample. Raises DataError naming the file, what was expected and what was found."""
