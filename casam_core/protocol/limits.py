"""What a reply may contain: forms of arrays, ranges of numbers, values of settings.

The institution's guard checks a reply against this list before it sends it (client/release/guard.py). The
server checks it again before it uses it (server/defence/admission.py). casam_core.protocol.messages declares
the content of the list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.errors import CasamError
from casam_core.protocol.payload import Payload


class AnswerError(CasamError):
    """A reply contains something that is not on the list. The text names it and contains no value."""

    code = "answer"


@dataclass(frozen=True)
class ArraySpec:
    """The form of one array.

    Args:
        shape: exact; an array may only be shorter in the dimensions `free`.
        least: the lowest allowed value.
        total: the highest allowed sum. exact: the only allowed sum.
    """

    dtype: type[np.generic]
    shape: tuple[int, ...]
    free: tuple[int, ...] = ()
    least: float | None = None
    total: float | None = None
    exact: bool = False

    def has_shape(self, shape: tuple[int, ...]) -> bool:
        """Whether an array may have this shape."""
        return len(shape) == len(self.shape) and all(
            found <= most if axis in self.free else found == most
            for axis, (found, most) in enumerate(zip(shape, self.shape, strict=True))
        )

    def check(self, name: str, array: NDArray[Any]) -> None:
        """Raise AnswerError for an array of another form."""
        expected = np.dtype(self.dtype)
        if array.dtype != expected or not self.has_shape(array.shape):
            raise AnswerError(f"{name}: expected {expected} {self.shape}, found {array.dtype} {array.shape}")
        if not np.isfinite(array).all():
            raise AnswerError(f"{name}: expected finite values")
        if self.least is not None and array.size and array.min() < self.least:
            raise AnswerError(f"{name}: expected values from {self.least}")
        if self.total is not None and array.sum(dtype=np.float64) > self.total:
            raise AnswerError(f"{name}: expected counts of at most {self.total} images")
        if self.exact and self.total is not None and array.sum(dtype=np.float64) != self.total:
            raise AnswerError(f"{name}: expected counts of {self.total} images")

    @property
    def bits(self) -> float:
        """How much an array of this form can say, in bits; counts with a sum say less than their size."""
        size = math.prod(self.shape)
        if self.total is None:
            return 8.0 * np.dtype(self.dtype).itemsize * size
        bins = size if self.exact else size + 1  # the last one holds what is not in the others
        return log2_ways(self.total, bins)


def log2_ways(images: float, bins: int) -> float:
    """log2 of the number of histograms of so many images over so many bins."""
    ways = math.lgamma(images + bins) - math.lgamma(images + 1) - math.lgamma(bins)
    return ways / math.log(2)


@dataclass(frozen=True)
class GroupSpec:
    """The form of one group of arrays.

    Args:
        arrays: by name.
        complete: whether all of them are required.
        open: finite float32 arrays of any name and shape are also allowed.
    """

    arrays: Mapping[str, ArraySpec]
    complete: bool = True
    open: bool = False

    def check(self, name: str, group: Mapping[str, NDArray[Any]]) -> None:
        """Raise AnswerError for a group of another form."""
        if self.open:
            for key, array in group.items():
                if array.dtype != np.float32 or not np.isfinite(array).all():
                    raise AnswerError(f"{name}/{key}: expected finite float32 values")
            return
        odd = group.keys() ^ self.arrays.keys() if self.complete else group.keys() - self.arrays.keys()
        if odd:
            raise AnswerError(f"{name}: expected other arrays, {min(odd)!r} is missing or too many")
        for key, array in group.items():
            self.arrays[key].check(f"{name}/{key}", array)


@dataclass(frozen=True)
class Range:
    """The closed range of one number.

    Args:
        whole: only integers.
        digits: decimal places of a number that is not whole. A finer number would leave room for a message.
        single: instead, the numbers of single precision.
    """

    least: float
    most: float
    whole: bool = False
    digits: int | None = None
    single: bool = False

    def fitting(self, value: float) -> float:
        """The number as it leaves: of all declared steps the nearest one."""
        if self.whole:
            return int(value)
        if self.single:
            value = float(np.float32(value))
        return (float(value) if self.digits is None else round(float(value), self.digits)) + 0.0

    @property
    def bits(self) -> float:
        """How much a number within the range can say, in bits."""
        if self.single:
            return 32.0
        step = 1.0 if self.whole else 10.0 ** -(self.digits or 0)
        return (
            64.0 if not self.whole and self.digits is None else math.log2((self.most - self.least) / step + 1)
        )

    def check(self, name: str, value: object) -> None:
        """Raise AnswerError for a value outside the range."""
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise AnswerError(f"{name}: expected a finite number")
        if not self.holds(value):
            what = "a count" if self.whole else "a value"
            raise AnswerError(f"{name}: expected {what} {self.least}..{self.most}")
        if not self.declares(value):
            raise AnswerError(f"{name}: expected the number in its declared steps")

    def declares(self, value: object) -> bool:
        """Whether the value is in the range and has its one spelling: not 1.0 for 1, or -0.0 for 0.0."""
        if not isinstance(value, int | float) or type(value) is not (int if self.whole else float):
            return False
        return math.isfinite(value) and self.holds(value) and repr(self.fitting(value)) == repr(value)

    def holds(self, value: float) -> bool:
        """Whether a finite number lies in the range."""
        return self.least <= value <= self.most and (not self.whole or value == int(value))


@dataclass
class Allowed:
    """What one reply may contain; nothing is required. A group may have any one of its forms."""

    settings: dict[str, Callable[[object], bool]] = field(default_factory=dict)
    groups: dict[str, tuple[GroupSpec, ...]] = field(default_factory=dict)
    numbers: dict[str, dict[str, Range]] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    """By group of numbers, the only allowed sum."""

    def check(self, payload: Payload) -> None:
        """Raise AnswerError that names the first content that is not on the list."""
        for name, setting in payload.config.items():
            if name not in self.settings:
                raise AnswerError(f"setting {name!r} is not on the list")
            if not self.settings[name](setting):
                raise AnswerError(f"setting {name!r} does not have its form")
        for name, group in payload.arrays.items():
            check_group(name, group, self.groups.get(name, ()))
        for name, numbers in payload.metrics.items():
            if name not in self.numbers:
                raise AnswerError(f"number group {name!r} is not on the list")
            for key, value in numbers.items():
                if key not in self.numbers[name]:
                    raise AnswerError(f"{name}/{key} is not on the list")
                self.numbers[name][key].check(f"{name}/{key}", value)
            if name in self.totals and sum(numbers.values()) != self.totals[name]:
                raise AnswerError(f"{name}: expected counts of {self.totals[name]} images")
        levels = (payload.config, payload.arrays, payload.metrics)
        for names in (*levels, *payload.arrays.values(), *payload.metrics.values()):
            if list(names) != sorted(names):
                raise AnswerError("expected all names in their order")


def check_group(name: str, group: Mapping[str, NDArray[Any]], forms: Sequence[GroupSpec]) -> None:
    """Raise AnswerError unless the group has one of the forms; the error names the fault of the last form."""
    fault = AnswerError(f"array group {name!r} is not on the list")
    for form in forms:
        try:
            form.check(name, group)
            return
        except AnswerError as error:
            fault = error
    raise fault
