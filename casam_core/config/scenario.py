"""The resolved scenario: what the server and every institution must agree on.

A scenario is written as TOML by people (see `scenarios/library`) and travels as canonical JSON with
its hash. Institutions read it from the identify message only; facts about a site (where its data
lie, its device) come from the site.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from casam_core.config.data_spec import DataSpec
from casam_core.config.participation import AdmissionSpec, DeadlineSpec, FaultSpec, ParticipationSpec
from casam_core.config.policy import Policy
from casam_core.config.section import ByName, Named, OneOf, Section
from casam_core.plugins import load_plugins
from casam_core.seeding import numpy_generator

NAME = r"[a-z0-9][a-z0-9_-]{0,47}"
Name = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
"""Names of institutions, tasks and scenarios become folder names: lower case, digits, - and _."""


RESERVED_TASKS = {
    "identity": "the route of an unknown image",
    "shared": "the entry of methods that keep one layer for all tasks",
}


def backbone_names() -> Collection[str]:
    """Every backbone there is."""
    from casam_core.model.backbones import BACKBONES

    return BACKBONES


class BackboneSpec(Section):
    """The frozen Segment Anything Model that sits everywhere."""

    name: Annotated[str, OneOf(backbone_names)] = "lite_medsam"
    checkpoint: str | None = Field(None, description="Path of an official SAM checkpoint (vit_*).")
    sha256: str | None = Field(None, description="Expected SHA-256 if not the official one.")


class ComputeSpec(Section):
    """How the arithmetic is done; part of what makes two runs equal."""

    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    threads: int = Field(1, ge=1, le=256, description="Torch threads per institution.")
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    encoder: Literal["plain", "fast", "compiled"] = Field(
        "plain",
        description="fast: bfloat16 where the chip has it, folded norms, attention by rows; about three "
        "times the images per second, embeddings of their own (docs/performance.md). compiled: also "
        "torch.compile, for thousands of images.",
    )


class AlignmentSpec(Section):
    """The Alignment Layer's form and its learning rate; some forms have more keys."""

    form: str = Field(description="A name in casam_core.model.forms.FORMS.")
    learning_rate: float | None = Field(None, gt=0, description="Default: the form's own.")


class TrainingSpec(Section):
    """Local training of one task's Alignment Layer from cached embeddings."""

    rounds: int = Field(1, ge=1, description="Exchanges of weights per stage.")
    epochs: int = Field(24, ge=1, description="Passes over the training images per round.")
    max_steps: int | None = Field(None, ge=1, description="Stop a round after this many steps.")
    batch_images: int = Field(6, ge=1)
    instances: int = Field(5, ge=1, description="Instances drawn per image and step.")
    prompts: Literal["box", "point", "mixed"] = Field(
        "box", description="mixed tosses a coin for box or point at every step, as the paper does."
    )
    warmup: int = Field(0, ge=0, description="Steps over which the learning rate rises to its value.")
    patience: int | None = Field(
        None,
        ge=1,
        description="Stop after this many epochs without a better validation IoU, and keep the best epoch.",
    )
    fallback_to_identity: bool = Field(
        True,
        description="A task whose layer does not beat frozen SAM on the holders' validation images keeps the "
        "identity (methods with an entry per task).",
    )
    strategy: str = Field("fedavg", description="A name in server.aggregation.STRATEGIES.")

    @model_validator(mode="before")
    @classmethod
    def _takes_the_old_name(cls, table: Any) -> Any:
        if not isinstance(table, Mapping) or "floor" not in table:
            return table
        # Explicitly, so that it is printed as one line, without the line of code that happened to read it.
        warnings.warn_explicit(
            "training.floor is now called training.fallback_to_identity; the old name is accepted until the "
            "next release",
            FutureWarning,
            filename="scenario",
            lineno=1,
        )
        return {"fallback_to_identity" if key == "floor" else key: table[key] for key in table}


class PrivacySpec(Section):
    """How institutions train whose policy asks for noise (docs/privacy.md). The budget is theirs."""

    steps: int = Field(25, ge=1, description="Optimiser steps of a private round; fixed, so never early.")
    sampling_rate: float = Field(
        0.2, gt=0, le=1, description="Chance of every image (or group) to take part in a step."
    )
    clip: float = Field(1.0, gt=0, description="Largest L2 norm of one image's (or group's) gradient.")
    learning_rate: float | None = Field(None, gt=0, description="Default: the form's own.")
    noise_multiplier: float | None = Field(
        None,
        gt=0,
        description="Standard deviation of the noise over `clip`. Default: the least with which the rounds "
        "of a task fit the institution's whole budget.",
    )
    router_ratio: float = Field(
        4.0,
        gt=0,
        description="Noise multiplier of the router over that of training; more spends less.",
    )


class RouterSpec(Section):
    """How the task of a new image is recognised, and when it counts as unknown.

    Some kinds of router have more keys.
    """

    kind: str = Field(description="A name in casam_core.routing.routers.ROUTERS.")
    features: Literal["attention", "moments"] = "moments"
    folds: int = Field(5, ge=2)
    percentile: float = Field(97.0, gt=0, le=100, description="Of the held-out scores: the threshold.")
    margin: float = Field(
        1.5, ge=0, description="Widen the threshold by this share of its distance from the median; paper: 0."
    )


def forms() -> Mapping[str, Named]:
    """Every form of the layer."""
    from casam_core.model.forms import FORMS  # it needs this module

    return FORMS


def routers() -> Mapping[str, Named]:
    """Every kind of router."""
    from casam_core.routing.routers import ROUTERS  # it needs this module

    return ROUTERS


BY_FORM, BY_KIND = ByName("form", "low_rank", forms), ByName("kind", "gaussian", routers)


class BankSpec(Section):
    """How entries are kept and sent."""

    precision: Literal["float32", "float16"] = Field(
        "float16",
        description="float16: matrices of layer and router are rounded once, when the entry is made; about "
        "half the bytes to everyone. Vectors stay float32. float32: as they were learned.",
    )


class EvaluationSpec(Section):
    """How test images are prompted and measured."""

    split: Literal["test", "val"] = Field("test", description="val: to choose settings, never to report.")
    prompts: Literal["box", "jittered_box", "point"] = "box"
    jitter: float = Field(0.1, ge=0, le=0.5, description="Box jitter as a share of its side.")
    max_instances: int = Field(32, ge=1, description="Instances per image, drawn by seed.")
    hd95: bool = Field(False, description="Also measure the 95 % Hausdorff distance (slower).")
    overlays: int = Field(
        0,
        ge=0,
        le=50,
        description="Pictures per task that each institution draws for its own eyes, in a simulation. A real "
        "site's own setting `overlays` alone counts there.",
    )


class InstitutionSpec(Section):
    """One data owner; `data` maps each task it holds to its source."""

    name: Name
    data: dict[Name, DataSpec] = Field(min_length=1)
    unseen: bool = Field(
        False, description="Never trains: its tasks show after every stage what unknown images suffer."
    )
    policy: Policy = Policy()
    faults: FaultSpec = FaultSpec()
    copies: int = Field(
        1,
        ge=1,
        le=10_000,
        description="So many institutions alike, named NAME-1, NAME-2, ...; phantoms of each have images of "
        "their own.",
    )


class Scenario(Section):
    """One experiment."""

    name: Name
    description: str = ""
    minutes: float | None = Field(
        None, gt=0, description="Expected minutes on two CPU cores, the first time; for `casam scenarios`."
    )
    look_at: str = Field("", description="What to look at in the results; for `casam scenarios`.")
    seed: int = Field(0, ge=0)
    method: str = Field("casam", description="A name in casam_core.methods.METHODS.")
    stream: list[Name] = Field(min_length=1, description="Tasks in the order they are learned.")
    unlearning: Literal["retrain", "drop"] = Field(
        "retrain",
        description="What becomes of an entry when one of its holders leaves with on_leave = unlearn: the "
        "others learn it anew (they must have kept their samples), or it is dropped.",
    )
    order: Literal["given", "reversed", "shuffled"] = Field(
        "given", description="Turn the stream round, or shuffle it by the seed."
    )
    institutions: list[InstitutionSpec] = Field(min_length=1)
    backbone: BackboneSpec = BackboneSpec()
    compute: ComputeSpec = ComputeSpec()
    alignment: Annotated[AlignmentSpec, BY_FORM] = Field(default_factory=BY_FORM.default_section)
    alignments: dict[Name, Annotated[AlignmentSpec, BY_FORM]] = Field(
        default_factory=dict, description="By task, where it has another layer than `alignment` says."
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
        # Resolved once, like the order: nobody but the author sees copies.
        sites = [copy for site in self.institutions for copy in copies_of(site)]
        object.__setattr__(self, "institutions", sites)
        return self

    @model_validator(mode="after")
    def _is_in_its_order(self) -> Scenario:
        # Resolved once: what is sent and recorded is the stream as it will be learned.
        stream = list(self.stream)
        if self.order == "reversed":
            stream.reverse()
        elif self.order == "shuffled":
            stream = [str(task) for task in numpy_generator(self.seed, "order").permutation(sorted(stream))]
        object.__setattr__(self, "stream", stream)
        object.__setattr__(self, "order", "given")
        return self

    @model_validator(mode="after")
    def _has_consistent_institutions(self) -> Scenario:
        names = [site.name for site in self.institutions]
        for site in self.institutions:
            if names.count(site.name) > 1:
                raise ValueError(f"two institutions are named {site.name!r}; give each its own name")
            for task in site.data:
                if task in RESERVED_TASKS:
                    raise ValueError(f"no task can be named {task!r}: that is {RESERVED_TASKS[task]}")
                if site.unseen and task in self.stream:
                    raise ValueError(
                        f"institution {site.name!r} is unseen, but its task {task!r} stands in the stream; "
                        "name its task otherwise or let it take part"
                    )
        return self

    @model_validator(mode="after")
    def _has_a_consistent_stream(self) -> Scenario:
        held = {task for site in self.institutions for task in site.data}
        for task in self.stream:
            if task not in held:
                raise ValueError(
                    f"task {task!r} of the stream is held by no institution; held: {', '.join(sorted(held))}"
                )
            if self.stream.count(task) > 1:
                raise ValueError(f"task {task!r} stands twice in the stream; each task is learned once")
        for task in self.alignments:
            if task not in self.stream:
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
        """The institution called `name`; KeyError if there is none."""
        for site in self.institutions:
            if site.name == name:
                return site
        raise KeyError(name)

    def holders(self, task: str) -> list[str]:
        """Names of the institutions that hold `task`, in the scenario's order."""
        return [site.name for site in self.institutions if task in site.data]

    def canonical_json(self) -> str:
        """The one spelling that is hashed and sent. Where a checkpoint lies is a fact of each site, and
        what a list of scenarios says about it changes nothing."""
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
        """The digest without what may differ where the same is learned: the institutions' policies, which are
        their own, and what goes wrong, who is waited for and how far they are trusted. It stands in entries.
        """
        sites = [
            site.model_copy(update={"policy": Policy(), "faults": FaultSpec()}) for site in self.institutions
        ]
        return self.model_copy(
            update={
                "institutions": sites,
                "deadlines": DeadlineSpec(),
                "participation": ParticipationSpec(),
                "admission": AdmissionSpec(),
            }
        ).digest()


def copies_of(site: InstitutionSpec) -> list[InstitutionSpec]:
    """The institutions that one table stands for; numbers have leading zeros, so that names sort."""
    if site.copies == 1:
        return [site]
    width = len(str(site.copies))
    names = [f"{site.name}-{number:0{width}}" for number in range(1, site.copies + 1)]
    if not re.fullmatch(NAME, names[0]):
        raise ValueError(f"copies need a shorter name: {names[0]!r} has more than 48 characters")
    return [site.model_copy(update={"copies": 1, "name": name}) for name in names]
