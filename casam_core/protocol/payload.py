"""The form of every message, before it says anything: settings, arrays, numbers, and how it went."""

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
"""Settings of a reply whose institution adds noise: what it has spent so far, of each split's budget."""

Scalar = str | int | float | bool


@dataclass(frozen=True)
class Payload:
    """The content of one message."""

    config: Mapping[str, Scalar]
    arrays: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def digest_of(payload: Payload) -> str:
    """SHA-256 of the content, whatever order its groups came in; `AUDIT` does not count."""
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
    """What every request after identify says: to whom, in which stage, about which task."""

    institution: str
    stage: int
    task: str = ""
    round: int = 1

    def config(self) -> dict[str, Scalar]:
        """The settings every request starts with."""
        return asdict(self)

    @staticmethod
    def of(payload: Payload) -> Job:
        """Read back from a request."""
        config = payload.config
        return Job(
            str(config["institution"]), int(config["stage"]), str(config["task"]), int(config["round"])
        )
