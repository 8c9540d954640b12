"""Methods of continual learning, which share the same training and evaluation.

A method decides who trains in a stage, whether one layer is shared by all stages, what is added to the loss,
and which entry is used for an image. Everything else is the same for all methods. A new method is a `Method`
in METHODS, and the functions that it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from casam_core.config.named_parts import AlignmentSpec
from casam_core.config.scenario import Scenario
from casam_core.errors import ScenarioError
from casam_core.model.backbones import Backbone
from casam_core.model.forms import AlignmentLayer, build_layer, changes_sam, form_spec, set_weights
from casam_core.model.layer_library import IDENTITY, JOINT, LIBRARIES, library_named
from casam_core.model.training import Batch, decode_batch
from casam_core.routing.decision import Route
from casam_core.seeding import derive_seed

SHARED = "shared"
"""The name of the entry of methods with one layer for all tasks."""

# --- What a method decides -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cohort:
    """The institutions that could train in a stage.

    task: the stage's task. seen: tasks of earlier stages. held: by institution, the tasks of the whole
    stream for which it has training images. keeps: institutions whose policy allows them to keep samples.
    streams: of institutions with an order of their own.
    """

    task: str
    seen: tuple[str, ...]
    held: Mapping[str, Collection[str]]
    keeps: Collection[str]
    streams: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def turn(self, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """An institution's (tasks of earlier stages, the task of this stage; none after its last)."""
        stage, own = len(self.seen), self.streams.get(name)
        if own is None:
            return self.seen, (self.task,)
        return tuple(own[:stage]), tuple(own[stage : stage + 1])


def cohort_at(
    scenario: Scenario, stage: int, held: Mapping[str, Collection[str]], keeps: Collection[str]
) -> Cohort:
    """The cohort of a stage, from 1.

    held: by institution, its tasks with training images. keeps: the institutions that keep images of earlier
    stages.
    """
    stream = scenario.stream
    return Cohort(
        task=stream[stage - 1],
        seen=tuple(stream[: stage - 1]),
        held={name: [task for task in tasks if task in stream] for name, tasks in held.items()},
        keeps=keeps,
        streams=scenario.own_streams,
    )


Trainers = Callable[[Cohort], dict[str, tuple[str, ...]]]
"""Decides which institutions train, and on which of their tasks."""

RouteRule = Callable[[str, Collection[str], Callable[[], Route]], Route]
"""(true task, tasks in the bank, the router's decision) -> the route to use."""

Importance = Mapping[str, NDArray[np.float32]]
"""By parameter: how much the tasks learned so far depend on it."""


class Penalty(Protocol):
    """A term that is added to the loss of one batch."""

    def __call__(self, layer: AlignmentLayer, batch: Batch) -> Tensor:
        """A scalar with gradients for the layer."""


PenaltyBuilder = Callable[[AlignmentLayer, Backbone, Importance | None], Penalty]
"""(the frozen layer after the earlier stages, backbone, importance) -> penalty."""


# --- Who trains ------------------------------------------------------------------------------------------


def holders(cohort: Cohort) -> dict[str, tuple[str, ...]]:
    """The holders of the stage's task, on that task; who has an order of its own, on the task of its turn."""
    turns = {name: cohort.turn(name)[1] for name in cohort.held}
    return {name: now for name, now in turns.items() if now and now[0] in cohort.held[name]}


def holders_and_keepers(cohort: Cohort) -> dict[str, tuple[str, ...]]:
    """The stage's holders, and institutions that may keep samples, which add their earlier tasks."""
    found = {}
    for name, held in cohort.held.items():
        seen, now = cohort.turn(name)
        tasks = (*seen, *now) if name in cohort.keeps else now
        found[name] = tuple(task for task in tasks if task in held)
    return {name: tasks for name, tasks in found.items() if tasks}


def everybody(cohort: Cohort) -> dict[str, tuple[str, ...]]:
    """All institutions, on all their tasks of the stream for which they (still) have images."""
    found = {}
    for name, held in cohort.held.items():
        gone = () if name in cohort.keeps else cohort.turn(name)[0]
        found[name] = tuple(task for task in sorted(held) if task not in gone)
    return {name: tasks for name, tasks in found.items() if tasks}


def one_for_all(cohort: Cohort) -> dict[str, tuple[str, ...]]:
    """The first holder trains on the images of all institutions for the tasks seen so far."""
    first = next((name for name, tasks in cohort.held.items() if cohort.task in tasks), None)
    return {} if first is None else {first: (*cohort.seen, cohort.task)}


# --- Which entry is used ---------------------------------------------------------------------------------


def by_router(task: str, known: Collection[str], routed: Callable[[], Route]) -> Route:
    """The router decides."""
    return routed()


def by_truth(task: str, known: Collection[str], routed: Callable[[], Route]) -> Route:
    """The true task of the image if it was learned; else frozen SAM."""
    name = task if task in known else None
    return Route(task=name, nearest=name, score=None)


def by_shared_entry(task: str, known: Collection[str], routed: Callable[[], Route]) -> Route:
    """The one shared entry, for every image."""
    return by_truth(SHARED, known, routed)


# --- What is added to the loss ---------------------------------------------------------------------------

EWC_STRENGTH = 1000.0
LWF_STRENGTH = 1.0


def elastic(start: AlignmentLayer, backbone: Backbone, importance: Importance | None) -> Penalty:
    """Elastic weight consolidation: parameters important for earlier tasks change little (Kirkpatrick 2017).

    penalty = strength / 2 * sum_i F_i (theta_i - theta*_i)^2. F is the diagonal Fisher information, summed
    over the tasks learned so far; theta* are the weights of `start`. Without importance (stage 1) it is 0.
    """
    anchor = {name: value.detach().clone() for name, value in start.named_parameters()}
    weight = {
        name: torch.from_numpy(value).to(anchor[name].device) for name, value in (importance or {}).items()
    }

    def penalty(layer: AlignmentLayer, batch: Batch) -> Tensor:
        terms = [
            (weight[name] * (value - anchor[name]).square()).sum()
            for name, value in layer.named_parameters()
            if name in weight
        ]
        return EWC_STRENGTH / 2 * torch.stack(terms).sum() if terms else torch.zeros(())

    return penalty


def distillation(start: AlignmentLayer, backbone: Backbone, importance: Importance | None) -> Penalty:
    """Learning without forgetting: on new images, keep the predictions of the old layer (Li and Hoiem 2016).

    penalty = strength * cross-entropy of the new mask probabilities against those of `start`.
    """

    def penalty(layer: AlignmentLayer, batch: Batch) -> Tensor:
        with torch.no_grad():
            old = [
                torch.sigmoid(logits_hw) for logits_hw in decode_batch(start, backbone, batch.drawn).logits
            ]
        entropies = [
            F.binary_cross_entropy_with_logits(logits_hw, old_hw, reduction="sum")
            for logits_hw, old_hw in zip(batch.logits, old, strict=True)
        ]
        return LWF_STRENGTH * torch.stack(entropies).mean() / batch.pixels

    return penalty


# --- The methods -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """One method of a comparison.

    description: one line.
    learns: if False, nothing is trained.
    form: of the layer, if the method requires one; it overrides the scenario's.
    shared: one layer is trained in all stages and used for all tasks.
    penalty: added to the loss from the second stage on.
    weighs: each stage measures the importance of every parameter for the next one.
    pools: one process trains on the images of all institutions, which breaks privacy. It is an upper bound
        for comparison, only in simulations.
    """

    description: str
    learns: bool = True
    form: str | None = None
    shared: bool = False
    trainers: Trainers = holders
    route: RouteRule = by_router
    penalty: PenaltyBuilder | None = None
    weighs: bool = False
    pools: bool = False

    def can_fall_back(self, form: str) -> bool:
        """Whether fallback to the identity is possible: the task has its own entry, and SAM is unchanged."""
        return not self.shared and not changes_sam(form)

    @property
    def routes(self) -> bool:
        """Whether a router chooses the entry."""
        return self.learns and self.route is by_router


METHODS: dict[str, Method] = {
    # Ours (CA-SAM).
    "casam": Method("One Alignment Layer per task, chosen by the router; unknown images go to frozen SAM."),
    # The upper bound of any router.
    "oracle": Method(
        "One Alignment Layer per task, chosen by the true task: the router's upper bound.", route=by_truth
    ),
    "frozen": Method("The frozen backbone; nothing is learned.", learns=False),
    # How much is forgotten when nothing prevents it.
    "sequential": Method("One shared layer, fine-tuned task after task.", shared=True, route=by_shared_entry),
    "ewc": Method(
        "One shared layer; elastic weight consolidation protects parameters that earlier tasks need.",
        shared=True,
        route=by_shared_entry,
        penalty=elastic,
        weighs=True,
    ),
    "lwf": Method(
        "One shared layer; on new images it keeps its earlier predictions (distillation).",
        shared=True,
        route=by_shared_entry,
        penalty=distillation,
    ),
    # It sends the same as other methods, but a policy must allow an institution to keep samples.
    "replay": Method(
        "One shared layer; earlier holders that may keep samples also train in every later stage.",
        shared=True,
        route=by_shared_entry,
        trainers=holders_and_keepers,
    ),
    # There is no sequence to forget: all institutions train from the first stage on. An institution that may
    # not keep samples stops after the stage of its task.
    "fedavg": Method(
        "One shared layer, federated averaging over all institutions in every stage.",
        shared=True,
        route=by_shared_entry,
        trainers=everybody,
    ),
    "decoder": Method(
        "SAM's mask decoder, fine-tuned task after task.", form="decoder", shared=True, route=by_shared_entry
    ),
    "lora": Method(
        "LoRA of SAM's encoder, fine-tuned task after task.", form="lora", shared=True, route=by_shared_entry
    ),
    # The router sees frozen embeddings; an image whose task has an entry is then encoded again, by its LoRA.
    "routed_lora": Method("LoRA of SAM's encoder, one per task, chosen by the router.", form="lora"),
    # The upper bound without privacy.
    "joint": Method(
        "One shared layer trained on all images pooled: an upper bound that breaks privacy.",
        shared=True,
        route=by_shared_entry,
        trainers=one_for_all,
        pools=True,
    ),
}


def method_of(name: str) -> Method:
    """The method of that name. Raises ScenarioError that lists the known names."""
    if name not in METHODS:
        raise ScenarioError(f"method: expected one of {', '.join(METHODS)}, found {name!r}")
    return METHODS[name]


def check_streams(scenario: Scenario) -> None:
    """Raise ScenarioError for an order of an institution's own with a method that has none."""
    method = method_of(scenario.method)
    for name in scenario.own_streams if method.pools or not method.shared else ():
        raise ScenarioError(
            f"institution {name!r}, stream: expected a method with one layer that all train, found "
            f"{scenario.method!r}; an entry per task is the same in every order, so leave `stream` out"
        )


def alignment_of(scenario: Scenario, task: str = "") -> AlignmentSpec:
    """The Alignment Layer of a task, in the method's form if it has one; the same for all if it is shared.

    Raises ScenarioError: personal entries of a shared layer.
    """
    method = method_of(scenario.method)
    spec = scenario.alignment if method.shared else scenario.alignments.get(task, scenario.alignment)
    if spec.personal and method.shared:
        raise ScenarioError(
            "alignment.personal: expected a method with one entry per task, found method "
            f"{scenario.method!r}; set alignment.personal = false"
        )
    return spec if method.form is None else form_spec(method.form, dict(spec))


def first_layer(
    scenario: Scenario,
    task: str,
    channels: int,
    backbone: Backbone | None = None,
    libraries: Path | None = None,
) -> AlignmentLayer:
    """The initial layer, the same for all holders of `task`: its seed depends only on scenario and task.

    If the scenario names a library of layers for this form, it is the library's joint layer where private
    training starts from it, else the library's identity: all holders have one basis, so that their layers can
    be averaged. libraries: a folder of libraries, besides those that casam ships.

    Raises:
        ScenarioError: see `build_layer`; the scenario needs a library and names none.
        BankError: the library is not here.
    """
    learned = SHARED if method_of(scenario.method).shared else task
    seed = derive_seed(scenario.seed, "layer", learned)
    layer = build_layer(alignment_of(scenario, task), channels, seed, backbone)
    if digest := library_named(scenario):
        library = LIBRARIES.get(digest, libraries)
        if library.fits(layer):
            start = JOINT if scenario.privacy.method == "public_start" else IDENTITY
            set_weights(layer, library.starts()[start])
    return layer
