"""The messages between the server and an institution: every message, field and limit.

One stage has four exchanges: `identify` (who is connected), `align` (train a layer), `router` (describe the
task's images; with several holders also `calibrate`), `evaluate` (receive the new entries, score the test
images). `forget` follows when an institution leaves. A message contains no field that is not declared here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Self, get_type_hints

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from casam_core.config.named_parts import AlignmentSpec, RouterSpec
from casam_core.config.policy import Policy
from casam_core.config.scenario import Name, Scenario
from casam_core.config.section import Digest
from casam_core.methods import SHARED, alignment_of, method_of
from casam_core.metrics.intervals import Estimate, Statistics
from casam_core.model.backbones import Backbone
from casam_core.model.forms import build_layer, changes_sam
from casam_core.protocol.compressed_text import compress_text
from casam_core.protocol.limits import Allowed, ArraySpec, GroupSpec, Range
from casam_core.protocol.outcomes import WORDS
from casam_core.protocol.payload import AUDIT, EPSILONS, Job, Payload, Scalar, digest_of
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
    Nested,
    Text,
)
from casam_core.routing.decision import BINS, IDENTITY
from casam_core.routing.features import width_of
from casam_core.routing.routers import Arrays, build_router
from casam_core.routing.threshold import HISTOGRAM_BINS

SCHEMA = 6
"""Version of these messages. The server refuses a node with another version."""

Layer = Mapping[str, NDArray[np.float32]]
"""Weights of an Alignment Layer, or their importance, by parameter."""


@dataclass(frozen=True)
class Sender:
    """The institution that replies, and its job. The limits of a reply depend on them; both sides know them.

    Args:
        holdings: image counts by task.
        channels: the number of channels of an embedding.
        backbone: None at the server, which then cannot know the arrays of a layer that changes SAM itself.
        asked: the settings of the request.
    """

    scenario: Scenario
    holdings: Mapping[str, Holding]
    policy: Policy
    channels: int
    backbone: Backbone | None
    job: Job
    asked: Mapping[str, Scalar] = field(default_factory=dict)

    def images(self, part: str, tasks: Sequence[str]) -> int:
        """The number of images of one split in these tasks."""
        return sum(getattr(self.holdings[task], part) for task in tasks if task in self.holdings)

    @property
    def alone(self) -> bool:
        """Whether the request says that no other institution holds the task."""
        return bool(self.asked.get("alone", False))


EPSILON = Range(0.0, 1e6, digits=4)

ENVELOPE: dict[str, Callable[[object], bool]] = {
    "outcome": lambda value: value in WORDS,
    **dict.fromkeys(EPSILONS, Amount(EPSILON).fits),
    AUDIT: Text(r"\d{12}:[0-9a-f]{64}").fits,
}
"""Settings of every reply: the outcome, the privacy budget spent, and the place in the audit log."""


@dataclass(frozen=True)
class JobPart:
    """The part of a request that names the institution, the stage and the task."""

    def write(self, name: str, value: Job, draft: Draft) -> None:
        draft.config |= value.config()

    def read(self, name: str, payload: Payload) -> Job:
        return Job.of(payload)

    def allow(self, name: str, allowed: Allowed, sender: Sender) -> None:
        pass


ForJob = Annotated[Job, JobPart()]


# --- Identify ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IdentifyRequest(Message):
    """Ask a node for its institutions. It opens a run and every stage.

    Args:
        run: name of the run's folder.
        code: fingerprint of the server's code; a node with other code may be unable to read the scenario.
        digest: SHA-256 of the scenario.
        scenario: canonical JSON, compressed; "" for a node that received it earlier in the run.
        nonce: a random text, new in every request, which the reply's signatures cover.
        public: the public files that the scenario names (casam_core.config.public_files), unless casam ships
            them or the node received them earlier.
    """

    run: Annotated[str, Text()] = ""
    code: Annotated[str, Text()] = ""
    digest: Annotated[str, Text()] = ""
    scenario: Annotated[str, Text()] = ""
    nonce: Annotated[str, Text()] = ""
    public: Annotated[Sequence[bytes], Files()] = ()

    @staticmethod
    def telling(scenario: str, run: str, code: str, public: Sequence[bytes] = ()) -> IdentifyRequest:
        """The request for a node that does not have the scenario yet."""
        digest = hashlib.sha256(scenario.encode()).hexdigest()
        return IdentifyRequest(run, code, digest, compress_text(scenario), public=public)

    def short(self) -> IdentifyRequest:
        """The same request without the scenario and its public files, for a node that has them."""
        return replace(self, scenario="", public=())


Count = Annotated[int, Field(strict=True, ge=0, lt=10**9)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Signature = Annotated[str, Field(pattern="^[0-9a-f]{128}$")]


@dataclass(frozen=True)
class Holding:
    """The number of images of one task at an institution, by split."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    train: Count
    val: Count
    test: Count


MOSTLY_ROUTER = 0.9
"""From this share of the router on, a layer learns next to nothing from its images."""


@dataclass(frozen=True)
class Forecast:
    """How many of the `rounds` private rounds of one task the institution's budget allows.

    router_share: the share of epsilon that the task's router alone may cost.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    affordable: Count
    rounds: Count
    router_share: Share

    def division(self, epsilon: float) -> str:
        """How layer and router share epsilon, in words."""
        if not self.router_share:
            return "the layer gets all of it"
        router = f"the router takes up to {self.router_share * epsilon:.2g} of it, the layer what is left"
        if self.router_share < MOSTLY_ROUTER:
            return router
        return f"{router}: next to nothing, because with so few images the router needs nearly all"


@dataclass(frozen=True)
class IdentifyReply(Message):
    """The institutions of a node, their images and policies, and the node's code.

    Args:
        backbone: SHA-256 of the frozen weights. Without institutions it is "", like `compute` and
            `preprocessing`.
        compute: how the numbers are computed (casam_core.model.compute.Compute.variant).
        institutions: image counts by institution and task.
        forecasts: by institution and task, if the policy adds noise.
        simulated: whether privacy noise is seeded.
        preprocessing: hash of the image preprocessing.
        mirrored: whether the node has a mirror, a folder that holds entries under their names.
        signatures: by institution, over identify_statement, with the key that is registered for its name.
    """

    kind: ClassVar[str] = "query.identify"
    clause: ClassVar[str] = "identify"
    receivers: ClassVar[str] = "the server"

    code: Annotated[str, Text("[0-9a-f]{16}")]
    backbone: Annotated[str, Text("([0-9a-f]{64})?")]
    compute: Annotated[
        str, Text(r"([a-z]{1,8}-(float32|bfloat16)-t\d{1,3}(-(fast|compiled)-(float32|bfloat16))?)?")
    ]
    institutions: Annotated[Mapping[str, Mapping[str, Holding]], Nested(dict[Name, dict[Name, Holding]])]
    policies: Annotated[Mapping[str, Policy], Nested(dict[Name, Policy])]
    forecasts: Annotated[Mapping[str, Mapping[str, Forecast]], Nested(dict[Name, dict[Name, Forecast]])] = (
        field(default_factory=dict)
    )
    simulated: Annotated[bool, Flag()] = False
    preprocessing: Annotated[str, Text("([0-9a-f]{16})?")] = ""
    mirrored: Annotated[bool, Flag()] = False
    signatures: Annotated[Mapping[str, str], Nested(dict[Name, Signature])] = field(default_factory=dict)
    schema: Annotated[int, Amount(Range(0, 999, whole=True))] = SCHEMA

    @classmethod
    def of(cls, payload: Payload) -> Self:
        if missing := {"schema", "simulated"} - payload.config.keys():
            raise KeyError(min(missing))  # a node of another version must not seem to speak this one
        allowed_in(cls.kind, None).check(payload)
        reply = super().of(payload)
        if reply.policies.keys() != reply.institutions.keys():
            raise ValueError("expected a policy for every institution and no other")
        return reply

    def of_one(self, name: str) -> IdentifyReply:
        """The part of the reply that is about one of its institutions."""
        forecast = {name: self.forecasts[name]} if name in self.forecasts else {}
        held, policy = {name: self.institutions[name]}, {name: self.policies[name]}
        signed = {name: self.signatures[name]} if name in self.signatures else {}
        return replace(self, institutions=held, policies=policy, forecasts=forecast, signatures=signed)


def identify_statement(name: str, request: IdentifyRequest, reply: IdentifyReply) -> dict[str, Any]:
    """The statement that an institution signs about itself: this reply answers this request in its name."""
    said = digest_of(replace(reply, signatures={}).to_payload())
    return {
        "role": "identify",
        "institution": name,
        "run": request.run,
        "nonce": request.nonce,
        "reply": said,
    }


# --- Learn a task ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AlignRequest(Message):
    """Train a layer for one round.

    Args:
        layer: the weights to start from; None for new weights.
        tasks: train on the images of these tasks; by default of the job's task.
        anchor: the layer after the earlier tasks, for methods whose penalty needs it.
        importance: how much the earlier tasks depend on each parameter of `anchor`.
        control: what to add to each gradient: the mean control variate minus the receiver's (SCAFFOLD).
        pooled: train on the images of all institutions (simulations only).
        again: the task was learned before; it is learned again because a holder left.
    """

    job: ForJob
    layer: Annotated[Layer | None, Group()] = None
    tasks: Annotated[tuple[str, ...], Nested(tuple[str, ...])] = ()
    anchor: Annotated[Layer | None, Group()] = None
    importance: Annotated[Layer | None, Group()] = None
    control: Annotated[Layer | None, Group()] = None
    pooled: Annotated[bool, Flag()] = False
    again: Annotated[bool, Flag()] = False

    @property
    def trains_on(self) -> tuple[str, ...]:
        """The tasks whose images the training uses."""
        return self.tasks or (self.job.task,)


def layer_forms(sender: Sender) -> tuple[GroupSpec, ...]:
    """The arrays of a layer of the scenario's form."""
    return (layer_spec(alignment_of(sender.scenario, sender.job.task), sender.channels, sender.backbone),)


def importance_forms(sender: Sender) -> tuple[GroupSpec, ...]:
    """The arrays of the importance, which is never negative; none if the method does not use it."""
    if not method_of(sender.scenario.method).weighs:
        return ()
    (layer,) = layer_forms(sender)
    return (replace(layer, arrays={name: replace(spec, least=0.0) for name, spec in layer.arrays.items()}),)


def control_forms(sender: Sender) -> tuple[GroupSpec, ...]:
    """The arrays of a control variate, in the layer's form; none with another strategy or with noise."""
    plain = sender.policy.adapter.noise == "none" and sender.policy.adapter.aggregation == "plain"
    return layer_forms(sender) if sender.scenario.training.strategy == "scaffold" and plain else ()


def tasks_asked(asked: Mapping[str, Scalar], job: Job) -> tuple[str, ...]:
    """The tasks that a request's settings name, or that of its job: their images make the answer."""
    return Nested(tuple[str, ...]).decode(asked.get("tasks", "[]")) or (job.task,)


def trained_images(sender: Sender) -> Range:
    """The number of training images; a pooling method trains on those of all institutions."""
    if method_of(sender.scenario.method).pools:
        return replace(COUNT, least=1)
    images = sender.images("train", tasks_asked(sender.asked, sender.job))
    return Range(images, images, whole=True)


def may_compare(scenario: Scenario, job: Job, policy: Policy) -> bool:
    """Whether an institution may say if its layer beats frozen SAM: in the last round, and without noise.

    It is an exact bit about validation images, which the budget of noisy metrics protects, too.
    """
    able = method_of(scenario.method).can_fall_back(alignment_of(scenario, job.task).form)
    last = scenario.training.fallback_to_identity and job.round == scenario.training.rounds
    return able and last and policy.adapter.noise != "dp" and policy.metrics != "noisy"


def compares(sender: Sender) -> bool:
    """may_compare, of the sender."""
    return may_compare(sender.scenario, sender.job, sender.policy)


CORRECTION = Range(-1.0, 1.0, digits=2)
"""What the mean estimate of the IoU lacks of the IoU."""


def may_correct(scenario: Scenario, job: Job, policy: Policy) -> bool:
    """Whether an institution may tell how far the decoder's estimates of the IoU are off.

    It is an exact figure about validation images. A secure sum has no place for it.
    """
    last = job.round == scenario.training.rounds and not method_of(scenario.method).shared
    exact = policy.metrics == "exact" and not policy.adds_noise
    return last and exact and policy.adapter.aggregation == "plain"


def tells_personal(scenario: Scenario, task: str, policy: Policy) -> bool:
    """Whether an institution may tell what its personal entry of a task is worth on its test images.

    The figure depends on all its images without noise, and on a layer and a router that the policy must let
    leave.
    """
    exact = policy.metrics == "exact" and not policy.adds_noise
    shared = policy.adapter.share == policy.router.share == "yes"
    return exact and shared and alignment_of(scenario, task).personal


def corrects(sender: Sender) -> Range | None:
    """The limits of the correction, if the sender may tell it."""
    return CORRECTION if may_correct(sender.scenario, sender.job, sender.policy) else None


@lru_cache(maxsize=8)
def layer_spec(spec: AlignmentSpec, channels: int, backbone: Backbone | None) -> GroupSpec:
    """The parameters of a layer; open if the layer is a part of SAM and `backbone` is None."""
    if backbone is None and changes_sam(spec.form):
        return GroupSpec({}, open=True)
    layer = build_layer(spec, channels, 0, backbone)
    return GroupSpec(
        {name: ArraySpec(np.float32, tuple(value.shape)) for name, value in layer.state_dict().items()}
    )


@dataclass(frozen=True)
class AlignReply(Message):
    """Trained weights and their number of images, in the shape that Flower's strategies aggregate.

    Args:
        importance: only if the method uses it.
        improved: in the last round, whether the layer is better than frozen SAM on the holder's validation
            images; None if it was not measured.
        correction: in the last round, the mean IoU minus the decoder's mean estimate of it, on the holder's
            validation images.
        control: the mean gradient of the round, only with the strategy scaffold.
    """

    kind: ClassVar[str] = "train.align"
    clause: ClassVar[str] = "adapter"
    receivers: ClassVar[str] = "the server; the merged layer also everybody who takes entries"

    layer: Annotated[Layer, Group(layer_forms)]
    images: Annotated[int, Figure("align", "num-examples", trained_images)]
    importance: Annotated[Layer | None, Group(importance_forms)] = None
    improved: Annotated[bool | None, Flag(compares)] = None
    correction: Annotated[float | None, Figure("estimate", "correction", corrects, float, CORRECTION)] = None
    control: Annotated[Layer | None, Group(control_forms)] = None


@dataclass(frozen=True)
class RouterRequest(Message):
    """Describe the task's images. alone: no other institution holds the task."""

    job: ForJob
    alone: Annotated[bool, Flag()]


def router_forms(sender: Sender) -> tuple[GroupSpec, GroupSpec]:
    """The arrays of the scenario's router: (finished state, sufficient statistics)."""
    return specs_of_router(sender.scenario.router, sender.channels)


@lru_cache(maxsize=8)
def specs_of_router(spec: RouterSpec, channels: int) -> tuple[GroupSpec, GroupSpec]:
    """router_forms for a router on embeddings with this number of channels."""
    schema = build_router(spec).schema(width_of(spec.features, channels))
    return GroupSpec(schema.state), GroupSpec(schema.statistics)


def described_form(sender: Sender) -> tuple[GroupSpec, ...]:
    """The arrays that were asked for: the finished state of a single holder, else sufficient statistics."""
    finished, statistics = router_forms(sender)
    return (finished if sender.alone else statistics,)


def fold_forms(sender: Sender) -> tuple[GroupSpec, ...]:
    """The sufficient statistics of every fold; none from a single holder, or if no threshold is fitted."""
    return () if sender.alone else (router_forms(sender)[1],) * folds_of(sender.scenario)


def folds_of(scenario: Scenario) -> int:
    """The number of folds whose statistics leave: none if all tasks have one constant threshold."""
    return 0 if scenario.router.constant is not None else scenario.router.folds


def described_images(sender: Sender) -> Range:
    """The number of images."""
    images = sender.images("train", (sender.job.task,))
    return Range(images, images, whole=True)


SCORE = Range(-1e7, 1e7, single=True)
"""A threshold; histograms of scores end at 4 million (casam_core.routing.threshold)."""


def threshold(sender: Sender) -> Range | None:
    """The limits of a threshold, which only a single holder sends, and only if it was fitted."""
    return SCORE if sender.alone and sender.scenario.router.constant is None else None


@dataclass(frozen=True)
class RouterReply(Message):
    """The router's description of a task.

    For a single holder, `router` is the finished state and `threshold` is set. For several holders, `router`
    and the items of `folds` are sufficient statistics that the server merges, and `threshold` is None. If the
    scenario has one threshold for all tasks, neither a threshold nor folds leave.
    """

    kind: ClassVar[str] = "train.router"
    clause: ClassVar[str] = "router"
    receivers: ClassVar[str] = "the server; the merged router also everybody who takes entries"

    router: Annotated[Arrays, Group(described_form)]
    images: Annotated[int, Figure("router-facts", "num-examples", described_images)]
    threshold: Annotated[float | None, Figure("router-facts", "threshold", threshold, float, SCORE)] = None
    folds: Annotated[Sequence[Arrays], Groups("fold", fold_forms)] = ()

    def answers(self, request: RouterRequest, scenario: Scenario) -> bool:
        """Whether the reply fits the request; the arrays of `router` are not checked here."""
        if request.alone:
            return (self.threshold is None) == (scenario.router.constant is not None)
        return len(self.folds) == folds_of(scenario)


@dataclass(frozen=True)
class CalibrateRequest(Message):
    """Score your held-out images under the merged routers, one per fold."""

    job: ForJob
    folds: Annotated[Sequence[Arrays], Groups("fold")] = ()


def histogram_forms(sender: Sender) -> tuple[GroupSpec, ...]:
    """The histogram: one count of training images per bin."""
    images = sender.holdings[sender.job.task].train
    counts = ArraySpec(np.int64, (HISTOGRAM_BINS,), least=0, total=images, exact=True)
    return (GroupSpec({"counts": counts}),)


@dataclass(frozen=True)
class CalibrateReply(Message):
    """Held-out scores as counts over fixed bins (casam_core.routing.threshold)."""

    kind: ClassVar[str] = "train.calibrate"
    clause: ClassVar[str] = "router"
    receivers: ClassVar[str] = "the server"

    histogram: Annotated[NDArray[np.int64], Group(histogram_forms, key="counts")]


# --- Evaluate a stage --------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluateRequest(Message):
    """Add the new entries to your copy of the bank, and score your test images under the whole bank.

    Args:
        known: how many entries your copy should already have; drop the others. 0: start a new copy.
        entries: the entry files that you do not have yet, in the order of learning.
        bank: digest that your copy must have after adding them.
        candidates: the tasks whose entries are new; report whether they claim validation images of your own
            tasks.
        names: SHA-256 of each entry file that you lack; take it from your mirror. Then `entries` is empty.
    """

    job: ForJob
    known: Annotated[int, Amount()]
    entries: Annotated[Sequence[bytes], Files()]
    bank: Annotated[str, Text()]
    candidates: Annotated[tuple[str, ...], Nested(tuple[str, ...])] = ()
    names: Annotated[tuple[Digest, ...], Nested(tuple[Digest, ...])] = ()


Question = AlignRequest | RouterRequest | CalibrateRequest | EvaluateRequest
"""The requests about an institution's images."""


def question_of(request: Question) -> Payload:
    """Everything in a request that changes its answer: the same question has the same answer."""
    if isinstance(request, EvaluateRequest):  # the digest stands for the entries
        names = " ".join(request.candidates)
        return Payload({**request.job.config(), "bank": request.bank, "candidates": names})
    # Learning a task again is learning it with the same seeds.
    return (replace(request, again=False) if isinstance(request, AlignRequest) else request).to_payload()


@dataclass(frozen=True)
class TaskResult:
    """Results on the test split of one task at one institution: means over `images`, and their routes.

    The annotation of a figure names its limit (TaskResults.allow). `iou_instance` is the mean over
    `instances`. None: not measured, or not released. routes: image counts by task name or `identity`.
    statistics: intervals of the IoU and of the gain over frozen SAM. personal: the IoU with the institution's
    personal entry in place of the shared one.
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
    personal: Annotated[float | None, "share"] = None


FIGURES: dict[str, str] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(TaskResult, include_extras=True).items()
    if hasattr(hint, "__metadata__")
}
"""The figures of a TaskResult, with the names of their limits."""

NOISY_FIGURES = ("images", "iou", "dice")
"""The figures that are released, besides the routes, if the policy asks for noise."""

SHARE, PIXELS = Range(0, 1, digits=4), Range(0, 1e6, digits=2)
"""A mean of shares, and of distances in pixels."""

STATISTICS = {
    **{f"iou.{key}": SHARE for key in ("mean", "sd", "low", "high")},
    **{f"gain.{key}": Range(-1, 1, digits=4) for key in ("mean", "low", "high")},
    "gain.sd": Range(0, 2, digits=4),
}
"""The limits of casam_core.metrics.intervals.Statistics, without the number of units."""


STEPS = {"images": COUNT, "instances": COUNT, "share": SHARE, "pixels": PIXELS}
"""The numbers that there are, by the name of a figure's limit."""


@dataclass(frozen=True)
class TaskResults:
    """The results by task, in the groups of numbers `score.TASK`, `route.TASK` and `statistics.TASK`."""

    def write(self, name: str, value: Mapping[str, TaskResult], draft: Draft) -> None:
        for task, result in value.items():
            figures = {figure: getattr(result, figure) for figure in FIGURES}
            draft.metrics[f"score.{task}"] = {
                key: STEPS[FIGURES[key]].fitting(v) for key, v in figures.items() if v is not None
            }
            draft.metrics[f"route.{task}"] = dict(result.routes)
            if result.statistics is not None:
                draft.metrics[f"statistics.{task}"] = {
                    key: STATISTICS.get(key, COUNT).fitting(value)
                    for key, value in flat(result.statistics).items()
                }

    def read(self, name: str, payload: Payload) -> dict[str, TaskResult]:
        tasks = [group.removeprefix("score.") for group in payload.metrics if group.startswith("score.")]
        return {task: self.read_one(task, payload.metrics) for task in tasks}

    def read_one(self, task: str, metrics: Mapping[str, Mapping[str, float]]) -> TaskResult:
        """The result of one task, from its three groups. Raises KeyError, TypeError or ValueError."""
        numbers = finite(metrics[f"score.{task}"])
        if missing := set(NOISY_FIGURES) - numbers.keys():
            raise KeyError(f"score.{task}: {min(missing)}")
        figures: dict[str, Any] = {**dict.fromkeys(FIGURES), **numbers}
        for name in ("images", "instances"):
            figures[name] = None if figures[name] is None else int(figures[name])
        routes = {route: int(images) for route, images in metrics[f"route.{task}"].items()}
        statistics = metrics.get(f"statistics.{task}")
        return TaskResult(
            **figures, routes=routes, statistics=None if statistics is None else statistics_of(statistics)
        )

    def allow(self, name: str, allowed: Allowed, sender: Sender) -> None:
        noisy, evaluation = sender.policy.metrics == "noisy", sender.scenario.evaluation
        routes = {IDENTITY, SHARED, *sender.scenario.stream[: sender.job.stage]}
        unasked = set() if evaluation.hd95 else {"hd95"}
        for task, holding in sender.holdings.items():
            images = getattr(holding, evaluation.split)
            counts, units = Range(images, images, whole=True), Range(1, max(images, 1), whole=True)
            limits = {
                "images": counts,
                "instances": Range(images, images * evaluation.max_instances, whole=True),
                "share": SHARE,
                "pixels": PIXELS,
            }
            mine = task in routes and tells_personal(sender.scenario, task, sender.policy)
            hidden = unasked if mine else {*unasked, "personal"}
            leaving = NOISY_FIGURES if noisy else sorted(FIGURES.keys() - hidden)
            allowed.numbers[f"score.{task}"] = {figure: limits[FIGURES[figure]] for figure in leaving}
            allowed.numbers[f"route.{task}"] = dict.fromkeys(routes, units)
            if not noisy:
                allowed.totals[f"route.{task}"] = images
                allowed.numbers[f"statistics.{task}"] = {"units": units, **STATISTICS}


def flat(statistics: Statistics) -> dict[str, float]:
    """One group of numbers: `units`, `iou.mean`, `iou.sd`, ..., `gain.high`; without those that are None."""
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
    """The same numbers. Raises ValueError if one is not finite."""
    if not all(math.isfinite(value) for value in numbers.values()):
        raise ValueError(f"expected finite numbers, found {dict(numbers)}")
    return numbers


def margin_forms(sender: Sender) -> tuple[GroupSpec, ...]:
    """The arrays of the margins: one histogram of test images per task; none if metrics are noisy."""
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
    """The limits of `decodes`: at most two new ones per image, with its entry and with frozen SAM.

    It depends on the images without noise, so noisy metrics do not release it.
    """
    images = sender.images(sender.scenario.evaluation.split, tuple(sender.holdings))
    return None if sender.policy.metrics == "noisy" else Range(0, 2 * images, whole=True)


def verdict(sender: Sender) -> Range | None:
    """The limits of `canary`: 0 or 1; None if it was not asked for, or if the policy does not allow it."""
    asked = sender.asked.get("candidates") and sender.policy.canaries
    return Range(0, 1, whole=True) if asked else None


@dataclass(frozen=True)
class EvaluateReply(Message):
    """Scores of an institution's test images.

    Args:
        results: by task.
        decodes: the number of decoder passes in this evaluation; None if not released.
        margins: by task, the histogram of routing margins (casam_core.routing.decision).
        canary: whether the candidates claim too many validation images held here; None if not released.
    """

    kind: ClassVar[str] = "evaluate.stage"
    clause: ClassVar[str] = "metrics"
    receivers: ClassVar[str] = "the server"

    results: Annotated[Mapping[str, TaskResult], TaskResults()]
    decodes: Annotated[int | None, Figure("work", "decodes", passes)] = None
    margins: Annotated[Mapping[str, NDArray[np.int64]], Group(margin_forms)] = field(default_factory=dict)
    canary: Annotated[bool | None, Figure("canary", "failed", verdict, bool)] = None


# --- An institution leaves ---------------------------------------------------------------------------


@dataclass(frozen=True)
class ForgetRequest(Message):
    """Delete all copies of these entries, and all that was computed from them: a holder has left.

    entries: digests. leaver: the holder that left.
    """

    job: ForJob
    leaver: Annotated[str, Text()]
    entries: Annotated[tuple[str, ...], Nested(tuple[str, ...])]


@dataclass(frozen=True)
class ForgetReply(Message):
    """The institution's signature that it deleted them (casam_core.protocol.register)."""

    kind: ClassVar[str] = "query.forget"
    clause: ClassVar[str] = "on_leave"
    receivers: ClassVar[str] = "the server"

    signature: Annotated[str, Text("[0-9a-f]{128}")]


def purge_statement(institution: str, run: str, leaver: str, entries: Sequence[str]) -> dict[str, Any]:
    """The statement that an institution signs after it deleted its copies."""
    return {
        "role": "purge",
        "institution": institution,
        "run": run,
        "leaver": leaver,
        "deleted": sorted(entries),
    }


REPLIES: dict[str, type[Message]] = {
    reply.kind: reply
    for reply in (IdentifyReply, AlignReply, RouterReply, CalibrateReply, EvaluateReply, ForgetReply)
}
"""The reply to each kind of request. casam_core.protocol.secure_sum has those of a secure sum."""


def allowed_in(kind: str, sender: Sender | None) -> Allowed:
    """What a reply to one kind of request may contain; nothing for an unknown kind.

    sender: None for `identify`, which a node answers for all its institutions.
    """
    allowed = REPLIES[kind].allowed(sender) if kind in REPLIES else Allowed()
    allowed.settings |= ENVELOPE if sender is not None else {"outcome": ENVELOPE["outcome"]}
    return allowed
