"""The schema of summary.json: the server builds it, tooling reads it, docs/run-folder.md is made from it.

Scores are fractions in [0, 1]; `ff_iou` alone is in points (hundredths). A missing value is null. Fields with
a default were added later than schema 1: older runs do not have them.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from casam_core.config.policy import Policy
from casam_core.config.toml import explain
from casam_core.errors import RunError
from casam_core.metrics.intervals import Statistics

SCHEMA = 1
FILE = "summary.json"

ByTask = dict[str, float | None]


class Part(BaseModel):
    """A table of summary.json. Keys that a newer version added are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Unseen(Part):
    """Tasks that institutions hold but nobody learns. The lists have one item per stage."""

    tasks: list[str]
    zero_shot: ByTask
    iou: list[ByTask]
    unknown_rate: list[ByTask]


class Routing(Part):
    """How the router decided at the last stage."""

    accuracy: float | None = Field(description="Share of seen tasks' test images sent to their own task.")
    confusion: dict[str, dict[str, int]] | None = Field(
        description="Image counts by true task and route; `identity` is plain frozen SAM."
    )
    false_unknown_rate: float | None = Field(description="Share of seen tasks' images sent to `identity`.")
    unseen_unknown_rate: float | None = Field(
        description="Share of unseen tasks' images sent to `identity`; null without unseen tasks."
    )
    auroc: float | None = Field(
        None,
        description="AUROC of unseen against seen images by how unknown they look, from histograms; null "
        "without unseen tasks.",
    )
    fpr95: float | None = Field(
        None, description="False positive rate at 95 % true positive rate of the same comparison."
    )
    margins: dict[str, list[tuple[int, int]]] = Field(
        default_factory=dict,
        description="By task: (bin, images) of how unknown its images look, over institutions with exact "
        "metrics; `casam_core.routing.unknown.bin_edge` gives the margin at which a bin begins.",
    )


class Privacy(Part):
    """One institution: what it allows, what its releases cost, what it refused."""

    policy: Policy
    epsilon_train: float | None = None
    epsilon_metrics: float | None = None
    delta: float | None = None
    unit: str | None = None
    anonymity: dict[str, dict[str, int | None]] = Field(default_factory=dict)
    refusals: dict[str, int] = Field(default_factory=dict)
    rejections: dict[str, int] = Field(default_factory=dict)
    releases: int = 0
    bytes: int = 0


class HeldBackEntry(Part):
    """An entry that the server did not put into the bank."""

    task: str
    stage: int
    entry: str
    reasons: list[str]
    admitted: bool


class UnlearnedPart(Part):
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


class Traffic(Part):
    """Bytes by institution."""

    up: dict[str, int] = Field(
        description="By institution: bytes of its serialised records before transport, without identify "
        "messages."
    )
    down: dict[str, int] = Field(description="The same, of what the server sent to it.")


class Timing(Part):
    """Seconds. A stage names its task and the seconds of its parts."""

    seconds: float
    stages: list[dict[str, Any]]


class Summary(Part):
    """All figures of a finished run."""

    schema_: int = Field(alias="schema", description=f"{SCHEMA}")
    scenario: str = Field(description="Name of the scenario that was run.")
    scenario_digest: str = Field(description="SHA-256 of the canonical scenario.")
    seed: int = Field(description="The scenario's seed.")
    method: str = Field(description="The way of learning, `casam` unless the scenario names another.")
    status: str = Field(description="`completed`")
    evaluated_on: str = Field(description="`test`, or `val` where a run only chooses settings.")
    tasks: list[str] = Field(description="The stream, in order.")
    holders: dict[str, list[str]] = Field(
        description="By task: the institutions whose training is in its entry."
    )
    matrix: dict[str, list[list[float | None]]] = Field(
        description="By figure (`iou`, `dice`, `biou`, `biou_official`): rows are stages, columns tasks, "
        "null where unseen."
    )
    zero_shot: dict[str, ByTask] = Field(
        description="The frozen backbone's scores by figure and task, measured before the first stage."
    )
    unseen: Unseen = Field(
        description="Tasks that are held but never learned: frozen SAM's IoU, and after each stage IoU and "
        "share sent to `identity`."
    )
    statistics: dict[str, dict[str, Statistics]] = Field(
        description="By institution and task, last stage, computed at the institution: resampling units "
        "(patients, slides, else images); mean, standard deviation over units and 95 % bootstrap interval of "
        "the IoU, and of its gain over frozen SAM on the same images."
    )
    last_iou: float | None = Field(description="Mean of the last row.")
    avg_iou: float | None = Field(description="Mean over stages of the mean of each row's seen tasks.")
    ff_iou: float | None = Field(
        description="Mean over tasks but the last of (best earlier score - last score), in points; lower is "
        "better."
    )
    bwt_iou: float | None = Field(
        description="Mean over tasks but the last of (last score - score right after learning)."
    )
    complete: dict[str, bool] = Field(
        description="By aggregate: whether every cell that it needs was measured."
    )
    iou_instance: ByTask = Field(
        default_factory=dict,
        description="By task, last stage: mean over instances instead of over images.",
    )
    worst_institution_iou: ByTask = Field(
        default_factory=dict, description="By task, last stage: the lowest institution."
    )
    hd95: ByTask | None = Field(
        None, description="By task, last stage, in pixels; null unless `evaluation.hd95` is on."
    )
    routing: Routing
    privacy: dict[str, Privacy] = Field(
        description="By institution: its policy; `epsilon_train` and `epsilon_metrics` spent so far (null: "
        "not differentially private) at `delta` per `unit`; `anonymity`: by release, among how many "
        "institutions it hides from the `server` and from a `co_holder` (1: not at all); `refusals` by name, "
        "`rejections` (answers that did not count) by kind, `releases` and `bytes` that arrived from it."
    )
    unlearned: list[UnlearnedPart] = Field(
        default_factory=list,
        description='Institutions that left with `on_leave = "unlearn"`: stage, tasks deleted and retrained, '
        "bank digests and IoU before and after, and who deleted copies (`purged`).",
    )
    quarantine: list[HeldBackEntry] = Field(
        default_factory=list,
        description="Entries that were held back: task, stage, digest, reasons, and whether somebody "
        "`admitted` them by hand ([reliability.md](reliability.md)).",
    )
    canary: dict[str, dict[str, bool | None]] = Field(
        default_factory=dict,
        description="By task, of every institution that was asked whether the task's new entry claims its "
        "own images: true (it fails), false, null (no answer).",
    )
    noise: str | None = Field(
        None,
        description="Where privacy noise came from: `operating system`, or in simulations seeded, which "
        "protects nobody; null where no policy asks for any.",
    )
    trained_parameters: int = Field(
        description="Parameters of the layer of the last stage; 0 where nothing is learned."
    )
    bytes: Traffic
    decodes: list[int] = Field(description="Decoder passes (one image each) per evaluation: stage 0, 1, ...")
    timing: Timing = Field(description="Seconds of the run and of each stage; differs between equal runs.")
    environment: dict[str, Any] = Field(
        description="Versions, arithmetic, code; may differ between equal runs."
    )
    run: dict[str, str] = Field(
        default_factory=dict, description="Name of the run folder; may differ between equal runs."
    )

    @property
    def unseen_iou(self) -> float | None:
        """Mean IoU at the last stage over the tasks that nobody learned; None without any."""
        values = [value for value in self.unseen.iou[-1].values() if value is not None]
        return fmean(values) if values else None

    @property
    def frozen_iou(self) -> float | None:
        """The frozen backbone's mean IoU over the stream; None where one task's is unknown."""
        values = [self.zero_shot["iou"].get(task) for task in self.tasks]
        known = [value for value in values if value is not None]
        return fmean(known) if known and len(known) == len(values) else None

    @property
    def refusals(self) -> int:
        """Refusals of all institutions."""
        return sum(sum(site.refusals.values()) for site in self.privacy.values())


def read_summary(folder: Path) -> Summary:
    """The summary of the finished run in `folder`. Raises RunError where the file is not one."""
    path = folder / FILE
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise RunError(f"{path}: expected schema {SCHEMA}, found another; use the casam that made it")
    try:
        return Summary.model_validate(content)
    except ValidationError as error:
        raise RunError(f"{path}: {explain(error)}; was it made by another version of casam?") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file of a run folder. Raises RunError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read as JSON: {error}; the run folder is not whole") from error
