"""The resolved scenario: what the server and every institution must agree on.

People write a scenario as TOML (see `scenarios/library`). The server sends it as canonical JSON with its
hash. Institutions read it only from the identify message. Facts about a site, such as the folder of its data
and its device, come from the site.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from casam_core.config.data_spec import DataSpec
from casam_core.config.named_parts import (
    BY_FORM,
    BY_KIND,
    SHIPPED_LIBRARIES,
    AlignmentSpec,
    BackboneSpec,
    RouterSpec,
)
from casam_core.config.participation import AdmissionSpec, DeadlineSpec, FaultSpec, ParticipationSpec
from casam_core.config.policy import Policy
from casam_core.config.section import Digest, Section
from casam_core.plugins import load_plugins
from casam_core.seeding import numpy_generator

NAME = r"[a-z0-9][a-z0-9_-]{0,47}"
Name = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
"""A name of an institution, task or scenario is also a folder name: lower case, digits, - and _."""

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""The name of a run's folder."""


RESERVED_TASKS = {
    "identity": "the route of an unknown image",
    "shared": "the entry of methods that keep one layer for all tasks",
}


class ComputeSpec(Section):
    """How the numbers are computed; two runs can only be equal if this is equal."""

    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto: CUDA, else CPU.")
    threads: int = Field(1, ge=1, le=256, description="Torch threads per institution.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32", description="auto: bfloat16 if the chip supports it."
    )
    encoder: Literal["plain", "fast", "compiled"] = Field(
        "plain",
        description="fast: about three times as many images per second on a processor, with slightly "
        "different embeddings (docs/performance.md). It uses bfloat16 where the chip supports it, folds "
        "norms, does not store the attention scores of all pairs, and takes 16 images together on a GPU. "
        "compiled: the same with torch.compile, for thousands of images.",
    )


STEPS = 240
"""Steps that open training takes for a task if the scenario does not say how many epochs."""


LOCAL_STRATEGIES = ("fedprox", "scaffold")
"""The strategies that change how a holder trains (client/drift.py). Training with noise has none of them."""


class TrainingSpec(Section):
    """Local training of the Alignment Layer of one task from cached embeddings."""

    rounds: int = Field(1, ge=1, description="Rounds of federated training per stage.")
    epochs: int | None = Field(
        None,
        ge=1,
        description="Passes over the training images per round. Default: as many as give about "
        f"{STEPS} steps in all rounds of a task together, at least one.",
    )
    max_steps: int | None = Field(None, ge=1, description="End a round after this many steps.")
    batch_images: int = Field(1, ge=1, description="Images per step.")
    instances: int = Field(4, ge=1, description="Instances (objects) that a step draws from each image.")
    prompts: Literal["box", "point", "mixed"] = Field(
        "box", description="mixed: each step draws box or point with equal probability, as in the paper."
    )
    box_jitter: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Training moves each side of a box by at most this share of its width or height.",
    )
    far_cells: Literal["means", "all"] = Field(
        "means",
        description="What the decoder sees, in training only, of the embedding's cells far from a box. "
        "means: the mean of each block of 4 x 4 cells; training takes half the time. all: every cell.",
    )
    objective: Literal["casam", "official"] = Field(
        "casam",
        description="The loss. casam: Dice and IoU of each instance. official: the loss of the authors' "
        "public code, over all masks of a step, at the size of the backbone's input; an image with too few "
        'instances repeats some of them. It needs far_cells = "all".',
    )
    warmup: int = Field(0, ge=0, description="Steps in which the learning rate rises to its full value.")
    keep_best: bool = Field(
        True,
        description="Keep the epoch with the best IoU on the holder's validation images, not the last one. "
        "A policy with noisy layers or metrics turns this off: the choice would tell about these images.",
    )
    patience: int | None = Field(
        None, ge=1, description="With keep_best: stop after this many epochs without a better one."
    )
    fallback_to_identity: bool = Field(
        True,
        description="A task keeps frozen SAM (the identity) unless a paired test on the holders' validation "
        "images finds its layer clearly better (methods with one entry per task).",
    )
    strategy: str = Field("fedavg", description="A name in server.aggregation.STRATEGIES.")
    proximal: float = Field(
        0.1,
        ge=0,
        exclude_if=lambda weight: weight == 0.1,  # earlier scenarios keep their digest
        description="Strategy fedprox: the weight mu of mu / 2 * |w - w_start|^2 in each step's loss.",
    )
    server_rate: float = Field(
        0.03,
        gt=0,
        exclude_if=lambda rate: rate == 0.03,  # earlier scenarios keep their digest
        description="Strategies fedadam and fedyogi: the server's learning rate.",
    )

    def passes(self, images: int) -> int:
        """Epochs of a round over this many images."""
        if self.epochs is not None:
            return self.epochs
        steps_per_epoch = -(-images // self.batch_images)
        return max(1, round(STEPS / self.rounds / max(steps_per_epoch, 1)))

    @model_validator(mode="after")
    def _patience_waits_for_a_better_epoch(self) -> TrainingSpec:
        if self.patience is not None and not self.keep_best:
            raise ValueError("patience needs keep_best = true; set it, or leave patience out")
        return self

    @model_validator(mode="after")
    def _the_official_objective_sees_whole_masks(self) -> TrainingSpec:
        if self.objective == "official" and self.far_cells != "all":
            raise ValueError('objective = "official" compares whole masks; set far_cells = "all", too')
        return self

    @model_validator(mode="before")
    @classmethod
    def _takes_the_old_name(cls, table: Any) -> Any:
        if not isinstance(table, Mapping) or "floor" not in table:
            return table
        # warn_explicit prints one line; warn would also print the line of code that reads the scenario.
        warnings.warn_explicit(
            "training.floor is now called training.fallback_to_identity; the old name is accepted until the "
            "next release",
            FutureWarning,
            filename="scenario",
            lineno=1,
        )
        return {"fallback_to_identity" if key == "floor" else key: table[key] for key in table}


TAKING_PART, LEAST_RATE = 200, 0.2
"""Images (or groups) that take part in a step of private training, if there are so many; the least share."""


class PrivacySpec(Section):
    """Training at institutions whose policy asks for noise (docs/privacy.md); the policy sets the budget."""

    method: Literal["dp_sgd", "public_start"] = Field(
        "dp_sgd",
        description="How a layer is trained with clipped and noisy gradients of all images, or of samples of "
        "many. dp_sgd: from frozen SAM, by Adam. public_start: from the layer of a public library, with "
        "gradients that are filtered by what public gradients look like.",
    )
    plan: Literal["auto", "half"] = Field(
        "auto",
        description="How the layer and the router of a task share epsilon. auto: the router gets what it "
        "needs to recognise the task with this number of images, at most nine tenths; the layer gets the "
        "rest. half: the router gets half.",
    )
    library: Digest | None = Field(
        None,
        description='SHA-256 of the library of layers, for method = "public_start" and alignment.start = '
        '"library". Default: the library that casam ships for the backbone and form; if there is none, '
        "`casam run` makes one from phantoms.",
    )
    descent_steps: None = Field(
        None,
        description="Of a method that is gone. It stays empty: a scenario's digest is over every key.",
    )
    steps: int = Field(25, ge=1, description="Optimiser steps of a private round; it never stops early.")
    sampling_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Probability that an image (or group) takes part in a step. Default: 1; of more than "
        f"{TAKING_PART}, so much that {TAKING_PART} take part in the mean, but at least {LEAST_RATE:g}.",
    )
    clip: float = Field(0.1, gt=0, description="Largest L2 norm of the gradient of one image (or group).")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Of dp_sgd alone. Default: three times the rate of the form, and less where a step is "
        "mostly noise; with a sampling_rate, the rate of the form.",
    )
    noise_multiplier: float | None = Field(
        None,
        gt=0,
        description="Standard deviation of the noise, divided by `clip`. Default: the smallest value with "
        "which all rounds of a task fit into the institution's whole budget.",
    )
    router_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="The share of epsilon that a task's router alone may cost, where the layer leaves with "
        "noise, too. The layer gets what the budget still allows after that. Default: `plan` decides.",
    )

    @model_validator(mode="before")
    @classmethod
    def _knows_what_is_gone(cls, table: Any) -> Any:
        if not isinstance(table, Mapping):
            return table
        if table.get("method") == "subspace" or table.get("descent_steps") is not None:
            raise ValueError(
                'privacy.method "subspace" and privacy.descent_steps are gone; leave descent_steps out and '
                'set privacy.method = "public_start"'
            )
        return table

    @model_validator(mode="after")
    def _has_a_rate_that_is_used(self) -> PrivacySpec:
        if self.method == "public_start" and self.learning_rate is not None:
            raise ValueError(
                "privacy.learning_rate: expected none, because the library and the noise decide how long the "
                'steps of public_start are; leave it out, or set privacy.method = "dp_sgd"'
            )
        return self

    def rate(self, units: int) -> float:
        """The sampling rate for so many images (or groups)."""
        return self.sampling_rate or max(LEAST_RATE, min(1.0, TAKING_PART / max(1, units)))

    def completed(self, backbone: BackboneSpec, alignment: AlignmentSpec) -> PrivacySpec:
        """The section with the library that casam ships for the backbone and the form."""
        wanted = self.method == "public_start" or alignment.start == "library"
        if not wanted or self.library or backbone.sha256 is not None:
            return self
        key = (backbone.name, alignment.form, getattr(alignment, "rank", 0))
        return self.model_copy(update={"library": SHIPPED_LIBRARIES.get(key)})


class BankSpec(Section):
    """How entries are stored and sent."""

    precision: Literal["float32", "float16"] = Field(
        "float16",
        description="float16: casam rounds the matrices of layer and router once, when it makes the entry, "
        "which then has about half the bytes; vectors stay float32. float32: casam rounds nothing.",
    )


class EvaluationSpec(Section):
    """How test images are prompted and scored."""

    split: Literal["test", "val"] = Field(
        "test", description="The images that are scored. val: only to choose settings; do not report it."
    )
    prompts: Literal["box", "jittered_box", "point", "finder", "clicks", "box_clicks"] = Field(
        "box",
        description="finder: no prompt; the entry's finder looks for the instances. An instance that it "
        "misses counts as IoU 0, and so does every instance under frozen SAM. clicks: simulated clicks, each "
        "in the middle of the largest wrong region of the mask so far. box_clicks: first a tight box.",
    )
    clicks: int = Field(
        3,
        ge=1,
        le=20,
        exclude_if=lambda clicks: clicks == 3,  # earlier scenarios keep their digest
        description="Clicks on each instance, for the prompts clicks and box_clicks.",
    )
    jitter: float = Field(0.1, ge=0, le=0.5, description="For jittered_box: sides move by up to this share.")
    max_instances: int = Field(32, ge=1, description="Most instances scored per image; the seed draws them.")
    tasks: Literal["all", "needed"] = Field(
        "all",
        exclude_if=lambda tasks: tasks == "all",  # earlier scenarios keep their digest
        description="Who is evaluated between the first and the last stage. needed: only institutions with a "
        "task learned so far or the next one, because the aggregates need no others. In these stages unseen "
        "tasks then have no figures, and fewer canaries answer.",
    )
    hd95: bool = Field(False, description="Also measure the 95 % Hausdorff distance (slower).")
    overlays: int = Field(
        0,
        ge=0,
        le=50,
        description="Pictures per task that each simulated institution draws for itself. A deployed "
        "institution uses its own setting `overlays`.",
    )


class InstitutionSpec(Section):
    """One institution; `data` maps each task that it holds to its source."""

    name: Name = Field(description="Lower-case letters, digits, - and _; also the name of its folder.")
    data: dict[Name, DataSpec] = Field(min_length=1, description="By task, where its images come from.")
    unseen: bool = Field(
        False,
        description="It never trains; after each stage, its images show how unknown images are treated.",
    )
    near: bool = Field(
        False,
        exclude_if=lambda near: not near,  # earlier scenarios keep their digest
        description="Its unseen tasks resemble tasks of the stream; the tables of unknown images call them "
        "near, and all others far.",
    )
    stream: list[Name] | None = Field(
        None,
        exclude_if=lambda stream: stream is None,  # earlier scenarios keep their digest
        description="The order in which it learns its own tasks: in stage t the t-th of them, whatever "
        "others learn then. For methods with one shared layer. Default: the order of the scenario's stream.",
    )
    policy: Policy = Policy()
    faults: FaultSpec = FaultSpec()
    copies: int = Field(
        1,
        ge=1,
        le=10_000,
        description="Number of equal institutions, named NAME-1, NAME-2, ...; each generates different "
        "phantom images.",
    )


class Scenario(Section):
    """One experiment."""

    name: Name = Field(description="Lower-case letters, digits, - and _; also the name of its folders.")
    description: str = Field("", description="One line about the scenario; `casam scenarios` shows it.")
    minutes: float | None = Field(
        None, gt=0, description="Minutes of the first run on two CPU cores; `casam scenarios` shows them."
    )
    look_at: str = Field("", description="What to look at in the results; `casam scenarios` shows it.")
    seed: int = Field(0, ge=0, description="Seed of all random choices, except privacy noise of real sites.")
    method: str = Field("casam", description="A name in casam_core.methods.METHODS.")
    stream: list[Name] = Field(min_length=1, description="Tasks in the order of learning.")
    relayed: bool = Field(
        False,
        exclude_if=lambda relayed: not relayed,  # earlier scenarios keep their digest
        description="The server is a relay: it answers another server with sums over its institutions, which "
        "need not hold all tasks of the stream (docs/deployment.md).",
    )
    unlearning: Literal["retrain", "drop"] = Field(
        "retrain",
        description="What to do with an entry when one of its holders leaves with on_leave = unlearn. "
        "retrain: the other holders learn the task again from the samples they kept. drop: it is deleted.",
    )
    order: Literal["given", "reversed", "shuffled"] = Field(
        "given", description="reversed: last task first. shuffled: an order drawn from the seed."
    )
    institutions: list[InstitutionSpec] = Field(min_length=1, description="One table for each institution.")
    backbone: BackboneSpec = BackboneSpec()
    compute: ComputeSpec = ComputeSpec()
    alignment: Annotated[AlignmentSpec, BY_FORM] = Field(default_factory=BY_FORM.default_section)
    alignments: dict[Name, Annotated[AlignmentSpec, BY_FORM]] = Field(
        default_factory=dict, description="By task: the layers that differ from `alignment`."
    )
    training: TrainingSpec = TrainingSpec()
    privacy: PrivacySpec = PrivacySpec()
    router: Annotated[RouterSpec, BY_KIND] = Field(default_factory=BY_KIND.default_section)
    bank: BankSpec = BankSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    deadlines: DeadlineSpec = DeadlineSpec()
    participation: ParticipationSpec = ParticipationSpec()
    admission: AdmissionSpec = AdmissionSpec()

    @model_validator(mode="before")
    @classmethod
    def _knows_every_plugin(cls, table: Any) -> Any:
        load_plugins()
        return table

    @model_validator(mode="after")
    def _has_every_copy(self) -> Scenario:
        # Resolved once, like the order: the resolved scenario has no copies.
        sites = [copy for site in self.institutions for copy in copies_of(site)]
        object.__setattr__(self, "institutions", sites)
        return self

    @model_validator(mode="after")
    def _is_in_its_order(self) -> Scenario:
        # Resolved once: the server sends and records the stream in its final order.
        stream = list(self.stream)
        if self.order == "reversed":
            stream.reverse()
        elif self.order == "shuffled":
            stream = [str(task) for task in numpy_generator(self.seed, "order").permutation(sorted(stream))]
        object.__setattr__(self, "stream", stream)
        object.__setattr__(self, "order", "given")
        return self

    @model_validator(mode="after")
    def _knows_its_public_files(self) -> Scenario:
        # Resolved once: the digests of public files are a part of what a site approves.
        object.__setattr__(self, "router", self.router.completed(self.backbone))
        object.__setattr__(self, "privacy", self.privacy.completed(self.backbone, self.alignment))
        return self

    @model_validator(mode="after")
    def _has_consistent_institutions(self) -> Scenario:
        names = Counter(site.name for site in self.institutions)
        for site in self.institutions:
            if names[site.name] > 1:
                raise ValueError(f"two institutions are named {site.name!r}; give each its own name")
            for task in site.data:
                if task in RESERVED_TASKS:
                    raise ValueError(f"no task can be named {task!r}: that is {RESERVED_TASKS[task]}")
                if site.unseen and task in self.stream:
                    raise ValueError(
                        f"institution {site.name!r} is unseen, but its task {task!r} stands in the stream; "
                        "give its task another name or set unseen = false"
                    )
            own = [task for task in self.stream if task in site.data]
            if site.stream is not None and sorted(site.stream) != sorted(own):
                raise ValueError(
                    f"institution {site.name!r}, stream: expected each of its tasks of the stream once "
                    f"({', '.join(own) or 'none'}), found {', '.join(site.stream) or 'none'}"
                )
        return self

    @model_validator(mode="after")
    def _has_one_library(self) -> Scenario:
        for task, spec in self.alignments.items():
            if spec.start == "library" != self.alignment.start:
                raise ValueError(
                    f"alignments.{task}.start: expected identity, as alignment.start; a scenario has one "
                    'library, for the form of `alignment`: set alignment.start = "library"'
                )
        return self

    @model_validator(mode="after")
    def _learns_a_finder_step_by_step(self) -> Scenario:
        of_tasks = {f"alignments.{task}": spec for task, spec in self.alignments.items()}
        for name, spec in {"alignment": self.alignment, **of_tasks}.items():
            if spec.finder and (self.privacy.method == "public_start" or self.alignment.start == "library"):
                raise ValueError(
                    f"{name}.finder: expected false, because a library of layers has no start for a finder; "
                    'set privacy.method = "dp_sgd" and alignment.start = "identity", or leave '
                    "the finder out"
                )
        return self

    @model_validator(mode="after")
    def _evaluates_a_finder_that_it_learns(self) -> Scenario:
        if self.evaluation.prompts == "finder" and not any(
            spec.finder for spec in (self.alignment, *self.alignments.values())
        ):
            raise ValueError(
                'evaluation.prompts: expected alignment.finder = true with "finder", found false; set it, or '
                "choose other prompts"
            )
        return self

    @model_validator(mode="after")
    def _has_a_consistent_stream(self) -> Scenario:
        held = {task for site in self.institutions for task in site.data}
        times = Counter(self.stream)
        for task in self.stream:
            if task not in held and not self.relayed:
                raise ValueError(
                    f"task {task!r} of the stream is held by no institution; held: {', '.join(sorted(held))}"
                )
            if times[task] > 1:
                raise ValueError(f"task {task!r} stands twice in the stream; each task is learned once")
        for task in self.alignments:
            if task not in times:
                raise ValueError(f"alignments.{task}: expected a task of the stream")
        return self

    @classmethod
    def load(cls, name_or_path: str | Path, overrides: Sequence[str] = ()) -> Scenario:
        """A scenario of the library or a TOML file, with `KEY=VALUE` overrides. Raises ScenarioError."""
        from casam_core.config.library import resolve_scenario

        return resolve_scenario(str(name_or_path), overrides)

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Scenario:
        """A scenario from a table, as a TOML file holds it. Raises ScenarioError with the key at fault."""
        from casam_core.config.toml import parse_scenario

        return parse_scenario(dict(table), "scenario")

    def institution(self, name: str) -> InstitutionSpec:
        """The institution called `name`. Raises KeyError."""
        for site in self.institutions:
            if site.name == name:
                return site
        raise KeyError(name)

    @property
    def own_streams(self) -> dict[str, list[str]]:
        """By institution with an order of its own, that order."""
        return {site.name: site.stream for site in self.institutions if site.stream is not None}

    def holders(self, task: str) -> list[str]:
        """Names of the institutions that hold `task`, in the scenario's order."""
        return [site.name for site in self.institutions if task in site.data]

    def canonical_json(self) -> str:
        """The canonical JSON, which is hashed and sent.

        It omits the path of the checkpoint, which differs between sites, and the texts for `casam scenarios`,
        which change no result.
        """
        content = self.model_dump(
            mode="json",
            exclude={
                "backbone": {"checkpoint"},
                "institutions": {"__all__": {"copies"}},
                "minutes": True,
                "look_at": True,
            },
        )
        return json.dumps(content, sort_keys=True, separators=(",", ":"))

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hex."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()

    def learned_digest(self) -> str:
        """The digest that entries record: without policies, faults, deadlines, participation and admission.

        These may differ between two runs that learn the same entry.
        """
        sites = [
            site.model_copy(update={"policy": Policy(), "faults": FaultSpec()}) for site in self.institutions
        ]
        return self.with_default_rules(sites).digest()

    def common_digest(self) -> str:
        """The digest of what a relay's members and the server above learn alike: of all but the institutions,
        what is left out of learned_digest, and texts."""
        texts: dict[str, Any] = {"name": "", "description": "", "relayed": False}
        return self.with_default_rules([]).model_copy(update=texts).digest()

    def with_default_rules(self, sites: list[InstitutionSpec]) -> Scenario:
        """The scenario with other institutions, default deadlines, participation and admission."""
        rules = {
            "deadlines": DeadlineSpec(),
            "participation": ParticipationSpec(),
            "admission": AdmissionSpec(),
        }
        return self.model_copy(update={"institutions": sites, **rules})


def copies_of(site: InstitutionSpec) -> list[InstitutionSpec]:
    """The institutions that one table describes; numbers have leading zeros, so that names sort.

    Raises ValueError.
    """
    if site.copies == 1:
        return [site]
    width = len(str(site.copies))
    names = [f"{site.name}-{number:0{width}}" for number in range(1, site.copies + 1)]
    if not re.fullmatch(NAME, names[0]):
        raise ValueError(f"copies need a shorter name: {names[0]!r} has more than 48 characters")
    return [site.model_copy(update={"copies": 1, "name": name}) for name in names]
