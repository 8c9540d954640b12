"""Private layers: how much of the open gain a task keeps at a total epsilon, router included.

Tasks: phantoms of HELD_OUT, with a library that was made without them, and with --data-root every folder of
real images, with the shipped library. Each seed draws other training images; all others test. A private task
spends its whole epsilon as the product plans it: the router its share, the layer the rest. Finished cells are
kept in the folder of the benchmark, so an interrupted measurement goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from casam_bench import models
from casam_bench.bench import Figures, Surroundings
from casam_bench.quality.frame_quality import real_tasks
from casam_bench.quality.layer_seconds import real_set
from casam_core.config.data_spec import DataSpec
from casam_core.config.policy import Policy
from casam_core.config.scenario import InstitutionSpec, PrivacySpec, Scenario, TrainingSpec
from casam_core.files import append_record, read_records, write_atomic
from casam_core.model.backbones import Backbone
from casam_core.model.examples import Example
from casam_core.model.forms import AlignmentLayer, Weights, build_layer, set_weights
from casam_core.model.forms.affine import IdentityLayer
from casam_core.model.layer_library import IDENTITY, JOINT, LayerLibrary
from casam_core.model.training import Learner, OpenSteps, Steps, draw_instances
from casam_core.model.validation import BestEpoch, iou_and_estimate, validator
from casam_core.privacy.dp_training import flat
from casam_core.privacy.layer_steps import PrivateSteps, add_gradients
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.units import single_images
from casam_core.seeding import Draws, derive_seed, numpy_generator
from client.data.open import open_dataset
from client.dp.plan import TaskPlan

SIZES, TEST_IMAGES, SEEDS, DELTA = (24, 100), 12, 3, 1e-3
"""Training images of a task, test images, draws."""
HELD_OUT = ("spleen_ct", "histology", "polyp")
EPSILONS = (8.0, 3.0, 1.0)
GAINED = 0.03
"""Tasks whose open layer gains less than this in IoU have no share of the open gain."""
INSTITUTION = "bench"
SPEC = TrainingSpec(batch_images=1, instances=4, epochs=6)
VALIDATION = 5
"""Images of the open layer that choose its epoch."""


@dataclass(frozen=True)
class Task:
    """Images of one task, as the frozen encoder sees them, and the library for it. images: for training."""

    name: str
    examples: Sequence[Example]
    images: int
    library: LayerLibrary
    backbone: Backbone

    def parts(self, seed: int) -> tuple[list[Example], list[Example]]:
        """Training and test images of one seed."""
        order = numpy_generator(seed, "private-layers", self.name).permutation(len(self.examples))
        shuffled = [self.examples[i] for i in order]
        return shuffled[: self.images], shuffled[self.images : self.images + TEST_IMAGES]


def frozen(task: Task, seed: int) -> AlignmentLayer:
    """Nothing is learned."""
    return IdentityLayer(task.backbone.geometry.channels)


def opened(task: Task, seed: int) -> AlignmentLayer:
    """Without privacy: the epoch that is best on a few of the images."""
    train, _ = task.parts(seed)
    validate = validator(
        train[:VALIDATION], task.backbone, SPEC, numpy_generator(seed, "validate", task.name)
    )
    assert validate is not None  # every image has a visible instance
    best = BestEpoch(validate, None)
    layer = learn(task, train[VALIDATION:], OpenSteps(None, best), seed)
    best.restore(layer)
    return layer


def private(spec: PrivacySpec, epsilon: float) -> Callable[[Task, int], AlignmentLayer]:
    """With noise: the round of an institution with this budget."""
    budget = {"epsilon": epsilon, "epsilon_metrics": epsilon, "delta": DELTA}
    policy = Policy.model_validate(
        {"adapter": {"noise": "dp"}, "router": {"noise": "dp"}, "metrics": "noisy", "budget": budget}
    )
    phantom = {"polyp": {"reader": "phantom", "phantom": "polyp"}}
    scenario = Scenario(
        name="bench",
        stream=["polyp"],
        institutions=[InstitutionSpec.model_validate({"name": "a", "data": phantom})],
        privacy=spec,
    )

    def learned(task: Task, seed: int) -> AlignmentLayer:
        train, _ = task.parts(seed)
        plan = TaskPlan(scenario, policy, len(train))
        noise = NoiseSource.seeded(seed, task.name, spec.method, str(epsilon))
        draws = Draws(seed, (task.name, spec.method))
        start = task.library.starts()[JOINT] if spec.method == "public_start" else None
        steps = PrivateSteps(single_images(len(train)), spec, plan.layer_noise, noise, draws, task.library)
        return learn(task, train, steps, seed, start)

    return learned


def learn(
    task: Task, examples: Sequence[Example], steps: Steps, seed: int, start: Weights | None = None
) -> AlignmentLayer:
    """A layer of the default form, trained as an institution does."""
    initial, rng = derive_seed(seed, "layer", task.name), numpy_generator(seed, "learn", task.name)
    learned = models.learned(task.backbone, examples, SPEC, seed=initial, rng=rng, start=start, steps=steps)
    return learned[0]


def share_along(task: Task, seed: int) -> float:
    """How much of the square of the mean gradient lies along the library's directions, at frozen SAM."""
    train, _ = task.parts(seed)
    layer = build_layer(models.DEFAULT_FORM, task.backbone.geometry.channels, 0)
    names = list(task.library.joint)
    set_weights(layer, task.library.starts()[IDENTITY])
    learner = Learner(layer, task.backbone, train, SPEC, 0.0, numpy_generator(seed, "share", task.name))
    free, rows = dict(layer.named_parameters()), []
    for unit in single_images(len(train)):
        layer.zero_grad()
        add_gradients(learner, Draws(seed, ("share", task.name)), 1, unit)
        row_D = flat([part for name in names if (part := free[name].grad) is not None])
        rows.append(row_D / max(float(np.linalg.norm(row_D)), 1e-12))
    mean_D = np.mean(rows, axis=0)
    return float(np.linalg.norm(task.library.rows(names) @ mean_D) / np.linalg.norm(mean_D)) ** 2


WAYS: dict[str, Callable[[Task, int], AlignmentLayer]] = {"frozen": frozen, "open": opened}


def ways() -> dict[str, Callable[[Task, int], AlignmentLayer]]:
    """By name, every way to a layer."""
    methods = (PrivacySpec(method="dp_sgd"), PrivacySpec(method="public_start"))
    noisy = {f"{m.method} {epsilon:g}": private(m, epsilon) for m in methods for epsilon in EPSILONS}
    return {**WAYS, **noisy}


def iou_of(task: Task, layer: AlignmentLayer, seed: int) -> float:
    """Mean IoU of the test images, boxes, at the decoder's resolution."""
    spec, found = SPEC.model_copy(update={"instances": 8}), []
    for number, example in enumerate(task.parts(seed)[1]):
        drawn = draw_instances(example, task.backbone, spec, "box", numpy_generator(seed, "test", number))
        if drawn is not None:
            found.append(float(iou_and_estimate(layer.eval(), task.backbone, drawn)[0]))
    return float(np.mean(found))


Known = dict[tuple[str, int, str, int], float]
"""IoU by task, images, way and draw."""


@dataclass(frozen=True)
class Cells:
    """IoU by (task, images, way, seed), kept in a file."""

    path: Path

    @cached_property
    def known(self) -> Known:
        """The cells of this and earlier measurements."""
        records = (record for record, _ in read_records(self.path))
        return {(r["task"], r["images"], r["way"], r["seed"]): r["iou"] for r in records}

    def measured(self, task: Task, way: str, seed: int, make: Callable[[Task, int], AlignmentLayer]) -> float:
        """One cell; learned and tested if it is not known yet."""
        cell = (task.name, task.images, way, seed)
        if cell not in self.known:
            iou = iou_of(task, make(task, seed), seed)
            names = ("task", "images", "way", "seed")
            append_record(self.path, {**dict(zip(names, cell, strict=True)), "iou": iou})
            self.known[cell] = iou
        return self.known[cell]


def held_out_library(around: Surroundings, backbone: Backbone) -> LayerLibrary:
    """A library that was made without the phantoms of HELD_OUT; kept in the folder of the benchmark."""
    path = around.home / "library-without-held-out.json"
    if not path.is_file():
        write_atomic(path, around.engines.layer_library(backbone, HELD_OUT, around.say))
    return LayerLibrary.from_bytes(path.read_bytes())


def tasks_of(around: Surroundings, backbone: Backbone, images: int) -> list[Task]:
    """All tasks that have as many training images and TEST_IMAGES more."""

    def encoded(name: str, spec: DataSpec, library: LayerLibrary) -> Iterator[Task]:
        dataset = open_dataset(spec, data_root=around.data_root, seed=7, institution=INSTITUTION)
        if len(dataset.samples) < images + TEST_IMAGES:
            return
        around.say(f"encode {name}")
        shown = around.encoded(backbone, dataset, dataset.samples[: images + TEST_IMAGES])
        yield Task(name, shown, images, library, backbone)

    held_out, shipped = held_out_library(around, backbone), models.shipped_library()
    phantoms = {
        name: DataSpec(reader="phantom", phantom=name, images=images + TEST_IMAGES) for name in HELD_OUT
    }
    found = [task for name, spec in phantoms.items() for task in encoded(name, spec, held_out)]
    if around.data_root is not None:
        real = {name: real_set(name) for name in real_tasks(around.data_root)}
        found += [task for name, spec in real.items() for task in encoded(name, spec, shipped)]
    return found


def run(around: Surroundings) -> Figures:
    """Every way on every task, a draw after the other; then the table of what is measured."""
    backbone = around.lite_medsam(encoder="fast")
    cells = Cells(around.home / "private-layers.jsonl")
    tasks = [task for images in SIZES for task in tasks_of(around, backbone, images)]
    for task in tasks:
        around.say(f"{task.name}: {share_along(task, 0):.2f} of the mean gradient along public directions")
    for seed in range(SEEDS):
        for task in tasks:
            for way, make in ways().items():
                iou = cells.measured(task, way, seed, make)
                around.say(f"{task.name}, {task.images} images, draw {seed}, {way}: {iou:.3f}")
    around.say(table_of(cells))
    return {
        f"{name}_{s.kind}_{s.way.replace(' ', '_')}_{s.images}": value
        for s in standings(cells)
        for name, value in (("share", float(np.mean(s.shares))), ("worst_points", 100 * s.worst))
    }


# --- What is measured so far


@dataclass(frozen=True)
class Standing:
    """A way on all tasks of a kind, over the draws in which all of them were measured.

    shares: of the open gain, by draw, the mean of the tasks with an open gain. worst: the smallest gain of a
    task (mean of its draws) over frozen SAM.
    """

    images: int
    kind: str
    way: str
    tasks: int
    iou: float
    shares: tuple[float, ...]
    worst: float


def standings(cells: Cells) -> list[Standing]:
    """By images, kind of task and way, in the order in which they were first measured."""
    known = cells.known
    groups = dict.fromkeys((images, kind_of(task), way) for task, images, way, _ in known)
    return [s for group in groups if (s := standing(known, *group)) is not None]


def kind_of(task: str) -> str:
    """Phantoms have the library that was made without them, real sets the shipped one."""
    return "synthetic" if task in HELD_OUT else "real"


def standing(known: Known, images: int, kind: str, way: str) -> Standing | None:
    """One way; None if no draw has all tasks, or no task an open gain."""
    own = {(task, seed) for task, i, w, seed in known if (i, kind_of(task), w) == (images, kind, way)}
    tasks = sorted({task for task, _ in own})
    draws = [
        seed
        for seed in range(SEEDS)
        if all((t, images, w, seed) in known for t in tasks for w in (way, *WAYS))
    ]
    if not draws:
        return None
    frozen_TS, open_TS, way_TS = (
        np.array([[known[task, images, w, seed] for seed in draws] for task in tasks]) for w in (*WAYS, way)
    )
    gained_TS = open_TS - frozen_TS
    gaining_T = gained_TS.mean(1) >= GAINED
    if not gaining_T.any():
        return None
    shares_S = ((way_TS - frozen_TS) / gained_TS)[gaining_T].mean(0)
    worst = float((way_TS - frozen_TS).mean(1).min())
    return Standing(images, kind, way, len(tasks), float(way_TS.mean()), tuple(shares_S.tolist()), worst)


def table_of(cells: Cells) -> str:
    """Markdown: a line per way."""
    lines = [
        "| images | tasks | way, epsilon | draws | IoU | share of open gain (range) | worst task, points |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for s in standings(cells):
        share, low, high = (f"{100 * f(s.shares):.0f}" for f in (np.mean, np.min, np.max))
        lines.append(
            f"| {s.images} | {s.tasks} {s.kind} | {s.way} | {len(s.shares)} | {s.iou:.3f} "
            f"| {share} % ({low} to {high}) | {100 * s.worst:+.1f} |"
        )
    return "\n".join(lines)
