"""An institution attacks its own releases with its own images: can an attacker who holds these images tell
which of them were used in training?

Members are the task's training images; non-members are its validation and test images. Non-members have no
part in the weights, but a scenario may use validation images for early stopping or the fallback to the
identity. The attacker is strong: it knows every setting, has the masks, and can train shadow models on the
site's images. The results depend on private images, so the institution decides about their publication.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from casam_bench.membership.fit import fit_of, fits_of, losses_of, visible_images
from casam_bench.membership.inversion import can_read_out, read_out, resemblance
from casam_bench.membership.likelihood_ratio import online, shadow_parts
from casam_bench.membership.shadows import Shadows, indices
from casam_bench.membership.statistics import AttackFigures, Scores, attack_figures
from casam_core.bank.entry_file import Entry
from casam_core.bank.inference import entry_layer
from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.model.backbones import Backbone
from casam_core.model.forms import AlignmentLayer
from casam_core.model.forms.affine import IdentityLayer
from casam_core.routing.routers import Router
from casam_core.seeding import numpy_generator
from client.data.dataset import Sample
from client.data.task_data import StoredExamples, TaskData
from client.node.worktime import reporter

LAYER_ATTACKS = ("layer_loss", "layer_gain", "layer_likelihood_ratio")
ROUTER_ATTACKS = ("router_score", "router_likelihood_ratio", "router_read_out")
ROUTER_SHADOWS = 32
"""Shadow routers per entry. One costs a fraction of a second; a shadow layer costs a whole training."""
SHADOW_PARTS = 2
"""A shadow trains on half of the images, so half of the shadows contain a given image."""


@dataclass(frozen=True)
class Attacked:
    """One attack on one entry. outcome: None if the attack was not possible, for the reason in `refused`.

    resembles: for the read-out, mean correlations of the router's centre with members and with non-members.
    """

    outcome: AttackFigures | None
    refused: str | None = None
    resembles: tuple[float, float] | None = None


@dataclass(frozen=True)
class Target:
    """An entry, and the images of one of its holders. delta: of the claim; 0 without a claim."""

    institution: str
    entry: Entry
    scenario: Scenario
    policy: Policy
    backbone: Backbone
    data: TaskData
    delta: float

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All images of the task, members first."""
        split = self.data.split
        return (*split.train, *split.val, *split.test)

    @property
    def member_mask(self) -> NDArray[np.bool_]:
        """For each of `samples`: whether it was used in training."""
        return np.arange(len(self.samples)) < len(self.data.split.train)

    @cached_property
    def shadows(self) -> Shadows:
        """The maker of shadow models."""
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
        """`samples` as inputs of `layer`."""
        return StoredExamples([(self.data, s) for s in self.samples], self.backbone, layer.sees_pixels)

    def losses(self, layer: AlignmentLayer, images: Sequence[int], what: str) -> Scores:
        """loss_N of the `samples` with these indices, one image at a time."""
        return losses_of(layer, self.examples(layer), images, self.backbone, self.report(what))

    def report(self, what: str) -> Callable[[int, int], None]:
        """A callback that prints the progress of the attack."""
        return reporter(self.institution, f"{what} {self.entry.task}")

    def rng(self, purpose: str) -> np.random.Generator:
        """Random generator for the attack's own choices."""
        return numpy_generator(self.scenario.seed, self.institution, "attack", purpose, self.entry.task)

    def outcome(self, score_N: Scores, members_N: NDArray[np.bool_]) -> AttackFigures:
        """Figures of an attack's scores."""
        return attack_figures(
            score_N[members_N], score_N[~members_N], delta=self.delta, rng=self.rng("halves")
        )


def attack_entry(target: Target, layer_shadows: int) -> dict[str, Attacked]:
    """Every attack by name. layer_shadows: an even number; with 0, no likelihood ratio for the layer."""
    target.data.encode(target.samples, target.backbone, target.report("encode"))
    found: dict[str, Attacked] = {}
    if target.entry.provenance.form == "identity":
        reason = "the task has the identity as its layer, which contains no information about images"
        found |= {name: Attacked(None, reason) for name in LAYER_ATTACKS}
    else:
        found |= attack_layer(target, layer_shadows)
    if target.entry.router:
        return found | attack_router(target)
    reason = "no router was shared; the entry is used only by its task name"
    return found | {name: Attacked(None, reason) for name in ROUTER_ATTACKS}


def attack_layer(target: Target, shadows: int) -> dict[str, Attacked]:
    """Attacks by loss, by gain over frozen SAM, and by likelihood ratio with `shadows` shadow models."""
    layer = entry_layer(target.entry, target.backbone.geometry.channels, target.backbone)
    images = visible_images(target.examples(layer), range(len(target.samples)), target.backbone)
    members_N = target.member_mask[images]
    if members_N.all() or not members_N.any():
        reason = "no member or no non-member has an instance that is visible at the decoder's resolution"
        return {name: Attacked(None, reason) for name in LAYER_ATTACKS}
    own_N = target.losses(layer, images, "attack layer of")
    frozen_N = target.losses(IdentityLayer(target.backbone.geometry.channels), images, "attack layer of")
    scores = {"layer_loss": -own_N, "layer_gain": frozen_N - own_N}
    found = {name: Attacked(target.outcome(score_N, members_N)) for name, score_N in scores.items()}
    if not shadows:
        refused = Attacked(None, "there are no shadow models, because --shadows is 0")
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
    """Attacks by score, by likelihood ratio, and by the read-out of the router's state."""
    about, members_N = target.entry.provenance, target.member_mask
    router = target.shadows.plain_router
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
    return found | {"router_read_out": attack_by_read_out(target, router, f_NF)}


def attack_by_read_out(target: Target, router: Router, f_NF: Tensor) -> Attacked:
    """Attack by the share of each image's feature that the router's state reveals. f_NF: `target.samples`."""
    kind, state, members_N = target.entry.provenance.router, target.entry.router, target.member_mask
    if not can_read_out(kind):
        return Attacked(None, f"not measurable: there is no read-out for routers of kind {kind!r}")
    outcome = target.outcome(read_out(kind, router, f_NF, state), members_N)
    others_MF = f_NF[~members_N]
    if len(others_MF) < 3:  # too few for a mean and a deviation
        return Attacked(outcome)
    of_members, of_others = (
        float(resemblance(kind, router, some_NF, others_MF, state).mean())
        for some_NF in (f_NF[members_N], others_MF)
    )
    return Attacked(outcome, resembles=(of_members, of_others))
