"""The common form of all messages: settings, arrays and numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

AUDIT = "audit"
"""Setting of every reply: the place of this release in the institution's audit log, `SEQUENCE:HEAD`."""

EPSILON_TRAIN, EPSILON_METRICS = "epsilon-train", "epsilon-metrics"
EPSILON_TRAIN_REPLACED, EPSILON_METRICS_REPLACED = f"{EPSILON_TRAIN}-replaced", f"{EPSILON_METRICS}-replaced"
EPSILONS = (EPSILON_TRAIN, EPSILON_METRICS, EPSILON_TRAIN_REPLACED, EPSILON_METRICS_REPLACED)
"""Settings of a reply with noise: the part of each split's budget that the institution has spent so far."""

Scalar = str | int | float | bool


@dataclass(frozen=True)
class Payload:
    """The content of one message."""

    config: Mapping[str, Scalar]
    arrays: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def in_order(payload: Payload) -> Payload:
    """The same content with all names sorted: an order would be a message of its own."""
    return Payload(
        dict(sorted(payload.config.items())),
        {name: dict(sorted(group.items())) for name, group in sorted(payload.arrays.items())},
        {name: dict(sorted(numbers.items())) for name, numbers in sorted(payload.metrics.items())},
    )


def digest_of(payload: Payload) -> str:
    """SHA-256 of the content, without `AUDIT`; the order of its groups does not matter."""
    hashed = hashlib.sha256()
    config = {key: value for key, value in payload.config.items() if key != AUDIT}
    metrics = {name: dict(numbers) for name, numbers in payload.metrics.items()}
    hashed.update(json.dumps([config, metrics], sort_keys=True).encode())
    for name in sorted(payload.arrays):
        for key, array in sorted(payload.arrays[name].items()):
            array = np.ascontiguousarray(array)
            hashed.update(f"{name}/{key} {array.dtype.str} {array.shape}\n".encode())
            hashed.update(array.tobytes())
    return hashed.hexdigest()


@dataclass(frozen=True)
class Job:
    """The institution, stage, task and round that every request after identify names."""

    institution: str
    stage: int
    task: str = ""
    round: int = 1

    def config(self) -> dict[str, Scalar]:
        """The settings of the job in a request."""
        return asdict(self)

    @staticmethod
    def of(payload: Payload) -> Job:
        """Read the job of a request."""
        config = payload.config
        return Job(
            str(config["institution"]), int(config["stage"]), str(config["task"]), int(config["round"])
        )
