"""summary.json as typed data (docs/run-folder.md); what older runs do not say has a default."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from casam_core.config.policy import Policy

ByTask = dict[str, float | None]


class Part(BaseModel):
    """A table of summary.json; keys this page does not show are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Estimate(Part):
    """A mean with its 95 % interval; None where the institution could not tell."""

    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None


class Statistics(Part):
    """One task at one institution. gain: IoU minus frozen SAM's on the same images."""

    units: int
    iou: Estimate
    gain: Estimate


class Unseen(Part):
    """Tasks that are held but never learned; the lists go by stage."""

    tasks: list[str]
    zero_shot: ByTask
    iou: list[ByTask]
    unknown_rate: list[ByTask]


class Routing(Part):
    """margins: by task, (bin, images) of casam_core.routing.unknown; empty where no institution released
    any."""

    accuracy: float | None
    confusion: dict[str, dict[str, int]] | None
    false_unknown_rate: float | None
    unseen_unknown_rate: float | None
    auroc: float | None = None
    fpr95: float | None = None
    margins: dict[str, list[tuple[int, int]]] = Field(default_factory=dict)


class Privacy(Part):
    """One institution. anonymity: by release, among how many institutions' it hides, by who looks."""

    policy: Policy
    epsilon_train: float | None = None
    epsilon_metrics: float | None = None
    delta: float | None = None
    unit: str | None = None
    refusals: dict[str, int] = Field(default_factory=dict)
    releases: int = 0
    bytes: int = 0
    anonymity: dict[str, dict[str, int | None]] = Field(default_factory=dict)


class Unlearned(Part):
    """What happened when an institution left with on_leave = unlearn."""

    institution: str
    stage: int
    deleted: list[str] = Field(default_factory=list)
    retrained: list[str] = Field(default_factory=list)
    bank_before: str = ""
    bank_after: str = ""
    iou_before: ByTask = Field(default_factory=dict)
    iou_after: ByTask = Field(default_factory=dict)


class Traffic(Part):
    """Bytes by institution: up from it, down to it."""

    up: dict[str, int]
    down: dict[str, int]


class Timing(Part):
    """Seconds; a stage names its task and the seconds of its parts."""

    seconds: float
    stages: list[dict[str, Any]]


class Summary(Part):
    """The figures of a run."""

    schema_: int = Field(alias="schema")
    scenario: str
    scenario_digest: str
    seed: int
    method: str
    status: str
    evaluated_on: str
    tasks: list[str]
    holders: dict[str, list[str]]
    matrix: dict[str, list[list[float | None]]]
    zero_shot: dict[str, ByTask]
    unseen: Unseen
    statistics: dict[str, dict[str, Statistics]]
    last_iou: float | None
    avg_iou: float | None
    ff_iou: float | None
    bwt_iou: float | None
    complete: dict[str, bool]
    iou_instance: ByTask = Field(default_factory=dict)
    worst_institution_iou: ByTask = Field(default_factory=dict)
    hd95: ByTask | None = None
    routing: Routing
    privacy: dict[str, Privacy]
    noise: str | None = None
    unlearned: list[Unlearned] = Field(default_factory=list)
    trained_parameters: int
    bytes: Traffic
    decodes: list[int]
    timing: Timing
    environment: dict[str, Any]
