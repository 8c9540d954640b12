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


class Outcome:
    """How an institution answered: the closed list of words that may leave it in place of a result."""

    OK = "ok"
    BAD_DATA = "bad-data"
    BAD_CHECKPOINT = "bad-checkpoint"
    OTHER_CODE = "other-code"
    UNKNOWN_SCENARIO = "unknown-scenario"
    UNKNOWN_INSTITUTION = "unknown-institution"
    POOLING_REFUSED = "pooling-refused"
    SAMPLES_NOT_KEPT = "samples-not-kept"
    BANK_MISMATCH = "bank-mismatch"
    BAD_POLICY = "bad-policy"
    ADAPTER_NOT_SHARED = "adapter-not-shared"
    ROUTER_NOT_SHARED = "router-not-shared"
    METRICS_NOT_SHARED = "metrics-not-shared"
    ENTRIES_NOT_ACCEPTED = "entries-not-accepted"
    NOT_PRESENT = "not-present"
    ROUNDS_SPENT = "rounds-spent"
    BYTES_SPENT = "bytes-spent"
    BUDGET_SPENT = "budget-spent"
    DELTA_TOO_LARGE = "delta-too-large"
    NOISE_NOT_POSSIBLE = "noise-not-possible"
    COHORT_TOO_SMALL = "cohort-too-small"
    OUT_OF_RANGE = "out-of-range"
    SUM_NOT_POSSIBLE = "sum-not-possible"
    REPEATED = "repeated"
    NOT_ALLOWED = "not-allowed"
    FAILED = "failed"
    REFUSALS = (
        POOLING_REFUSED,
        SAMPLES_NOT_KEPT,
        ADAPTER_NOT_SHARED,
        ROUTER_NOT_SHARED,
        METRICS_NOT_SHARED,
        ENTRIES_NOT_ACCEPTED,
        NOT_PRESENT,
        ROUNDS_SPENT,
        BYTES_SPENT,
        BUDGET_SPENT,
        DELTA_TOO_LARGE,
        NOISE_NOT_POSSIBLE,
        COHORT_TOO_SMALL,
        OUT_OF_RANGE,
        SUM_NOT_POSSIBLE,
    )
    """The institution decided: nothing is broken, and asking again changes nothing."""
    ALL = (
        OK,
        BAD_DATA,
        BAD_CHECKPOINT,
        OTHER_CODE,
        UNKNOWN_SCENARIO,
        UNKNOWN_INSTITUTION,
        BANK_MISMATCH,
        BAD_POLICY,
        REPEATED,
        NOT_ALLOWED,
        FAILED,
        *REFUSALS,
    )


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
