"""Secure sums: their input, their output and their messages.

A secure sum is a mean of named arrays over its members, weighted by their images. Every member hides its
share behind masks that cancel in the sum (SecAgg+, Bell et al. 2020; Flower implements the protocol). The
masks hide integers. Each number of a share is therefore rounded to one of STEPS values within its range; the
error of a mean is at most RESOLUTION.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from casam_core.protocol.audit import without_seen
from casam_core.protocol.payload import Job, Payload
from casam_core.protocol.schema import Message, Text

STEPS = 2**44
"""Fine enough for variances of features, which are about a millionth of the range."""
MODULUS = 2**48
MOST_MEMBERS = 10
"""It must be below MODULUS / STEPS, or sums would overflow."""

SECURE_SUM = "train"
"""The message type of every exchange; Flower's SecAgg+ supports no other."""

KINDS = ("train.align", "train.router", "train.calibrate")
"""The kinds of request whose replies can be summed."""
EXCHANGE_SETTINGS: dict[str, Callable[[object], bool]] = {
    "sum": lambda value: value in KINDS,
    "names": Text(r"[\x20-\x7e]{1,10000}").fits,  # compared with the names of the arrays
}
"""Settings of a member's reply, beside those of every reply."""

RANGE = 64.0
"""The largest absolute value of a number in a share. A member refuses to send a larger one."""

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
"""Arrays by `group/key`, the names that they have in a payload."""


RESOLUTION = MOST_MEMBERS * 2 * RANGE / STEPS
"""The largest error of one number of a mean."""


def quantize(values: Sequence[NDArray[np.float64]], reach: float, steps: int) -> list[NDArray[np.int64]]:
    """Map [-reach, reach] to the nearest integers in 0..steps. Raises ValueError for values outside.

    It replaces Flower's function, which clips values and rounds them at random to 32 bits.
    """
    outside = [array for array in values if not (np.abs(array) <= reach).all()]
    if outside:
        raise ValueError(f"expected values within {reach:g}, found {np.abs(outside[0]).max():g}")
    return [np.rint((array + reach) * (steps / (2 * reach))).astype(np.int64) for array in values]


def shares_needed(members: int, minimum: int) -> int:
    """How many members must stay until the end: at least `minimum`, the largest that a policy asks for.

    It is also a majority, so that no two disjoint groups of members can both unmask.
    """
    return max(members // 2 + 1, minimum)


def share_of(kind: str, payload: Payload, images: int) -> Named:
    """One member's share of the weighted mean, in the order of the arrays' names.

    Layers are averaged. Statistics and counts are added, so a share holds them divided by the images.
    """
    per = 1 if kind == "train.align" else images
    named = {
        f"{group}{SEPARATOR}{key}": np.asarray(array, np.float64) / per
        for group, arrays in payload.arrays.items()
        for key, array in arrays.items()
    }
    if kind == "train.align":
        # The sum hides the bit of a single member: it becomes the share of images of members that improved.
        named[IMPROVED] = np.array([float(payload.config.get(IMPROVED, True))])
    return dict(sorted(named.items()))


def total_of(kind: str, means: Named, images: int) -> Payload:
    """The joint reply of all members: the inverse of share_of. images: of all members together."""
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
    """The request of one of the four exchanges of a sum.

    summed: the kind of the request whose replies are summed. asks: that request; its arrays are sent only in
    COLLECT. protocol: Flower's settings of this exchange, packed (casam_core.protocol.wire).
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
        config = {key: value for key, value in without_seen(payload.config).items() if key != "sum"}
        arrays = {name: group for name, group in payload.arrays.items() if name != step}
        protocol = payload.arrays[step]["protocol"]
        asks = Payload(config, arrays, payload.metrics)
        return cls(Job.of(payload), str(payload.config["sum"]), step, protocol, asks)


@dataclass(frozen=True)
class SecureReply(Message):
    """A member's reply in one exchange. names: the names of its masked arrays, in their order (COLLECT)."""

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
    """The exchange of a message: a group of arrays has its name. Raises ValueError if none has."""
    (step,) = payload.arrays.keys() & set(STEPS_OF_A_SUM)
    return step


def released_in(records: Sequence[str]) -> bool:
    """Whether the records of an audit line are a masked share; only that exchange releases something."""
    return any(record.startswith(f"{COLLECT}/") for record in records)
