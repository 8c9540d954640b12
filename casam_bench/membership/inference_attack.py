"""An institution attacks what it released, with its own images: would somebody who holds such images notice
which of them were trained on?

Members are the task's training images, non-members its validation and test images (neither had a part in
the weights; validation images may have stopped the training or kept the identity, where a scenario asks for
that). The attacker is a strong one: it knows every setting, has the masks, and can train shadow models on
the site's own images. What comes out is made from private images, so it is the institution's to keep or to
give away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from casam_bench.membership.inversion import can_read_out, read_out, resemblance
from casam_bench.membership.layer_fit import fit_of, losses_of, visible_images
from casam_bench.membership.likelihood_ratio import online, shadow_parts
from casam_bench.membership.router_fit import fits_of
from casam_bench.membership.shadows import Shadows, indices
from casam_bench.membership.statistics import Outcome, Scores, outcome_of
from casam_core.bank.entry_file import Entry
from casam_core.bank.inference import entry_layer, entry_router
from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.model.backbones import Backbone
from casam_core.model.forms import AlignmentLayer
from casam_core.model.forms.affine import IdentityLayer
from casam_core.seeding import numpy_generator
from client.data.dataset import Sample
from client.data.task_data import StoredExamples, TaskData
from client.node.progress import reporter

LAYER_ATTACKS = ("layer_loss", "layer_gain", "layer_likelihood_ratio")
ROUTER_ATTACKS = ("router_score", "router_likelihood_ratio", "router_read_out")
ROUTER_SHADOWS = 32
"""A router's shadow costs a fraction of a second, a layer's a training: those are the caller's to count."""
SHADOW_PARTS = 2
"""Half of the images are inside of a shadow, so each image is inside of half of them."""


@dataclass(frozen=True)
class Attacked:
    """One attack on one entry. outcome: None where it was refused, for the reason in `refused`.

    resembles: of the read-out, correlation of the router's centre with members and with non-members, means.
    """

    outcome: Outcome | None
    refused: str | None = None
    resembles: tuple[float, float] | None = None


@dataclass(frozen=True)
class Target:
    """An entry, and the images of one of its holders. delta: of the claim to compare with, 0 without one."""

    institution: str
    entry: Entry
    scenario: Scenario
    policy: Policy
    backbone: Backbone
    data: TaskData
    delta: float

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Members first."""
        split = self.data.split
        return (*split.train, *split.val, *split.test)

    @property
    def member_mask(self) -> NDArray[np.bool_]:
        """Of `samples`, who was trained on."""
        return np.arange(len(self.samples)) < len(self.data.split.train)

    @cached_property
    def shadows(self) -> Shadows:
        """Where shadow models come from."""
        about = self.entry
        return Shadows(
            self.institution,
            about.task,
            about.provenance.stage,
            self.scenario,
            self.policy,
            self.backbone,
            self.data,
            self.samples,
        )

    def examples(self, layer: AlignmentLayer) -> StoredExamples:
        """`samples`, as `layer` sees them."""
        return StoredExamples([(self.data, s) for s in self.samples], self.backbone, layer.sees_pixels)

    def losses(self, layer: AlignmentLayer, images: Sequence[int], what: str) -> Scores:
        """loss_N of these `samples`, each by itself."""
        return losses_of(layer, self.examples(layer), images, self.backbone, self.report(what))

    def report(self, what: str) -> Callable[[int, int], None]:
        """Tells how far the attack is."""
        return reporter(self.institution, f"{what} {self.entry.task}")

    def rng(self, purpose: str) -> np.random.Generator:
        """Choices of the attack itself."""
        return numpy_generator(self.scenario.seed, self.institution, "attack", purpose, self.entry.task)

    def outcome(self, score_N: Scores, members_N: NDArray[np.bool_]) -> Outcome:
        """Figures of an attack's scores."""
        return outcome_of(score_N[members_N], score_N[~members_N], delta=self.delta, rng=self.rng("halves"))


def attack_entry(target: Target, layer_shadows: int) -> dict[str, Attacked]:
    """Every attack by name. layer_shadows: an even number; 0 leaves out the layer's likelihood ratio."""
    target.data.encode(target.samples, target.backbone, target.report("encode"))
    found: dict[str, Attacked] = {}
    if target.entry.provenance.form == "identity":
        reason = "the task keeps the identity: its layer holds nothing of any image"
        found |= {name: Attacked(None, reason) for name in LAYER_ATTACKS}
    else:
        found |= attack_layer(target, layer_shadows)
    if target.entry.router:
        return found | attack_router(target)
    reason = "no router was shared: the entry is used by its name alone"
    return found | {name: Attacked(None, reason) for name in ROUTER_ATTACKS}


def attack_layer(target: Target, shadows: int) -> dict[str, Attacked]:
    """By loss, by gain over frozen SAM, and by likelihood ratio against `shadows` models."""
    layer = entry_layer(target.entry, target.backbone.geometry.channels, target.backbone)
    images = visible_images(target.examples(layer), range(len(target.samples)), target.backbone)
    members_N = target.member_mask[images]
    if members_N.all() or not members_N.any():
        reason = "members or non-members have no instance that is visible at the decoder's resolution"
        return {name: Attacked(None, reason) for name in LAYER_ATTACKS}
    own_N = target.losses(layer, images, "attack layer of")
    frozen_N = target.losses(IdentityLayer(target.backbone.geometry.channels), images, "attack layer of")
    scores = {"layer_loss": -own_N, "layer_gain": frozen_N - own_N}
    found = {name: Attacked(target.outcome(score_N, members_N)) for name, score_N in scores.items()}
    if not shadows:
        refused = Attacked(None, "no shadow models were asked for: --shadows")
        return found | {"layer_likelihood_ratio": refused}
    inside_MN = shadow_parts(len(images), SHADOW_PARTS, shadows, target.rng("layer shadows"))
    fit_MN = np.empty(inside_MN.shape)
    for number, inside_N in enumerate(inside_MN):
        chosen = [images[i] for i in indices(inside_N)]
        what = f"shadow {number + 1} of {shadows}:"
        shadow = target.shadows.layer(chosen, number, target.report(f"{what} train"))
        fit_MN[number] = fit_of(target.losses(shadow, images, f"{what} attack"))
    score_N = online(fit_of(own_N), fit_MN, inside_MN)
    return found | {"layer_likelihood_ratio": Attacked(target.outcome(score_N, members_N))}


def attack_router(target: Target) -> dict[str, Attacked]:
    """By score, by likelihood ratio, and by what can be read out of the state."""
    about, members_N = target.entry.provenance, target.member_mask
    router = entry_router(target.entry)
    f_NF = target.data.features(target.samples, target.backbone, about.features)
    fit_N = fits_of(router, f_NF, target.entry.router)
    inside_MN = shadow_parts(len(f_NF), SHADOW_PARTS, ROUTER_SHADOWS, target.rng("router shadows"))
    fit_MN = np.empty(inside_MN.shape)
    report = target.report("attack router of")
    for number, inside_N in enumerate(inside_MN):
        state = target.shadows.router(f_NF, indices(inside_N), number)
        fit_MN[number] = fits_of(router, f_NF, state)
        report(number + 1, ROUTER_SHADOWS)
    scores = {"router_score": fit_N, "router_likelihood_ratio": online(fit_N, fit_MN, inside_MN)}
    found = {name: Attacked(target.outcome(score_N, members_N)) for name, score_N in scores.items()}
    return found | {"router_read_out": attack_by_read_out(target, f_NF)}


def attack_by_read_out(target: Target, f_NF: Tensor) -> Attacked:
    """What of each image's feature the router's state gives away. f_NF: of `target.samples`."""
    kind, state, members_N = target.entry.provenance.router, target.entry.router, target.member_mask
    if not can_read_out(kind):
        return Attacked(None, f"not measurable: no read-out is written for routers of kind {kind!r}")
    outcome = target.outcome(read_out(kind, f_NF, state), members_N)
    others_MF = f_NF[~members_N]
    if len(others_MF) < 3:  # fewer say nothing about what is usual
        return Attacked(outcome)
    of_members, of_others = (
        float(resemblance(kind, some_NF, others_MF, state).mean()) for some_NF in (f_NF[members_N], others_MF)
    )
    return Attacked(outcome, resembles=(of_members, of_others))
