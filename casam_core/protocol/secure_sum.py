"""Secure sums: what goes in, what comes out, and what both sides say while it is made.

A sum is a mean over its members weighted by their images, of named arrays of bounded numbers. Every member
hides its share behind masks that cancel in the sum (SecAgg+, Bell et al. 2020; the protocol is Flower's). The
masks hide integers, so a share is rounded to one of STEPS values within its range: the error of a mean is at
most RESOLUTION.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from casam_core.protocol.payload import Job, Payload
from casam_core.protocol.schema import Message

STEPS = 2**44
"""Fine enough for variances of features, which are a millionth of the range."""
MODULUS = 2**48
MOST_MEMBERS = 10
"""Fewer than MODULUS / STEPS, or sums would overflow."""

SECURE_SUM = "train"
"""The kind of message of every exchange: Flower's SecAgg+ knows no other."""

KINDS = ("train.align", "train.router", "train.calibrate")
"""What may be summed: answers to these questions."""
RANGE = 64.0
"""The largest absolute value of a summed number. A member refuses beyond it."""

SETUP, SHARE_KEYS, COLLECT, UNMASK = STEPS_OF_A_SUM = (
    "setup",
    "share_keys",
    "collect_masked_vectors",
    "unmask",
)
"""Flower's names of the four exchanges."""

IMPROVED = "improved"
SEPARATOR = "/"

Named = dict[str, NDArray[np.float64]]
"""By `group/key`, as payloads name arrays."""


RESOLUTION = MOST_MEMBERS * 2 * RANGE / STEPS
"""Largest error of a number of a mean."""


def quantize(values: Sequence[NDArray[np.float64]], reach: float, steps: int) -> list[NDArray[np.int64]]:
    """[-reach, reach] as integers 0..steps, rounded to the nearest. Raises ValueError for what lies outside.

    Takes the place of Flower's, which clips, has 32 bits, and rounds at random to make up for them.
    """
    outside = [array for array in values if not (np.abs(array) <= reach).all()]
    if outside:
        raise ValueError(f"expected values within {reach:g}, found {np.abs(outside[0]).max():g}")
    return [np.rint((array + reach) * (steps / (2 * reach))).astype(np.int64) for array in values]


def shares_needed(members: int, minimum: int) -> int:
    """How many members must stay to the end: as many as the most careful one asks for, and a majority, so
    that no two disjoint parts of them can each unmask."""
    return max(members // 2 + 1, minimum)


def share_of(kind: str, payload: Payload, images: int) -> Named:
    """One member's arrays as they go into the weighted mean, in the order of their names.

    Layers are averaged; statistics and counts are added, so they go in per image.
    """
    per = 1 if kind == "train.align" else images
    named = {
        f"{group}{SEPARATOR}{key}": np.asarray(array, np.float64) / per
        for group, arrays in payload.arrays.items()
        for key, array in arrays.items()
    }
    if kind == "train.align":
        # One bit that would name its member becomes the share of images whose members say so.
        named[IMPROVED] = np.array([float(payload.config.get(IMPROVED, True))])
    return dict(sorted(named.items()))


def total_of(kind: str, means: Named, images: int) -> Payload:
    """The answer of all members together: the inverse of share_of, with `images` of them all."""
    arrays: dict[str, dict[str, NDArray[np.float32] | NDArray[np.float64] | NDArray[np.int64]]] = {}
    for name, mean in means.items():
        group, separator, key = name.partition(SEPARATOR)
        if not separator:
            continue
        value: NDArray[np.float32] | NDArray[np.float64] | NDArray[np.int64] = mean * images
        if kind == "train.align":
            value = mean.astype(np.float32)
        elif kind == "train.calibrate":
            value = np.rint(mean * images).astype(np.int64)
        arrays.setdefault(group, {})[key] = value
    if kind == "train.align":
        improved = bool(means[IMPROVED][0] > RESOLUTION)
        return Payload({IMPROVED: improved}, arrays, {"align": {"num-examples": images}})
    if kind == "train.router":
        return Payload({}, arrays, {"router-facts": {"num-examples": images}})
    return Payload({}, arrays)


@dataclass(frozen=True)
class SecureRequest(Message):
    """One of the four exchanges of a sum.

    summed: what is summed, as if it were asked for openly. asks: that question; its arrays travel only where
    it is answered (COLLECT). protocol: Flower's settings of this exchange, packed (casam_core.protocol.wire).
    """

    kind: ClassVar[str] = SECURE_SUM

    job: Job
    summed: str
    step: str
    protocol: NDArray[np.uint8]
    asks: Payload

    def to_payload(self) -> Payload:
        config = {**self.asks.config, **self.job.config(), "sum": self.summed}
        arrays = self.asks.arrays if self.step == COLLECT else {}
        return Payload(config, {**arrays, self.step: {"protocol": self.protocol}})

    @classmethod
    def of(cls, payload: Payload) -> Self:
        step = step_of(payload)
        config = {key: value for key, value in payload.config.items() if key != "sum"}
        arrays = {name: group for name, group in payload.arrays.items() if name != step}
        protocol = payload.arrays[step]["protocol"]
        asks = Payload(config, arrays, payload.metrics)
        return cls(Job.of(payload), str(payload.config["sum"]), step, protocol, asks)


@dataclass(frozen=True)
class SecureReply(Message):
    """A member's part of one exchange. names: of its masked arrays, in their order (COLLECT)."""

    kind: ClassVar[str] = SECURE_SUM

    summed: str
    step: str
    protocol: NDArray[np.uint8]
    names: tuple[str, ...] = ()

    def to_payload(self) -> Payload:
        config = {"sum": self.summed, **({"names": " ".join(self.names)} if self.names else {})}
        return Payload(config, {self.step: {"protocol": self.protocol}})

    @classmethod
    def of(cls, payload: Payload) -> Self:
        step = step_of(payload)
        names = tuple(str(payload.config.get("names", "")).split())
        return cls(str(payload.config["sum"]), step, payload.arrays[step]["protocol"], names)


def step_of(payload: Payload) -> str:
    """Which exchange a message belongs to: the group of arrays that has its name. Raises ValueError."""
    (step,) = payload.arrays.keys() & set(STEPS_OF_A_SUM)
    return step


def released_in(records: Sequence[str]) -> bool:
    """Whether an audit line's records are those of a masked share: the exchange that releases something."""
    return any(record.startswith(f"{COLLECT}/") for record in records)
