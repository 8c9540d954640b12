"""What the server and an institution say to each other: plain data, no Flower.

Every message is a Payload (casam_core.payload): a table of settings, named groups of arrays, named
groups of numbers. Each class below names everything it may carry; what is not named here is never
sent. The classes are the one place where both sides agree on names.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.payload import Job, Payload
from casam_core.policy import Policy
from casam_core.routers.base import Arrays
from casam_core.statistics import Estimate, Statistics

SCHEMA = 2


@dataclass(frozen=True)
class IdentifyRequest:
    """Who is there? Carries the scenario (canonical JSON), the run's folder name, the fingerprint of the
    server's code (other code may not even read the scenario), and the scenario's SHA-256.

    scenario: "" for a node that was told it earlier in the run: in a large federation its list of
    institutions is long, and every one of them is asked at every stage.
    """

    scenario: str
    run: str
    code: str
    digest: str

    @staticmethod
    def telling(scenario: str, run: str, code: str) -> IdentifyRequest:
        """To a node that knows nothing yet."""
        return IdentifyRequest(scenario, run, code, hashlib.sha256(scenario.encode()).hexdigest())

    def short(self) -> IdentifyRequest:
        """The same for a node that was told."""
        return replace(self, scenario="")

    def to_payload(self) -> Payload:
        return Payload(asdict(self))

    @staticmethod
    def of(payload: Payload) -> IdentifyRequest:
        config = payload.config
        names = ("scenario", "run", "code", "digest")
        # Other versions have other settings, and must be told so by their code and not by a missing key.
        return IdentifyRequest(*(str(config.get(name, "")) for name in names))


def are_counts(numbers: Iterable[object]) -> bool:
    """Whether these can be numbers of images, or of rounds."""
    return all(type(n) is int and 0 <= n < 10**9 for n in numbers)


@dataclass(frozen=True)
class Holding:
    """How many images of one task an institution holds."""

    train: int
    val: int
    test: int


@dataclass(frozen=True)
class Forecast:
    """Of `rounds` private rounds of one task, how many the institution's budget affords."""

    affordable: int
    rounds: int


@dataclass(frozen=True)
class IdentifyReply:
    """Versions of the code, the message schema, the backbone and its preprocessing; the institutions this
    node hosts, and what each of them allows.

    forecasts: by institution and task, where the policy adds noise. simulated: privacy noise is seeded.
    """

    code: str
    backbone: str
    compute: str
    institutions: Mapping[str, Mapping[str, Holding]]
    policies: Mapping[str, Policy]
    forecasts: Mapping[str, Mapping[str, Forecast]] = field(default_factory=dict)
    simulated: bool = False
    preprocessing: str = ""
    schema: int = SCHEMA

    def to_payload(self) -> Payload:
        hosted = {
            name: {task: asdict(h) for task, h in tasks.items()} for name, tasks in self.institutions.items()
        }
        forecasts = {
            name: {task: asdict(f) for task, f in tasks.items()} for name, tasks in self.forecasts.items()
        }
        return Payload(
            {
                "code": self.code,
                "schema": self.schema,
                "backbone": self.backbone,
                "preprocessing": self.preprocessing,
                "compute": self.compute,
                "institutions": json.dumps(hosted, sort_keys=True),
                "policies": json.dumps(
                    {name: policy.model_dump(mode="json") for name, policy in self.policies.items()},
                    sort_keys=True,
                ),
                "forecasts": json.dumps(forecasts, sort_keys=True),
                "simulated": self.simulated,
            }
        )

    @staticmethod
    def of(payload: Payload) -> IdentifyReply:
        config = payload.config
        hosted = json.loads(str(config["institutions"]))
        policies = json.loads(str(config["policies"]))
        if policies.keys() != hosted.keys():
            raise ValueError("expected a policy for every institution and no other")
        if not are_counts(n for tasks in hosted.values() for held in tasks.values() for n in held.values()):
            raise ValueError("expected counts of images")
        return IdentifyReply(
            code=str(config["code"]),
            backbone=str(config["backbone"]),
            compute=str(config["compute"]),
            institutions={
                name: {task: Holding(**h) for task, h in tasks.items()} for name, tasks in hosted.items()
            },
            policies={name: Policy.model_validate(policy) for name, policy in policies.items()},
            forecasts={
                name: {task: Forecast(**f) for task, f in tasks.items()}
                for name, tasks in json.loads(str(config["forecasts"])).items()
            },
            simulated=bool(config["simulated"]),
            preprocessing=str(config["preprocessing"]),
            schema=int(config["schema"]),
        )


@dataclass(frozen=True)
class AlignRequest:
    """Train a layer for one round.

    layer: the weights to start from, None to start afresh. tasks: whose images to train on, by default
    the job's. anchor, importance: for methods that hold on to earlier tasks, the layer these left and
    how much each parameter matters to them. pooled: train on everybody's images (simulations only).
    again: the task was learned before, and is learned anew without a holder that left.
    """

    job: Job
    layer: Mapping[str, NDArray[np.float32]] | None
    tasks: tuple[str, ...] = ()
    anchor: Mapping[str, NDArray[np.float32]] | None = None
    importance: Mapping[str, NDArray[np.float32]] | None = None
    pooled: bool = False
    again: bool = False

    @property
    def trains_on(self) -> tuple[str, ...]:
        """The tasks whose images are used."""
        return self.tasks or (self.job.task,)

    def to_payload(self) -> Payload:
        config = {
            **self.job.config(),
            "tasks": ",".join(self.tasks),
            "pooled": self.pooled,
            "again": self.again,
        }
        groups = {"layer": self.layer, "anchor": self.anchor, "importance": self.importance}
        return Payload(config, {name: group for name, group in groups.items() if group is not None})

    @staticmethod
    def of(payload: Payload) -> AlignRequest:
        return AlignRequest(
            job=Job.of(payload),
            layer=payload.arrays.get("layer"),
            tasks=tuple(task for task in str(payload.config["tasks"]).split(",") if task),
            anchor=payload.arrays.get("anchor"),
            importance=payload.arrays.get("importance"),
            pooled=bool(payload.config["pooled"]),
            again=bool(payload.config["again"]),
        )


@dataclass(frozen=True)
class AlignReply:
    """Trained weights and on how many images; the shape Flower's strategies aggregate.

    importance: only where the method asks for it. improved: in the last round, whether the layer beats
    frozen SAM on the holder's validation images; None where that was not asked or cannot be said.
    """

    layer: Mapping[str, NDArray[np.float32]]
    images: int
    importance: Mapping[str, NDArray[np.float32]] | None = None
    improved: bool | None = None

    def to_payload(self) -> Payload:
        groups = {"layer": self.layer, "importance": self.importance}
        arrays = {name: group for name, group in groups.items() if group is not None}
        config = {} if self.improved is None else {"improved": self.improved}
        return Payload(config, arrays, {"align": {"num-examples": self.images}})

    @staticmethod
    def of(payload: Payload) -> AlignReply:
        return AlignReply(
            layer=payload.arrays["layer"],
            images=int(payload.metrics["align"]["num-examples"]),
            importance=payload.arrays.get("importance"),
            improved=bool(payload.config["improved"]) if "improved" in payload.config else None,
        )


@dataclass(frozen=True)
class RouterRequest:
    """Describe the task's images. alone: no other institution holds the task."""

    job: Job
    alone: bool

    def to_payload(self) -> Payload:
        return Payload({**self.job.config(), "alone": self.alone})

    @staticmethod
    def of(payload: Payload) -> RouterRequest:
        return RouterRequest(Job.of(payload), bool(payload.config["alone"]))


@dataclass(frozen=True)
class RouterReply:
    """alone: `router` is the finished state and `threshold` is set. Else: `router` and every item of
    `folds` are summaries that the server merges, and `threshold` is None."""

    router: Arrays
    images: int
    threshold: float | None = None
    folds: Sequence[Arrays] = ()

    def to_payload(self) -> Payload:
        numbers: dict[str, float] = {"num-examples": self.images}
        if self.threshold is not None:
            numbers["threshold"] = self.threshold
        return Payload({}, {"router": self.router, **fold_groups(self.folds)}, {"router-facts": numbers})

    @staticmethod
    def of(payload: Payload) -> RouterReply:
        numbers = payload.metrics["router-facts"]
        return RouterReply(
            router=payload.arrays["router"],
            images=int(numbers["num-examples"]),
            threshold=numbers.get("threshold"),
            folds=folds_of(payload),
        )


@dataclass(frozen=True)
class CalibrateRequest:
    """Score your held-out images under the merged routers, one per fold."""

    job: Job
    folds: Sequence[Arrays]

    def to_payload(self) -> Payload:
        return Payload(self.job.config(), fold_groups(self.folds))

    @staticmethod
    def of(payload: Payload) -> CalibrateRequest:
        return CalibrateRequest(Job.of(payload), folds_of(payload))


@dataclass(frozen=True)
class CalibrateReply:
    """Held-out scores as counts over fixed bins (casam_core.threshold)."""

    histogram: NDArray[np.int64]

    def to_payload(self) -> Payload:
        return Payload({}, {"histogram": {"counts": self.histogram}})

    @staticmethod
    def of(payload: Payload) -> CalibrateReply:
        return CalibrateReply(payload.arrays["histogram"]["counts"])


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
class ForgetRequest:
    """Delete all copies of these entries and what was computed from them: their holder has left.

    entries: digests. leaver: whose work was in them.
    """

    job: Job
    leaver: str
    entries: Sequence[str]

    def to_payload(self) -> Payload:
        config = {**self.job.config(), "leaver": self.leaver, "entries": ",".join(self.entries)}
        return Payload(config)

    @staticmethod
    def of(payload: Payload) -> ForgetRequest:
        config = payload.config
        return ForgetRequest(Job.of(payload), str(config["leaver"]), str(config["entries"]).split(","))


@dataclass(frozen=True)
class ForgetReply:
    """The institution's signed word that it did (casam_core.signing). public: its key."""

    public: str
    signature: str

    def to_payload(self) -> Payload:
        return Payload({"public": self.public, "signature": self.signature})

    @staticmethod
    def of(payload: Payload) -> ForgetReply:
        return ForgetReply(str(payload.config["public"]), str(payload.config["signature"]))


def purge_statement(institution: str, run: str, leaver: str, entries: Sequence[str]) -> dict[str, Any]:
    """What an institution signs when it has deleted its copies."""
    return {"institution": institution, "run": run, "leaver": leaver, "deleted": sorted(entries)}


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
    margins: by task, how unknown its images look to the router (casam_core.unknownness).
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


def fold_groups(folds: Sequence[Arrays]) -> dict[str, Arrays]:
    """Array groups `fold-0`, `fold-1`, ..."""
    return {f"fold-{k}": fold for k, fold in enumerate(folds)}


def folds_of(payload: Payload) -> list[Arrays]:
    """The inverse of fold_groups."""
    count = sum(name.startswith("fold-") for name in payload.arrays)
    return [payload.arrays[f"fold-{k}"] for k in range(count)]
