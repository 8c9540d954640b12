"""Measuring a stage: new entries out, figures back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.metrics.intervals import Estimate, Statistics
from casam_core.protocol.payload import Job, Payload


@dataclass(frozen=True)
class EvaluateRequest:
    """Add the new entries to your copy of the bank and score your test images under the whole bank.

    known: how many entries you should hold already; what you hold beyond is in the bank no more. 0 means:
    start your copy afresh.
    entries: entry files you have not been sent yet, in the order they were learned.
    bank: digest of the bank you must hold after adding them. candidate: a task of it whose entry is new; say
    whether it claims validation images of your own tasks.
    """

    job: Job
    known: int
    entries: Sequence[bytes]
    bank: str
    candidate: str = ""

    def to_payload(self) -> Payload:
        files = {f"{i:06d}": np.frombuffer(data, np.uint8) for i, data in enumerate(self.entries)}
        config = {**self.job.config(), "known": self.known, "bank": self.bank, "candidate": self.candidate}
        return Payload(config, {"entries": files} if files else {})

    @staticmethod
    def of(payload: Payload) -> EvaluateRequest:
        files = payload.arrays.get("entries", {})
        return EvaluateRequest(
            job=Job.of(payload),
            known=int(payload.config["known"]),
            entries=[files[name].tobytes() for name in sorted(files)],
            bank=str(payload.config["bank"]),
            candidate=str(payload.config["candidate"]),
        )


@dataclass(frozen=True)
class TaskResult:
    """One task's test split at one institution: means over `images`, and how many went where.

    iou_instance is the mean over `instances`. routes: image counts by task name or `identity`.
    statistics: how sure the IoU is, and the gain over frozen SAM. None: not measured, or not released.
    """

    images: int
    instances: int | None
    iou: float
    dice: float
    biou: float | None
    biou_official: float | None
    iou_instance: float | None
    hd95: float | None
    routes: Mapping[str, int]
    statistics: Statistics | None = None


NOT_ALWAYS = ("instances", "biou", "biou_official", "iou_instance", "hd95")
"""Figures of a TaskResult that may be None."""


@dataclass(frozen=True)
class EvaluateReply:
    """Results by task. decodes: decoder passes this evaluation really needed, None if not released.
    margins: by task, how unknown its images look to the router (casam_core.routing.unknown).
    canary: whether the candidate claims too many validation images held here; None: not said."""

    results: Mapping[str, TaskResult]
    decodes: int | None
    margins: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    canary: bool | None = None

    def to_payload(self) -> Payload:
        metrics: dict[str, dict[str, float]] = {}
        if self.decodes is not None:
            metrics["work"] = {"decodes": self.decodes}
        if self.canary is not None:
            metrics["canary"] = {"failed": float(self.canary)}
        for task, result in self.results.items():
            numbers = asdict(result)
            routes = numbers.pop("routes")
            del numbers["statistics"]
            metrics[f"score.{task}"] = {k: v for k, v in numbers.items() if v is not None}
            metrics[f"route.{task}"] = dict(routes)
            if result.statistics is not None:
                metrics[f"statistics.{task}"] = flat(result.statistics)
        return Payload({}, {"margins": self.margins} if self.margins else {}, metrics)

    @staticmethod
    def of(payload: Payload) -> EvaluateReply:
        results = {}
        for name, numbers in payload.metrics.items():
            if name.startswith("score."):
                task = name.removeprefix("score.")
                routes = {k: int(v) for k, v in payload.metrics[f"route.{task}"].items()}
                given: dict[str, Any] = {**dict.fromkeys(NOT_ALWAYS), **numbers, "routes": routes}
                if not all(math.isfinite(value) for value in numbers.values()):
                    raise ValueError(f"score.{task}: expected finite numbers, found {dict(numbers)}")
                given["images"] = int(given["images"])
                if given["instances"] is not None:
                    given["instances"] = int(given["instances"])
                if f"statistics.{task}" in payload.metrics:
                    given["statistics"] = statistics_of(payload.metrics[f"statistics.{task}"])
                results[task] = TaskResult(**given)
        decodes = int(payload.metrics["work"]["decodes"]) if "work" in payload.metrics else None
        canary = bool(payload.metrics["canary"]["failed"]) if "canary" in payload.metrics else None
        return EvaluateReply(results, decodes, payload.arrays.get("margins", {}), canary)


def flat(statistics: Statistics) -> dict[str, float]:
    """As one group of numbers: `units`, `iou.mean`, `iou.sd`, ..., `gain.high`; what is None stays away."""
    numbers: dict[str, float] = {"units": statistics.units}
    for name in ("iou", "gain"):
        values = asdict(getattr(statistics, name))
        numbers |= {f"{name}.{key}": value for key, value in values.items() if value is not None}
    return numbers


def statistics_of(numbers: Mapping[str, float]) -> Statistics:
    """The inverse of flat. Raises ValueError for a number that is none."""
    if not all(math.isfinite(value) for value in numbers.values()):
        raise ValueError(f"statistics: expected finite numbers, found {dict(numbers)}")

    def part(name: str) -> Estimate:
        prefix = f"{name}."
        given = {key.removeprefix(prefix): v for key, v in numbers.items() if key.startswith(prefix)}
        return Estimate(**given)

    return Statistics(int(numbers["units"]), part("iou"), part("gain"))
