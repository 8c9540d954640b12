"""What the server and an institution say to each other: every message, every field, every limit.

One stage is four exchanges: `identify` (who is there), `align` (train a layer), `router` (describe the task's
images; with several holders also `calibrate`), `evaluate` (take the new entries, score the test images).
`forget` follows when an institution leaves. A field that is not declared here is never sent.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Self, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from casam_core.config.policy import Policy
from casam_core.config.scenario import AlignmentSpec, Name, Scenario
from casam_core.methods import SHARED, alignment_of, method_of
from casam_core.metrics.intervals import Estimate, Statistics
from casam_core.model.backbones import Backbone
from casam_core.model.forms import build_layer, changes_sam
from casam_core.protocol.compressed_text import compress_text
from casam_core.protocol.limits import Allowed, ArraySpec, GroupSpec, Range
from casam_core.protocol.outcomes import WORDS
from casam_core.protocol.payload import AUDIT, EPSILON_METRICS, EPSILON_TRAIN, Job, Payload
from casam_core.protocol.schema import (
    COUNT,
    Amount,
    Draft,
    Figure,
    Files,
    Flag,
    Group,
    Groups,
    Message,
    Table,
    Text,
)
from casam_core.routing.decision import IDENTITY
from casam_core.routing.features import pool
from casam_core.routing.routers import Arrays, build_router
from casam_core.routing.threshold import HISTOGRAM_BINS
from casam_core.routing.unknown import BINS

SCHEMA = 4
"""Version of these messages. A node with another one is refused."""

Layer = Mapping[str, NDArray[np.float32]]
"""Weights of an Alignment Layer, or of what matters to it, by parameter."""


@dataclass(frozen=True)
class Sender:
    """Who answers which job, as both sides know it. Limits of an answer depend on it.

    Args:
        holdings: image counts by task.
        channels: of an embedding.
        backbone: None at the server, which then does not know the arrays of layers that change SAM itself.
    """

    scenario: Scenario
    holdings: Mapping[str, Holding]
    policy: Policy
    channels: int
    backbone: Backbone | None
    job: Job

    def images(self, part: str) -> int:
        """All images of one split, over tasks: methods may train on several."""
        return sum(getattr(holding, part) for holding in self.holdings.values())


ENVELOPE = {
    "outcome": lambda value: value in WORDS,
    EPSILON_TRAIN: Amount(Range(0.0, 1e6)).fits,
    EPSILON_METRICS: Amount(Range(0.0, 1e6)).fits,
    AUDIT: Text(r"\d{12}:[0-9a-f]{64}").fits,
}
"""Settings of an answer of any kind: how it went, what was spent, its place in the audit log."""


@dataclass(frozen=True)
class JobPart:
    """To whom a request is, in which stage, about which task."""

    def write(self, name: str, value: Job, draft: Draft) -> None:
        draft.config |= value.config()

    def read(self, name: str, payload: Payload) -> Job:
        return Job.of(payload)

    def allow(self, name: str, allowed: Allowed, sender: Sender) -> None:
        pass


ForJob = Annotated[Job, JobPart()]


# --- Who is there -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class IdentifyRequest(Message):
    """Who is there? It opens a run and every stage.

    Args:
        run: name of the run's folder.
        code: fingerprint of the server's code; other code may not even read the scenario.
        digest: SHA-256 of the scenario.
        scenario: canonical JSON, compressed; "" for a node that was told it earlier in the run.
    """

    run: Annotated[str, Text()] = ""
    code: Annotated[str, Text()] = ""
    digest: Annotated[str, Text()] = ""
    scenario: Annotated[str, Text()] = ""

    @staticmethod
    def telling(scenario: str, run: str, code: str) -> IdentifyRequest:
        """To a node that knows nothing yet."""
        digest = hashlib.sha256(scenario.encode()).hexdigest()
        return IdentifyRequest(run, code, digest, compress_text(scenario))

    def short(self) -> IdentifyRequest:
        """The same for a node that was told."""
        return replace(self, scenario="")


Count = Annotated[int, Field(strict=True, ge=0, lt=10**9)]


@dataclass(frozen=True)
class Holding:
    """How many images of one task an institution holds."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    train: Count
    val: Count
    test: Count


@dataclass(frozen=True)
class Forecast:
    """Of `rounds` private rounds of one task, how many the institution's budget affords."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    affordable: Count
    rounds: Count


@dataclass(frozen=True)
class IdentifyReply(Message):
    """The institutions that a node hosts, what each holds and allows, and with which code it answers.

    Args:
        backbone: SHA-256 of the frozen weights; "" where nobody is hosted, as in the next two.
        compute: how the arithmetic is done (casam_core.model.compute.Compute.variant).
        institutions: image counts by institution and task.
        forecasts: by institution and task, where the policy adds noise.
        simulated: whether privacy noise is seeded.
        preprocessing: hash of how images are prepared.
    """

    kind: ClassVar[str] = "query.identify"
    clause: ClassVar[str] = "identify"

    code: Annotated[str, Text("[0-9a-f]{16}")]
    backbone: Annotated[str, Text("([0-9a-f]{64})?")]
    compute: Annotated[
        str, Text(r"([a-z]{1,8}-(float32|bfloat16)-t\d{1,3}(-(fast|compiled)-(float32|bfloat16))?)?")
    ]
    institutions: Annotated[Mapping[str, Mapping[str, Holding]], Table(dict[Name, dict[Name, Holding]])]
    policies: Annotated[Mapping[str, Policy], Table(dict[Name, Policy])]
    forecasts: Annotated[Mapping[str, Mapping[str, Forecast]], Table(dict[Name, dict[Name, Forecast]])] = (
        field(default_factory=dict)
    )
    simulated: Annotated[bool, Flag()] = False
    preprocessing: Annotated[str, Text("([0-9a-f]{16})?")] = ""
    schema: Annotated[int, Amount(Range(0, 999, whole=True))] = SCHEMA

    @classmethod
    def of(cls, payload: Payload) -> Self:
        reply = super().of(payload)
        if reply.policies.keys() != reply.institutions.keys():
            raise ValueError("expected a policy for every institution and no other")
        return reply


# --- Learning a task ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class AlignRequest(Message):
    """Train a layer for one round.

    Args:
        layer: the weights to start from; None to start afresh.
        tasks: whose images to train on; by default the job's.
        anchor: the layer that earlier tasks left, for methods that hold on to it.
        importance: how much each of its parameters matters to earlier tasks.
        pooled: train on everybody's images (simulations only).
        again: the task was learned before, and is learned anew without a holder that left.
    """

    job: ForJob
    layer: Annotated[Layer | None, Group()] = None
    tasks: Annotated[tuple[str, ...], Table(tuple[str, ...])] = ()
    anchor: Annotated[Layer | None, Group()] = None
    importance: Annotated[Layer | None, Group()] = None
    pooled: Annotated[bool, Flag()] = False
    again: Annotated[bool, Flag()] = False

    @property
    def trains_on(self) -> tuple[str, ...]:
        """The tasks whose images are used."""
        return self.tasks or (self.job.task,)


def layer_forms(sender: Sender) -> tuple[GroupSpec, ...]:
    """A layer of the scenario's form."""
    return (layer_spec(alignment_of(sender.scenario, sender.job.task), sender.channels, sender.backbone),)


def importance_forms(sender: Sender) -> tuple[GroupSpec, ...]:
    """Squares, by parameter of the layer, where the method asks for them."""
    if not method_of(sender.scenario.method).weighs:
        return ()
    (layer,) = layer_forms(sender)
    return (replace(layer, arrays={name: replace(spec, least=0.0) for name, spec in layer.arrays.items()}),)


def trained_images(sender: Sender) -> Range:
    """A pooling method trains on everybody's images."""
    pools = method_of(sender.scenario.method).pools
    return Range(1, COUNT.most if pools else sender.images("train"), whole=True)


@lru_cache(maxsize=8)
def layer_spec(spec: AlignmentSpec, channels: int, backbone: Backbone | None) -> GroupSpec:
    """The parameters of a layer; open where a part of SAM is trained and SAM is not at hand."""
    if backbone is None and changes_sam(spec.form):
        return GroupSpec({}, open=True)
    layer = build_layer(spec, channels, 0, backbone)
    return GroupSpec(
        {name: ArraySpec(np.float32, tuple(value.shape)) for name, value in layer.state_dict().items()}
    )


@dataclass(frozen=True)
class AlignReply(Message):
    """Trained weights and on how many images; the shape that Flower's strategies aggregate.

    Args:
        importance: only where the method asks for it.
        improved: in the last round, whether the layer beats frozen SAM on the holder's validation images;
            None where that was not asked or cannot be said.
    """

    kind: ClassVar[str] = "train.align"
    clause: ClassVar[str] = "adapter"

    layer: Annotated[Layer, Group(layer_forms)]
    images: Annotated[int, Figure("align", "num-examples", trained_images)]
    importance: Annotated[Layer | None, Group(importance_forms)] = None
    improved: Annotated[bool | None, Flag()] = None


@dataclass(frozen=True)
class RouterRequest(Message):
    """Describe the task's images. alone: no other institution holds the task."""

    job: ForJob
    alone: Annotated[bool, Flag()]


def router_forms(sender: Sender) -> tuple[GroupSpec, GroupSpec]:
    """(finished, sufficient statistics) of the scenario's router."""
    spec = sender.scenario.router
    schema = build_router(spec).schema(len(pool(torch.zeros(sender.channels, 1, 1), spec.features)))
    return GroupSpec(schema.state), GroupSpec(schema.statistics)


def fold_forms(sender: Sender) -> tuple[GroupSpec, ...]:
    """Sufficient statistics of every fold."""
    return (router_forms(sender)[1],) * sender.scenario.router.folds


def described_images(sender: Sender) -> Range:
    """Of all tasks held, as there may be none of the job's own."""
    return Range(0, sender.images("train"), whole=True)


def scores(sender: Sender) -> Range:
    """Histograms of scores end at 4 million (casam_core.routing.threshold)."""
    return Range(-1e7, 1e7)


@dataclass(frozen=True)
class RouterReply(Message):
    """Where the holder is alone, `router` is the finished state and `threshold` is set. Else `router` and
    every item of `folds` are statistics that the server merges, and `threshold` is None."""

    kind: ClassVar[str] = "train.router"
    clause: ClassVar[str] = "router"

    router: Annotated[Arrays, Group(router_forms)]
    images: Annotated[int, Figure("router-facts", "num-examples", described_images)]
    threshold: Annotated[float | None, Figure("router-facts", "threshold", scores, float)] = None
    folds: Annotated[Sequence[Arrays], Groups("fold", fold_forms)] = ()

    def answers(self, request: RouterRequest, folds: int) -> bool:
        """Whether it holds what was asked for; which form `router` has is not looked at."""
        return self.threshold is not None if request.alone else len(self.folds) == folds


@dataclass(frozen=True)
class CalibrateRequest(Message):
    """Score your held-out images under the merged routers, one per fold."""

    job: ForJob
    folds: Annotated[Sequence[Arrays], Groups("fold")] = ()


def histogram_forms(sender: Sender) -> tuple[GroupSpec, ...]:
    """One count per bin, of training images."""
    most = sender.holdings[sender.job.task].train
    return (GroupSpec({"counts": ArraySpec(np.int64, (HISTOGRAM_BINS,), least=0, total=most)}),)


@dataclass(frozen=True)
class CalibrateReply(Message):
    """Held-out scores as counts over fixed bins (casam_core.routing.threshold)."""

    kind: ClassVar[str] = "train.calibrate"
    clause: ClassVar[str] = "router"

    histogram: Annotated[NDArray[np.int64], Group(histogram_forms, key="counts")]


# --- Measuring a stage -------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluateRequest(Message):
    """Add the new entries to your copy of the bank, and score your test images under the whole bank.

    Args:
        known: how many entries you should hold already; drop the others. 0: start your copy afresh.
        entries: entry files that you have not been sent yet, in the order they were learned.
        bank: digest of the bank that you must hold after adding them.
        candidate: a task of it whose entry is new; say whether it claims validation images of your own tasks.
    """

    job: ForJob
    known: Annotated[int, Amount()]
    entries: Annotated[Sequence[bytes], Files()]
    bank: Annotated[str, Text()]
    candidate: Annotated[str, Text()] = ""


@dataclass(frozen=True)
class TaskResult:
    """One task's test split at one institution: means over `images`, and how many went where.

    Every figure names its limit (TaskResults.limits). `iou_instance` is the mean over `instances`. None: not
    measured, or not released. routes: image counts by task name or `identity`. statistics: how sure the IoU
    is, and the gain over frozen SAM.
    """

    images: Annotated[int, "images"]
    instances: Annotated[int | None, "instances"]
    iou: Annotated[float, "share"]
    dice: Annotated[float, "share"]
    biou: Annotated[float | None, "share"]
    biou_official: Annotated[float | None, "share"]
    iou_instance: Annotated[float | None, "share"]
    hd95: Annotated[float | None, "pixels"]
    routes: Mapping[str, int]
    statistics: Statistics | None = None


FIGURES: dict[str, str] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(TaskResult, include_extras=True).items()
    if hasattr(hint, "__metadata__")
}
"""The figures of a TaskResult, with the names of their limits."""

NOISY_FIGURES = ("images", "iou", "dice")
"""Those that leave, beside the routes, where the policy asks for noise."""

STATISTICS = {
    **{f"iou.{key}": Range(0, 1) for key in ("mean", "sd", "low", "high")},
    **{f"gain.{key}": Range(-1, 1) for key in ("mean", "low", "high")},
    "gain.sd": Range(0, 2),
}
"""Beside the number of units, what casam_core.metrics.intervals.Statistics holds."""


@dataclass(frozen=True)
class TaskResults:
    """By task, the groups of numbers `score.TASK`, `route.TASK` and `statistics.TASK`."""

    def write(self, name: str, value: Mapping[str, TaskResult], draft: Draft) -> None:
        for task, result in value.items():
            figures = {figure: getattr(result, figure) for figure in FIGURES}
            draft.metrics[f"score.{task}"] = {key: v for key, v in figures.items() if v is not None}
            draft.metrics[f"route.{task}"] = dict(result.routes)
            if result.statistics is not None:
                draft.metrics[f"statistics.{task}"] = flat(result.statistics)

    def read(self, name: str, payload: Payload) -> dict[str, TaskResult]:
        tasks = [group.removeprefix("score.") for group in payload.metrics if group.startswith("score.")]
        return {task: self.read_one(task, payload.metrics) for task in tasks}

    def read_one(self, task: str, metrics: Mapping[str, Mapping[str, float]]) -> TaskResult:
        """The three groups of one task."""
        figures: dict[str, Any] = {**dict.fromkeys(FIGURES), **finite(metrics[f"score.{task}"])}
        for name in ("images", "instances"):
            figures[name] = None if figures[name] is None else int(figures[name])
        routes = {route: int(images) for route, images in metrics[f"route.{task}"].items()}
        statistics = metrics.get(f"statistics.{task}")
        return TaskResult(
            **figures, routes=routes, statistics=None if statistics is None else statistics_of(statistics)
        )

    def allow(self, name: str, allowed: Allowed, sender: Sender) -> None:
        noisy, evaluation = sender.policy.metrics == "noisy", sender.scenario.evaluation
        routes = {IDENTITY, SHARED, *sender.scenario.stream}
        for task, holding in sender.holdings.items():
            images = getattr(holding, evaluation.split)
            limits = {
                "images": Range(0, images, whole=True),
                "instances": Range(0, images * evaluation.max_instances, whole=True),
                "share": Range(0, 1),
                "pixels": Range(0, 1e6),
            }
            leaving = NOISY_FIGURES if noisy else FIGURES
            allowed.numbers[f"score.{task}"] = {figure: limits[FIGURES[figure]] for figure in leaving}
            allowed.numbers[f"route.{task}"] = dict.fromkeys(routes, limits["images"])
            if not noisy:
                allowed.numbers[f"statistics.{task}"] = {"units": limits["images"], **STATISTICS}


def flat(statistics: Statistics) -> dict[str, float]:
    """As one group of numbers: `units`, `iou.mean`, `iou.sd`, ..., `gain.high`; None stays away."""
    numbers: dict[str, float] = {"units": statistics.units}
    for name in ("iou", "gain"):
        values = asdict(getattr(statistics, name))
        numbers |= {f"{name}.{key}": value for key, value in values.items() if value is not None}
    return numbers


def statistics_of(numbers: Mapping[str, float]) -> Statistics:
    """The inverse of flat. Raises ValueError, TypeError or KeyError for other numbers."""
    parts: dict[str, dict[str, float]] = {"iou": {}, "gain": {}}
    for name, value in finite(numbers).items():
        part, _, key = name.partition(".")
        if key:
            parts[part][key] = value
    return Statistics(int(numbers["units"]), Estimate(**parts["iou"]), Estimate(**parts["gain"]))


def finite(numbers: Mapping[str, float]) -> Mapping[str, float]:
    """The same numbers. Raises ValueError where one is none."""
    if not all(math.isfinite(value) for value in numbers.values()):
        raise ValueError(f"expected finite numbers, found {dict(numbers)}")
    return numbers


def margin_forms(sender: Sender) -> tuple[GroupSpec, ...]:
    """One histogram per task held, of its test images."""
    if sender.policy.metrics == "noisy":
        return (GroupSpec({}),)
    split = sender.scenario.evaluation.split
    return (
        GroupSpec(
            {
                task: ArraySpec(np.int64, (BINS,), least=0, total=getattr(holding, split))
                for task, holding in sender.holdings.items()
            },
            complete=False,
        ),
    )


def passes(sender: Sender) -> Range | None:
    """How often the decoder ran tells of the images, and is not noisy."""
    return None if sender.policy.metrics == "noisy" else COUNT


def verdict(sender: Sender) -> Range | None:
    """Yes or no, where the policy lets it say so."""
    return Range(0, 1, whole=True) if sender.policy.canaries else None


@dataclass(frozen=True)
class EvaluateReply(Message):
    """Scores of an institution's test images.

    Args:
        results: by task.
        decodes: decoder passes that this evaluation really needed; None if not released.
        margins: by task, how unknown its images look to the router (casam_core.routing.unknown).
        canary: whether the candidate claims too many validation images held here; None: not said.
    """

    kind: ClassVar[str] = "evaluate.stage"
    clause: ClassVar[str] = "metrics"

    results: Annotated[Mapping[str, TaskResult], TaskResults()]
    decodes: Annotated[int | None, Figure("work", "decodes", passes)] = None
    margins: Annotated[Mapping[str, NDArray[np.int64]], Group(margin_forms)] = field(default_factory=dict)
    canary: Annotated[bool | None, Figure("canary", "failed", verdict, bool)] = None


# --- An institution leaves ---------------------------------------------------------------------------


@dataclass(frozen=True)
class ForgetRequest(Message):
    """Delete all copies of these entries and what was computed from them: their holder has left.

    entries: digests. leaver: whose work was in them.
    """

    job: ForJob
    leaver: Annotated[str, Text()]
    entries: Annotated[tuple[str, ...], Table(tuple[str, ...])]


@dataclass(frozen=True)
class ForgetReply(Message):
    """The institution's signed word that it did (casam_core.protocol.signing). public: its key."""

    kind: ClassVar[str] = "query.forget"
    clause: ClassVar[str] = "on_leave"

    public: Annotated[str, Text("[0-9a-f]{64}")]
    signature: Annotated[str, Text("[0-9a-f]{128}")]


def purge_statement(institution: str, run: str, leaver: str, entries: Sequence[str]) -> dict[str, Any]:
    """What an institution signs when it has deleted its copies."""
    return {"institution": institution, "run": run, "leaver": leaver, "deleted": sorted(entries)}


REPLIES: dict[str, type[Message]] = {
    reply.kind: reply
    for reply in (IdentifyReply, AlignReply, RouterReply, CalibrateReply, EvaluateReply, ForgetReply)
}
"""What is answered to each kind of request. Secure sums stand in casam_core.protocol.secure_sum."""


def allowed_in(kind: str, sender: Sender | None) -> Allowed:
    """What an answer to one kind of request may hold; nothing for a kind that is not known.

    sender: None for `identify`, which no single institution answers.
    """
    allowed = REPLIES[kind].allowed(sender) if kind in REPLIES else Allowed()
    allowed.settings |= ENVELOPE if sender is not None else {"outcome": ENVELOPE["outcome"]}
    return allowed
