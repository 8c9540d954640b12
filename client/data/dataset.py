"""The interface of all readers: a list of samples, and a method that loads one of them.

Several faults of one dataset come in one error, so that a person can correct them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from casam_core.errors import DataError


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


Item = TypeVar("Item")
Result = TypeVar("Result")


class DataFaultsError(DataError):
    """One or more faults. The message has the first one and the number of others; `faults` holds all."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        more = len(self.faults) - 1
        tail = f" (and {more} more fault{'s' if more > 1 else ''}: see `casam data check`)" if more else ""
        super().__init__(f"{self.faults[0]}{tail}")


def faults_of(error: DataError) -> tuple[str, ...]:
    """All faults in an error."""
    return error.faults if isinstance(error, DataFaultsError) else (str(error),)


def for_each(action: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Call `action` with every item; all DataErrors are raised together as one DataFaultsError."""
    results: list[Result] = []
    faults: list[str] = []
    for item in items:
        try:
            results.append(action(item))
        except DataError as error:
            faults.extend(faults_of(error))
    if faults:
        raise DataFaultsError(faults)
    return results
