"""Ways of learning a task, compared at equal processor seconds of training.

A cell is one way, one task and one seed. It trains once; after each of its budgets of seconds the layer is
measured on validation and test images, and counts if it passes the fallback's test on the validation images.
Cells are files, so the command can be stopped and started again, also twice at the same time.

What counts: processor seconds of training steps, also those of the encoder if a way has to run it in every
step. What does not count: the one encoding of each image, which all ways share, the measurements, and the
choice of a start (its seconds are in the cell).

The phantoms are not in the results table. Real tasks (--data-root) had no part in a choice.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from casam_bench.bench import Figures, Surroundings, csv_of
from casam_bench.models import shipped_library
from casam_bench.quality.layer_rules import calibrations, floors
from casam_bench.quality.layer_tables import Row, figures_of, rows_of, table_of_ways
from casam_bench.timing import clock
from casam_core.config.data_spec import DataSpec
from casam_core.config.named_parts import AlignmentSpec, LoraSpec, LowRankDecoderSpec, LowRankSpec
from casam_core.config.scenario import TrainingSpec
from casam_core.files import write_atomic
from casam_core.model.backbones import Backbone
from casam_core.model.examples import Example
from casam_core.model.forms import (
    AlignmentLayer,
    build_layer,
    learning_rate_of,
    weights_of,
)
from casam_core.model.forms.affine import IdentityLayer
from casam_core.model.frame import frame_of
from casam_core.model.prompts import Prompts, jittered_boxes, tight_boxes
from casam_core.model.training import Learner, OpenSteps
from casam_core.model.validation import take_best, validator
from casam_core.seeding import derive_seed, numpy_generator
from client.data.dataset import Sample
from client.data.open import open_dataset
from client.data.splits import in_time

TRAIN, VALIDATE, TEST, INSTANCES = 24, 6, 12, 4
"""Images of each task; most instances of an image that is measured."""
POOL = TRAIN + VALIDATE + TEST
"""The images of a task; every seed divides them anew."""
JITTER, PROMPTS = 0.1, ("tight", "jittered")
SPEC = TrainingSpec(epochs=10**6, batch_images=1, instances=4)
PHANTOM_TASKS = ("histology", "glomeruli_a")
"""On these the recipe was chosen."""
REAL_TASKS = {
    "dsb2018_fluorescence": "instances",
    "dsb2018_histology_purple": "instances",
    "dsb2018_histology_white": "instances",
    "dic_hela_cells": "classes",
    "wbc_cellavision": "classes",
    "wbc_jtsc": "classes",
}
"""Folders in --data-root, and how their masks are read. Nothing was chosen on them."""
SEQUENCES = ("dic_hela_cells",)
"""Frames in time order: training, validation and test images follow one another."""
KINDS = {"real": tuple(REAL_TASKS), "phantom": PHANTOM_TASKS}
SEEDS = (0, 1, 2, 3, 4)

Measured = list[list[tuple[float, float]]]
"""By image, by instance: the decoder's estimate of the IoU, and the IoU."""


@dataclass(frozen=True)
class Way:
    """One way of learning a task. build: (backbone, seed) -> layer. from_library: it starts as
    `alignment.start = "library"` says, with what the product ships."""

    build: Callable[[Backbone, int], AlignmentLayer]
    learning_rate: float
    from_library: bool = False


def form(spec: AlignmentSpec) -> Way:
    """A form of the product, at its own learning rate where the section has none."""
    return Way(
        lambda backbone, seed: build_layer(spec, backbone.geometry.channels, seed, backbone),
        learning_rate_of(spec),
        spec.start == "library",
    )


EVERYWHERE: dict[str, Way] = {
    "low_rank 8": form(LowRankSpec()),
    "low_rank_decoder 8": form(LowRankDecoderSpec()),
}
ON_REAL: dict[str, Way] = {
    "residual": form(AlignmentSpec(form="residual")),
    "mask decoder": form(AlignmentSpec(form="decoder")),
    "LoRA on the encoder": form(LoraSpec()),
    "low_rank 8, library": form(LowRankSpec(start="library")),
}
"""LoRA encodes an image in every step. The library is made from phantoms, so none says what it is worth."""
ON_PHANTOMS: dict[str, Way] = {
    "low_rank 4": form(LowRankSpec(rank=4)),
    "low_rank 16": form(LowRankSpec(rank=16)),
    "low_rank 64": form(LowRankSpec(rank=64)),
    "low_rank 8, rate 1e-3": form(LowRankSpec(learning_rate=1e-3)),
    "low_rank 8, rate 1e-2": form(LowRankSpec(learning_rate=1e-2)),
}
WAYS = EVERYWHERE | ON_REAL | ON_PHANTOMS
"""The first is the one with which the others are compared."""

PLAN = {"real": (*EVERYWHERE, *ON_REAL), "phantom": (*EVERYWHERE, *ON_PHANTOMS)}
"""By kind of tasks: the ways. Those of one task and seed take turns, so that other work on the machine slows
all of them."""
BUDGETS = (10.0, 30.0)
"""Processor seconds of training, after which a layer is measured."""


@dataclass(frozen=True)
class Images:
    """The images of one task and seed. seen: embeddings, or pixels for a layer that sees pixels."""

    train: Sequence[Example]
    val: Sequence[Example]
    test: Sequence[Example]


def run(around: Surroundings) -> Figures:
    """The trials of PLAN; their rows are also in layer-seconds.csv in the folder of cells.

    Figures: see `figures_of`, `floors` and `calibrations`.
    """
    backbone = around.lite_medsam(precision="auto", encoder="fast")
    default = next(iter(WAYS))
    cells = [
        cell
        for kind, tasks in KINDS.items()
        if around.data_root or kind != "real"
        for seed in SEEDS
        for task in tasks
        for way in PLAN[kind]
        if (cell := kept_or_learned(around, backbone, way, task, seed)) is not None
    ]
    figures, rows = Figures(), []
    for kind, known in KINDS.items():
        if some := [cell for cell in cells if cell["task"] in known]:
            rows += (own := rows_of(some, kind))
            around.say(table_of_ways(own, default))
            figures |= figures_of(own, default, kind)
            own_of_default = [cell for cell in some if cell["way"] == default]
            figures |= floors(own_of_default, kind, around.show)
            figures |= calibrations(own_of_default, kind, around.show)
    write_atomic(around.home / "layer-seconds" / "layer-seconds.csv", csv_of(Row, rows).encode())
    return figures


def kept_or_learned(
    around: Surroundings, backbone: Backbone, way: str, task: str, seed: int
) -> dict[str, Any] | None:
    """A cell from its file, or learned now; None if another process is learning it."""
    return kept_or_made(
        around.home / "layer-seconds" / f"{task}-{seed}-{way.replace(' ', '_')}.json",
        lambda: learn(around, backbone, way, task, seed),
    )


def kept_or_made(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """What a file holds, or what is made now and kept there; None if another process is making it."""
    with alone(path.with_name(f".{path.name}.lock")) as free:
        if not path.exists() and free:
            write_atomic(path, json.dumps(make()).encode())
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


@contextlib.contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether no other process is in this block with the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)


def learn(around: Surroundings, backbone: Backbone, way: str, task: str, seed: int) -> dict[str, Any]:
    """Train once and measure after each budget."""
    layer = WAYS[way].build(backbone, derive_seed(seed, "layer", task))
    embeddings = images_of(around, backbone, task, seed, pixels=False)
    seen = images_of(around, backbone, task, seed, pixels=True) if layer.sees_pixels else embeddings
    frozen = kept_or_made(
        around.home / "layer-seconds" / f"{task}-{seed}-frozen.json",
        lambda: dict(judged(IdentityLayer(backbone.geometry.channels), backbone, embeddings)),
    )
    cell: dict[str, Any] = {
        "way": way,
        "task": task,
        "seed": seed,
        "bytes": sum(value.nbytes for value in weights_of(layer).values()),
        "frozen": frozen,
        "at": {},
    }
    if WAYS[way].from_library:
        cell["chosen_in"] = start_of_library(layer, backbone, embeddings.val, around.threads)
    learner = Learner(
        layer, backbone, seen.train, SPEC, WAYS[way].learning_rate, numpy_generator(seed, "layer-seconds")
    )
    for budget, steps in trained(learner, BUDGETS, around.threads):
        cell["at"][f"{budget:g}"] = {"steps": steps, **judged(layer, backbone, seen)}
    around.say(f"{task}, seed {seed}, {way}: {steps} steps")
    return cell


def start_of_library(
    layer: AlignmentLayer, backbone: Backbone, val: Sequence[Example], threads: int
) -> float:
    """Give the layer the start that is best on validation images; the processor seconds that this took."""
    library, now = shipped_library(), clock(threads)
    begun, judge = now(), validator(val, backbone, SPEC, numpy_generator(0, "start"))
    assert judge is not None  # every task has instances
    take_best(layer, list(library.starts().values()), judge)
    return now() - begun


def trained(learner: Learner, budgets: Sequence[float], threads: int) -> Iterator[tuple[float, int]]:
    """(budget, steps so far) whenever a budget of processor seconds is used up; the layer is then ready."""
    used, done, now = 0.0, 0, clock(threads)
    steps = OpenSteps()(learner)
    for budget in budgets:
        learner.layer.train()
        while used < budget:
            begun = now()
            done = next(steps).done
            used += now() - begun
        learner.layer.eval()
        yield budget, done


def images_of(around: Surroundings, backbone: Backbone, task: str, seed: int, *, pixels: bool) -> Images:
    """The images of a task for one seed."""
    spec = DataSpec(reader="phantom", phantom=task, images=POOL)
    if task in REAL_TASKS:
        spec = real_set(task)
    dataset = open_dataset(spec, data_root=around.data_root, seed=0, institution="bench")
    samples = drawn_of(dataset.samples, task, seed)
    if pixels:
        loaded = map(dataset.load, samples)
        examples = [Example(backbone.preprocess(item.image_HW3), item.labels_HW) for item in loaded]
    else:
        examples = around.encoded(backbone, dataset, samples)
    ends = TRAIN, TRAIN + VALIDATE
    return Images(examples[: ends[0]], examples[ends[0] : ends[1]], examples[ends[1] :])


def real_set(folder: str) -> DataSpec:
    """A folder in --data-root; of one that is not in REAL_TASKS, masks have one value for each object."""
    return DataSpec.model_validate({"path": folder, "labels": REAL_TASKS.get(folder, "instances")})


def drawn_of(samples: tuple[Sample, ...], task: str, seed: int) -> list[Sample]:
    """At most POOL images of a task in the order of a seed, none twice; of a sequence, frames that follow one
    another in time."""
    if task in SEQUENCES:
        frames = in_time(samples)
        return [frames[(i + 3 * seed) % len(frames)] for i in range(min(POOL, len(frames)))]
    pool_N = numpy_generator(0, "images", task).permutation(len(samples))[:POOL]
    order_N = numpy_generator(seed, "draw", task).permutation(len(pool_N))
    return [samples[i] for i in pool_N[order_N]]


# --- Measuring a layer


def judged(layer: AlignmentLayer, backbone: Backbone, images: Images) -> dict[str, Measured]:
    """Estimates and IoU with tight boxes; of test images with all kinds of prompts."""
    val = [measured(layer, backbone, example, i, ("tight",)) for i, example in enumerate(images.val)]
    test = [measured(layer, backbone, example, i, PROMPTS) for i, example in enumerate(images.test)]
    tight, jittered = ([found[kind] for found in test] for kind in PROMPTS)
    return {"val": [found["tight"] for found in val], "test": tight, "jittered": jittered}


@torch.no_grad()
def measured(
    layer: AlignmentLayer, backbone: Backbone, example: Example, number: int, kinds: Sequence[str]
) -> dict[str, list[tuple[float, float]]]:
    """By kind of prompt, by instance: the decoder's estimate, and the IoU at the decoder's resolution.

    number: of the image; its instances and their jitter are the same for all layers.
    """
    rng, labels_HW = np.random.default_rng(number), example.labels_HW
    low = frame_of(labels_HW, backbone.geometry.low).resize_labels(labels_HW)
    chosen = np.sort(rng.permutation(np.unique(low[low > 0]))[:INSTANCES]).astype(np.int32)
    if len(chosen) == 0:
        return {kind: [] for kind in kinds}
    target_NK = (low[None] == chosen[:, None, None]).reshape(len(chosen), -1)
    makers: dict[str, Callable[[], Prompts]] = {
        "tight": lambda: tight_boxes(labels_HW, chosen),
        "jittered": lambda: jittered_boxes(labels_HW, chosen, JITTER, rng),
    }
    with backbone.compute.autocast():
        z_CHW = layer(example.seen_CHW[None])[0].float()
    boxes = np.concatenate([makers[kind]().xy for kind in kinds])
    prompts = Prompts(boxes_N4=boxes).into(frame_of(labels_HW, backbone.geometry.side))
    logits_Mhw, estimate_M = backbone.decode(z_CHW, prompts, layer.decoder(backbone.mask_decoder))
    mask_MK, target_MK = (logits_Mhw > 0).flatten(1).numpy(), np.tile(target_NK, (len(kinds), 1))
    iou_M = (mask_MK & target_MK).sum(1) / (mask_MK | target_MK).sum(1)
    pairs = [(round(float(e), 5), round(float(i), 5)) for e, i in zip(estimate_M, iou_M, strict=True)]
    return {kind: pairs[i * len(chosen) : (i + 1) * len(chosen)] for i, kind in enumerate(kinds)}
