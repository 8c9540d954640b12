"""The attack benchmark's layers: over-trained without protection, and in private rounds."""

from __future__ import annotations

import numpy as np

from casam_bench import models
from casam_bench.bench import Figures, Surroundings
from casam_bench.membership.fit import fit_of, losses_of
from casam_bench.membership.likelihood_ratio import offline, online, shadow_parts
from casam_bench.membership.statistics import auc
from casam_bench.privacy.attack_rows import (
    EPSILONS,
    PARTS,
    Claims,
    Setting,
    Size,
    attack_table,
    delta_of,
    key,
    report,
    verdict,
)
from casam_bench.privacy.synthetic_site import SEED, images_of, sketch_backbone
from casam_core.config.named_parts import AlignmentSpec
from casam_core.config.scenario import PrivacySpec, TrainingSpec
from casam_core.model.backbones import Backbone
from casam_core.model.examples import Example
from casam_core.model.forms import AlignmentLayer
from casam_core.model.forms.affine import IdentityLayer
from casam_core.model.training import OpenSteps, Steps
from casam_core.privacy.accounting import calibrate, round_mechanism
from casam_core.privacy.layer_steps import PrivateSteps
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.units import single_images
from casam_core.seeding import Draws, derive_seed, numpy_generator

FORM = AlignmentSpec(form="residual", learning_rate=3e-3)
OVERTRAINING = TrainingSpec(epochs=12, batch_images=20, instances=1)
PRIVATE = PrivacySpec(steps=25, sampling_rate=0.1, clip=1.0)
CONTROL = Setting("control (open, over-trained)")


def private_settings(delta: float, members: int) -> list[Setting]:
    """Private rounds: clipped and sampled without noise, and with the noise of each epsilon."""
    return [Setting("private rounds without noise")] + [
        Setting(
            f"epsilon {epsilon:g}",
            epsilon,
            calibrate(lambda scale: [round_mechanism(PRIVATE, scale, members)], epsilon, delta),
        )
        for epsilon in EPSILONS
    ]


def measure(around: Surroundings, size: Size, claims: Claims) -> Figures:
    """Every setting: a target, and shadows with the same training."""
    backbone = sketch_backbone(around.threads)
    known = images_of(0, size.members + size.others)
    inside_MN = shadow_parts(len(known), PARTS, size.shadows, numpy_generator(SEED, "shadows"))
    delta = delta_of(size.members)

    def losses(layer: AlignmentLayer) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return losses_of(layer, known, range(len(known)), backbone, lambda done, total: None)

    frozen_N = losses(IdentityLayer(backbone.geometry.channels))
    table = attack_table(
        f"layers, {size.members} members and {size.others} others, {size.shadows} shadows, delta {delta:g}; "
        f"loss of others under frozen SAM {frozen_N[size.members :].mean():.2f}",
        "loss of members / others",
    )
    figures: Figures = {"layer_delta": delta}
    for setting in [CONTROL, *private_settings(delta, size.members)]:
        losses_N = losses(train(setting, backbone, known[: size.members], "target"))
        fit_MN = np.empty(inside_MN.shape)
        for number, inside_N in enumerate(inside_MN):
            images = [known[i] for i in np.flatnonzero(inside_N)]
            fit_MN[number] = fit_of(losses(train(setting, backbone, images, f"shadow {number}")))
            around.say(f"layer, {setting.name}: shadow {number + 1}/{size.shadows}")
        fit_N = fit_of(losses_N)
        scores = {
            "loss": -losses_N,
            "gain": frozen_N - losses_N,
            "likelihood ratio": online(fit_N, fit_MN, inside_MN),
            "likelihood ratio, offline": offline(fit_N, fit_MN, inside_MN),
        }
        found = {name: verdict(score_N, size.members, delta) for name, score_N in scores.items()}
        of_members, of_others = losses_N[: size.members], losses_N[size.members :]
        cell = f"{of_members.mean():.2f} / {of_others.mean():.2f}"
        figures |= report(table, "layer", setting, found, claims, cell)
        figures[f"auc_layer_between_others_{key(setting.name)}"] = auc(-of_others[::2], -of_others[1::2])
        figures[f"loss_of_others_{key(setting.name)}"] = float(of_others.mean())
    around.show(table)
    return figures


def train(setting: Setting, backbone: Backbone, images: list[Example], who: str) -> AlignmentLayer:
    """A layer trained on these images, always from the same initial weights."""
    seed, rng = derive_seed(SEED, "layer"), numpy_generator(SEED, "attack", setting.name, who)
    steps: Steps = OpenSteps()
    if setting is not CONTROL:
        noise = NoiseSource.seeded(SEED, "attack", setting.name, who)
        draws = Draws(SEED, ("attack", setting.name, who))
        steps = PrivateSteps(single_images(len(images)), PRIVATE, setting.noise, noise, draws)
    return models.learned(backbone, images, OVERTRAINING, seed=seed, rng=rng, form=FORM, steps=steps)[0]
