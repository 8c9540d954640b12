"""Learning a task: a round of a layer, the description for the router, its threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from casam_core.protocol.payload import Job, Payload
from casam_core.routing.routers.base import Arrays


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
    """Held-out scores as counts over fixed bins (casam_core.routing.threshold)."""

    histogram: NDArray[np.int64]

    def to_payload(self) -> Payload:
        return Payload({}, {"histogram": {"counts": self.histogram}})

    @staticmethod
    def of(payload: Payload) -> CalibrateReply:
        return CalibrateReply(payload.arrays["histogram"]["counts"])


def fold_groups(folds: Sequence[Arrays]) -> dict[str, Arrays]:
    """Array groups `fold-0`, `fold-1`, ..."""
    return {f"fold-{k}": fold for k, fold in enumerate(folds)}


def folds_of(payload: Payload) -> list[Arrays]:
    """The inverse of fold_groups."""
    count = sum(name.startswith("fold-") for name in payload.arrays)
    return [payload.arrays[f"fold-{k}"] for k in range(count)]
