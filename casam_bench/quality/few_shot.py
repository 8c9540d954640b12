"""Few-shot quality: IoU of each form of Alignment Layer after 10, 30 and 100 steps, and after many more.

The tasks are phantoms that are not in the results table, measured on validation images. These figures chose
the default form. A real task checks whether phantoms are misleading; it had no part in the choice. Every form
trains with the product's own loop at its own learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

import numpy as np

from casam_bench.bench import Figures, Surroundings, table_of
from casam_core.config.data_spec import DataSpec
from casam_core.config.named_parts import AlignmentSpec
from casam_core.config.scenario import TrainingSpec
from casam_core.errors import RunError
from casam_core.model.backbones import Backbone
from casam_core.model.examples import Example
from casam_core.model.forms import LowRankSpec, build_layer, learning_rate_of, weights_of
from casam_core.model.forms.affine import IdentityLayer
from casam_core.model.training import train_layer
from casam_core.model.validation import Validate, validator
from casam_core.seeding import derive_seed, numpy_generator
from client.data.open import open_dataset

SEED, INSTITUTION = 7, "bench"
TASKS = ("histology", "prostate_mr_a", "glomeruli_a")
REAL = "dsb2018_fluorescence"
"""A folder in --data-root, as in the scenario nuclei."""
STEPS = (10, 30, 100)
LONG_STEPS = (100, 300, 1000)
TRAIN, VALIDATE = 20, 8
SPEC = TrainingSpec(epochs=1000, batch_images=1, instances=4)
FORMS = {
    "casam (paper)": AlignmentSpec(form="casam"),
    "residual": AlignmentSpec(form="residual"),
    "low_rank 1": LowRankSpec(rank=1),
    "low_rank 8": LowRankSpec(rank=8),
    "low_rank 32": LowRankSpec(rank=32),
    "scale_shift": AlignmentSpec(form="scale_shift"),
}
LARGE_AND_SMALL = {name: FORMS[name] for name in ("low_rank 8", "scale_shift", "residual", "casam (paper)")}


@dataclass(frozen=True)
class Curve:
    """iou: by steps. bytes: of the weights. seconds: per step."""

    iou: dict[int, float]
    bytes: int
    seconds: float


def examples(around: Surroundings, backbone: Backbone, task: str) -> list[Example]:
    """Training images first, then validation images; embeddings are stored and used again."""
    spec = DataSpec(reader="phantom", phantom=task, images=TRAIN + VALIDATE)
    if task == REAL:
        spec = DataSpec(path=REAL)
    dataset = open_dataset(spec, data_root=around.data_root, seed=SEED, institution=INSTITUTION)
    samples = dataset.samples
    if task == REAL:  # it has more images than needed
        chosen = numpy_generator(SEED, "few-shot", task).permutation(len(samples))
        samples = tuple(samples[i] for i in sorted(chosen[: TRAIN + VALIDATE]))
    around.say(f"{task}: encode {len(samples)} images")
    return around.encoded(backbone, dataset, samples)


def learn(
    spec: AlignmentSpec,
    backbone: Backbone,
    known: Sequence[Example],
    validate: Validate,
    steps: Sequence[int],
) -> Curve:
    """Train once and measure after each of `steps`."""
    layer = build_layer(spec, backbone.geometry.channels, derive_seed(SEED, "layer", spec.form))
    iou: dict[int, float] = {}
    measuring = 0.0
    start = monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal measuring
        if done in steps:
            begun = monotonic()
            iou[done] = validate(layer).iou
            measuring += monotonic() - begun

    training, rng = SPEC.model_copy(update={"max_steps": max(steps)}), numpy_generator(SEED, "few-shot")
    rate = learning_rate_of(spec)
    train_layer(layer, backbone, known, training, learning_rate=rate, rng=rng, progress=progress)
    seconds = (monotonic() - start - measuring) / max(steps)
    return Curve(iou, sum(weights.nbytes for weights in weights_of(layer).values()), seconds)


def run(around: Surroundings) -> Figures:
    """Every form on every task; figures are means over tasks."""
    return measure(around, TASKS, FORMS, STEPS)


def run_real(around: Surroundings) -> Figures:
    """Four forms on real nuclei. Raises RunError without --data-root."""
    if around.data_root is None:
        raise RunError(f"few-shot-real: expected --data-root FOLDER with a folder {REAL} in it, found none")
    return measure(around, (REAL,), LARGE_AND_SMALL, STEPS)


def run_long(around: Surroundings) -> Figures:
    """Four forms after many steps, on one task."""
    return measure(around, TASKS[:1], LARGE_AND_SMALL, LONG_STEPS)


def measure(
    around: Surroundings, tasks: Sequence[str], forms: Mapping[str, AlignmentSpec], steps: Sequence[int]
) -> Figures:
    """Every form trained once on every task and measured after each of `steps`; means over tasks."""
    backbone = around.lite_medsam()
    title = f"validation IoU by number of steps of 1 image x 4 instances ({TRAIN} images)"
    table = table_of(title, ("task", "form", *map(str, steps), "bytes", "s / step"), left=2)
    curves: dict[str, list[Curve]] = {name: [] for name in forms}
    frozen = []
    for task in tasks:
        known = examples(around, backbone, task)
        held_out = known[TRAIN:]
        rng = numpy_generator(SEED, "few-shot", task)
        validate = validator(held_out, backbone, SPEC, rng)
        assert validate is not None  # every phantom has visible instances
        frozen.append(validate(IdentityLayer(backbone.geometry.channels)).iou)
        table.add_row(task, "frozen SAM", *[f"{frozen[-1]:.3f}"] * len(steps), "0", "-")
        for name, spec in forms.items():
            curve = learn(spec, backbone, known[:TRAIN], validate, steps)
            curves[name].append(curve)
            cells = [f"{curve.iou[n]:.3f}" for n in steps]
            table.add_row(task, name, *cells, str(curve.bytes), f"{curve.seconds:.2f}")
            around.say(f"{task}, {name}: {' '.join(cells)}")
    around.show(table)
    figures = {"iou_frozen": float(np.mean(frozen))}
    for name, learned in curves.items():
        key = name.split(" (")[0].replace(" ", "_")
        figures |= {f"iou_{key}_{n}": float(np.mean([c.iou[n] for c in learned])) for n in steps}
        figures[f"bytes_{key}"] = learned[0].bytes
        figures[f"seconds_{key}"] = float(np.mean([c.seconds for c in learned]))
    return figures
