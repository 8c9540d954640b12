"""The cost of privacy: IoU of every form by epsilon, on one task with enough images.

The task is a phantom that is not in the results table, measured on validation images. Rounds are the
product's own (casam_core.privacy.dp_training) with default settings. `inf` keeps sampling and clipping but
adds no noise. The noise is seeded: the figures are repeatable and give no protection.
"""

from __future__ import annotations

from rich.table import Table

from casam_bench.bench import Figures, Surroundings
from casam_bench.quality.few_shot import FORMS, INSTITUTION, SEED, encoded
from casam_core.config.data_spec import DataSpec
from casam_core.config.scenario import PrivacySpec, TrainingSpec
from casam_core.model.backbones import Backbone
from casam_core.model.examples import Example
from casam_core.model.forms import build_layer, learning_rate_of
from casam_core.model.forms.affine import IdentityLayer
from casam_core.model.training import train_layer
from casam_core.model.validation import validator
from casam_core.privacy.accounting import calibrate, round_mechanism
from casam_core.privacy.dp_training import PrivateSteps
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.units import single_images
from casam_core.seeding import Draws, derive_seed, numpy_generator
from client.data.open import open_dataset

TASK, TRAIN, VALIDATE = "prostate_mr_a", 100, 16
EPSILONS = (None, 8.0, 3.0, 1.0)
DELTA = 1e-3
SPEC = TrainingSpec(instances=1)
SMALL, LARGE = ("scale_shift", "low_rank 8"), ("residual", "casam (paper)")


def examples(around: Surroundings, backbone: Backbone, images: int) -> list[Example]:
    """The first phantoms of the task."""
    spec = DataSpec(reader="phantom", phantom=TASK, images=images)
    dataset = open_dataset(spec, data_root=None, seed=SEED, institution=INSTITUTION)
    return encoded(around, backbone, TASK, dataset, dataset.samples)


def run(around: Surroundings) -> Figures:
    """The forms with few parameters at every epsilon."""
    return measure(around, around.lite_medsam(), SMALL, PrivacySpec(), EPSILONS, min(TRAIN, around.images))


def run_large(around: Surroundings) -> Figures:
    """The forms with 3.5 million parameters, in bfloat16 if the chip supports it; eight minutes per cell."""
    backbone = around.lite_medsam("auto")
    return measure(around, backbone, LARGE, PrivacySpec(), EPSILONS, min(TRAIN, around.images))


def measure(
    around: Surroundings,
    backbone: Backbone,
    forms: tuple[str, ...],
    privacy: PrivacySpec,
    epsilons: tuple[float | None, ...],
    images: int,
) -> Figures:
    """Figures `iou_FORM_EPSILON`, and the noise multiplier of each epsilon."""
    known = examples(around, backbone, images + VALIDATE)
    held_out = known[images:]
    validate = validator(held_out, backbone, SPEC, numpy_generator(SEED, "private", TASK))
    assert validate is not None  # every phantom has visible instances
    multipliers = {
        epsilon: calibrate(lambda scale: [round_mechanism(privacy, scale)], epsilon, DELTA)
        if epsilon
        else 0.0
        for epsilon in epsilons
    }
    figures = {"iou_frozen": validate(IdentityLayer(backbone.geometry.channels)).iou, "delta": DELTA}
    table = Table(
        title=f"validation IoU of {TASK}, {images} training images, {privacy.steps} steps at rate "
        f"{privacy.sampling_rate:g}, clip {privacy.clip:g}, delta {DELTA:g}; "
        f"frozen {figures['iou_frozen']:.3f}"
    )
    table.add_column("form")
    for epsilon, multiplier in multipliers.items():
        name = f"{epsilon:g}" if epsilon else "inf"
        table.add_column(f"epsilon {name}", justify="right")
        figures[f"noise_multiplier_{name}"] = multiplier
    for form in forms:
        spec = FORMS[form]
        cells = []
        for epsilon, multiplier in multipliers.items():
            name = f"{epsilon:g}" if epsilon else "inf"
            layer = build_layer(spec, backbone.geometry.channels, derive_seed(SEED, "layer", spec.form))
            noise = NoiseSource.seeded(SEED, "private", form, name)
            draws = Draws(SEED, ("private", form, name))
            train_layer(
                layer,
                backbone,
                known,
                SPEC,
                learning_rate=learning_rate_of(spec),
                rng=numpy_generator(SEED, "private", form, name),
                progress=lambda done, total: None,
                steps=PrivateSteps(single_images(images), privacy, multiplier, noise, draws),
            )
            iou = validate(layer).iou
            figures[f"iou_{form.split(' (')[0].replace(' ', '_')}_{name}"] = iou
            cells.append(f"{iou:.3f}")
            around.say(f"{form}, epsilon {name}: {iou:.3f}")
        table.add_row(form, *cells)
    around.show(table)
    return figures
