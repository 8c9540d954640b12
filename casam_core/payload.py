"""The form of every message, before it says anything: settings, arrays, numbers, and how it went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from numpy.typing import NDArray

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
    FAILED = "failed"
    ALL = (
        OK,
        BAD_DATA,
        BAD_CHECKPOINT,
        OTHER_CODE,
        UNKNOWN_SCENARIO,
        UNKNOWN_INSTITUTION,
        POOLING_REFUSED,
        SAMPLES_NOT_KEPT,
        BANK_MISMATCH,
        FAILED,
    )


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
