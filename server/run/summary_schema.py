"""The schema of summary.json. The server writes it, tooling reads it, and docs/run-folder.md is made from it.

Scores are fractions in [0, 1]; only `ff_iou` is in points (hundredths). A missing value is null. Fields with
a default were added after the first version of schema 1; older runs do not have them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from casam_core.config.policy import Policy
from casam_core.config.toml import explain
from casam_core.errors import RunInputError
from casam_core.metrics.intervals import Statistics

SCHEMA = 1
FILE = "summary.json"

ByTask = dict[str, float | None]


class SummaryPart(BaseModel):
    """A table of summary.json. Keys of newer versions are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)


class Unseen(SummaryPart):
    """Tasks that institutions hold but that are not in the stream. The lists have one item per stage."""

    tasks: list[str]
    zero_shot: ByTask
    iou: list[ByTask]
    unknown_rate: list[ByTask]


class Separation(SummaryPart):
    """How well margins separate some unseen images from all seen ones; null without such images."""

    auroc: float | None = None
    fpr95: float | None = None


class Routing(SummaryPart):
    """How the router decided at the last stage."""

    accuracy: float | None
    """Share of seen tasks' test images that are sent to their own task."""
    confusion: dict[str, dict[str, int]] | None
    """Image counts by true task and route; `identity` is frozen SAM."""
    false_unknown_rate: float | None
    """Share of seen tasks' images sent to `identity`."""
    unseen_unknown_rate: float | None
    """Share of unseen tasks' images sent to `identity`; null without unseen tasks."""
    auroc: float | None = None
    """AUROC of unseen against seen images by their margin (route score minus threshold), from histograms;
    null without unseen tasks."""
    fpr95: float | None = None
    """False positive rate at 95 % true positive rate of the same comparison."""
    near: Separation = Separation()
    """`auroc` and `fpr95` for unseen tasks of institutions that the scenario calls `near`."""
    far: Separation = Separation()
    """The same for all other unseen tasks."""
    margins: dict[str, list[tuple[int, int]]] = Field(default_factory=dict)
    """By task: histogram of its images' margins as (bin, images), over institutions with exact metrics;
    `casam_core.routing.decision.bin_edge` gives the lower edge of a bin."""


class Privacy(SummaryPart):
    """One institution: its policy, the cost of its releases, and its refusals."""

    policy: Policy
    epsilon_train: float | None = None
    epsilon_metrics: float | None = None
    epsilon_train_replaced: float | None = None
    epsilon_metrics_replaced: float | None = None
    delta: float | None = None
    unit: str | None = None
    router_share: dict[str, float] = Field(default_factory=dict)
    anonymity: dict[str, dict[str, int | None]] = Field(default_factory=dict)
    refusals: dict[str, int] = Field(default_factory=dict)
    rejections: dict[str, int] = Field(default_factory=dict)
    releases: int = 0
    bytes: int = 0


class HeldBackEntry(SummaryPart):
    """An entry that the server did not put into the bank."""

    task: str
    stage: int
    entry: str
    reasons: list[str]
    admitted: bool


class UnlearnedPart(SummaryPart):
    """What happened when an institution left with `on_leave = "unlearn"`."""

    institution: str
    stage: int
    deleted: list[str] = Field(default_factory=list)
    retrained: list[str] = Field(default_factory=list)
    bank_before: str = ""
    bank_after: str = ""
    purged: list[str] = Field(default_factory=list)
    iou_before: ByTask = Field(default_factory=dict)
    iou_after: ByTask = Field(default_factory=dict)


class TrafficPart(SummaryPart):
    """Bytes by institution."""

    up: dict[str, int]
    """By institution: bytes of its serialised answers before transport, without identify messages."""
    down: dict[str, int]
    """By institution: bytes that the server sent to it, counted in the same way."""


class Timing(SummaryPart):
    """Seconds. A stage names its task and the seconds of its parts."""

    seconds: float
    stages: list[dict[str, Any]]
    learning_processor: list[float | None] = Field(default_factory=list)
    """By stage: processor seconds of the server's process until layer and router were learned; with those of
    all institutions if it hosts them. null: a stage of an older version."""


class Summary(SummaryPart):
    """All figures of a finished run."""

    schema_: int = Field(alias="schema")
    """1"""
    scenario: str
    """Name of the scenario that was run."""
    scenario_digest: str
    """SHA-256 of the canonical scenario."""
    seed: int
    """The scenario's seed."""
    method: str
    """The method, `casam` unless the scenario names another."""
    status: str
    """`completed`"""
    evaluated_on: str
    """The evaluated split: `test`, or `val` for runs that choose settings."""
    tasks: list[str]
    """The stream, in order."""
    holders: dict[str, list[str]]
    """By task: the institutions that trained its entry."""
    matrix: dict[str, list[list[float | None]]]
    """By figure (`iou`, `dice`, `biou`, `biou_official`): rows are stages, columns tasks, null if unseen."""
    zero_shot: dict[str, ByTask]
    """The frozen backbone's scores by figure and task, measured before the first stage."""
    unseen: Unseen
    """Tasks that institutions hold but that are not in the stream: IoU of frozen SAM, and after each stage
    the IoU and the share of images sent to `identity`."""
    statistics: dict[str, dict[str, Statistics]]
    """By institution and task, last stage, computed at the institution: number of resampling units (patients,
    slides, else images); mean, standard deviation over units and 95 % bootstrap interval of the IoU, and of
    its gain over frozen SAM on the same images."""
    last_iou: float | None
    """Mean of the last row."""
    avg_iou: float | None
    """Mean over stages of the mean over the seen tasks of each row."""
    ff_iou: float | None
    """Mean over tasks except the last of (best earlier score - last score), in points; lower is better."""
    bwt_iou: float | None
    """Mean over tasks except the last of (last score - score right after learning)."""
    fwt_iou: float | None = None
    """Forward transfer: mean over tasks except the first of (score right before learning - frozen score)."""
    plasticity_iou: float | None = None
    """Plasticity: mean over tasks of the score right after learning."""
    site_ff_iou: dict[str, float | None] = Field(default_factory=dict)
    """By institution that told scores: `ff_iou` of its own tasks and test images, from the stage on in which
    it learned each. Where an institution has a `stream` of its own, this is the only figure of forgetting: a
    stage is not that of one task then, and all aggregates but `last_iou` are null."""
    complete: dict[str, bool]
    """By aggregate: whether every necessary cell of the matrix was measured."""
    iou_instance: ByTask = Field(default_factory=dict)
    """By task, last stage: mean over instances instead of over images."""
    worst_institution_iou: ByTask = Field(default_factory=dict)
    """By task, last stage: the lowest IoU of an institution."""
    personal: dict[str, dict[str, float]] = Field(default_factory=dict, exclude_if=lambda told: not told)
    """By institution and task, last stage: the IoU of its test images with its personal entries
    (`alignment.personal`); the IoU with shared ones is in `statistics`. Left out if nobody told one: an
    institution with noise, or that keeps its layer, router or scores, tells none."""
    hd95: ByTask | None = None
    """By task, last stage, in pixels; null unless `evaluation.hd95` is on."""
    routing: Routing
    privacy: dict[str, Privacy]
    """By institution: its policy; `epsilon_train` and `epsilon_metrics` spent so far (null: not
    differentially private) at `delta` per `unit`, if a unit is added or removed, and with `_replaced` if one
    is replaced by another; `anonymity`: by release, among how many institutions the
    `server` and a `co_holder` cannot tell its sender (1: they know it), over all secure sums of the run and
    their differences; `refusals` by name, `rejections`
    (invalid answers) by kind, `releases` and `bytes` that arrived from it."""
    unlearned: list[UnlearnedPart] = Field(default_factory=list)
    """Institutions that left with `on_leave = "unlearn"`: stage, tasks deleted and retrained, bank digests
    and IoU before and after, and the institutions that deleted their copies (`purged`)."""
    quarantine: list[HeldBackEntry] = Field(default_factory=list)
    """Quarantined entries: task, stage, digest, reasons, and whether a person `admitted` them later
    ([reliability.md](reliability.md))."""
    canary: dict[str, dict[str, bool | None]] = Field(default_factory=dict)
    """By the stage's task and institution: the canary's answer to whether the stage's new entries (of this
    task and of tasks learned again) claim images of other tasks: true (one fails), false (all pass) or null
    (no answer)."""
    approved_by: str | None = None
    """Who approved the scenario: `every institution`, or `the scenario itself` in a simulation, where no
    institution is asked."""
    noise: str | None = None
    """Source of the privacy noise: `operating system`, or seeded in simulations, where it protects no data;
    null if no policy asks for noise."""
    trained_parameters: int
    """Number of weights of the last stage's layer; 0 without a layer."""
    bytes: TrafficPart
    decodes: list[int]
    """Decoder passes (one image each) per evaluation: stage 0, 1, ..."""
    timing: Timing
    """Seconds of the run and of each stage; differs between equal runs."""
    environment: dict[str, Any]
    """Versions, arithmetic, code; may differ between equal runs."""
    run: dict[str, str] = Field(default_factory=dict)
    """Name of the run folder; may differ between equal runs."""


def read_summary(folder: Path) -> Summary:
    """The summary of the finished run in `folder`. Raises RunInputError where the file is not one."""
    path = folder / FILE
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise RunInputError(f"{path}: expected schema {SCHEMA}, found another; use the casam that made it")
    try:
        return Summary.model_validate(content)
    except ValidationError as error:
        raise RunInputError(f"{path}: {explain(error)}; was it made by another version of casam?") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file of a run folder. Raises RunInputError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunInputError(
            f"{path}: cannot be read as JSON: {error}; the run folder is not whole"
        ) from error
