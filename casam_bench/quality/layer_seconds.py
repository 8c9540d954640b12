"""Ways of learning a task, compared at equal processor seconds of training.

A cell is one way, one task and one seed. It trains once; after each of BUDGETS seconds its layer is measured
on validation and test images. A way keeps the best of these layers by validation, or frozen SAM if none is
better. Cells are files, so the command can be stopped and started again, also twice at the same time.

What counts: processor seconds of training steps, also those of the encoder if a way has to run it in every
step. What does not count: the one encoding of each image, which all ways share, and the measurements.

The phantoms are not in the results table. Real tasks (--data-root) had no part in a choice.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from casam_bench.bench import Figures, Surroundings
from casam_bench.quality.layer_rules import calibrations, floors
from casam_bench.quality.layer_tables import of_way, pareto
from casam_bench.quality.rival_layers import DecoderLoraLayer
from casam_bench.timing import clock
from casam_core.config.data_spec import DataSpec
from casam_core.config.named_parts import AlignmentSpec, LoraSpec
from casam_core.config.scenario import TrainingSpec
from casam_core.files import write_atomic
from casam_core.model.backbones import Backbone
from casam_core.model.embeddings import EmbeddingStore
from casam_core.model.forms import (
    AlignmentLayer,
    LowRankSpec,
    build_layer,
    learning_rate_of,
    weights_of,
)
from casam_core.model.forms.affine import IdentityLayer
from casam_core.model.frame import frame_of
from casam_core.model.prompts import Prompts, jittered_boxes, tight_boxes
from casam_core.model.training import Example, Learner, OpenSteps
from casam_core.seeding import derive_seed, numpy_generator
from client.data.open import open_dataset

TRAIN, VALIDATE, TEST, INSTANCES = 24, 6, 16, 4
"""Images of each task; most instances of an image that is measured."""
BUDGETS, FEW = (3.0, 10.0, 30.0), 10.0
JITTER, PROMPTS = 0.1, ("tight", "jittered")
SPEC = TrainingSpec(epochs=10**6, batch_images=1, instances=4)
PHANTOM_TASKS = ("histology", "prostate_mr_a", "glomeruli_a")
"""On these all ways are compared after all budgets."""
OTHER_PHANTOMS = ("cardiac_mr", "dental_xray", "glomeruli_b", "polyp", "prostate_mr_b", "spleen_ct")
"""On these up to FEW seconds."""
REAL_TASKS = {
    "dsb2018_fluorescence": "instances",
    "dsb2018_histology_purple": "instances",
    "wbc_cellavision": "classes",
}
"""Folders in --data-root, and how their masks are read."""
KINDS = {"phantom": PHANTOM_TASKS, "other phantom": OTHER_PHANTOMS, "real": tuple(REAL_TASKS)}
SEEDS = (0, 1, 2, 3, 4)

Measured = list[list[tuple[float, float]]]
"""By image, by instance: the decoder's estimate of the IoU, and the IoU."""


@dataclass(frozen=True)
class Way:
    """One way of learning a task.

    build: (backbone, seed) -> layer. training: differs from SPEC. most: its last budget in seconds.
    average: if not 0, a running average of the weights is measured; each step keeps this share of it.
    """

    build: Callable[[Backbone, int], AlignmentLayer]
    learning_rate: float
    training: Mapping[str, Any] = field(default_factory=dict)
    most: float = BUDGETS[-1]
    average: float = 0.0


def form(spec: AlignmentSpec, learning_rate: float | None = None, **settings: Any) -> Way:
    """A form of the product, by default at its own learning rate."""
    return Way(
        lambda backbone, seed: build_layer(spec, backbone.geometry.channels, seed, backbone),
        learning_rate or learning_rate_of(spec),
        **settings,
    )


def recipe(learning_rate: float | None = None, average: float = 0.0, **training: Any) -> Way:
    """The default form with another recipe."""
    return form(LowRankSpec(), learning_rate, training=training, average=average)


WAYS: dict[str, Way] = {
    "low_rank 8": form(LowRankSpec()),
    "lora": form(LoraSpec()),
    "residual": form(AlignmentSpec(form="residual")),
    "low_rank 8, jitter 0.1": recipe(box_jitter=0.1),
    "low_rank 64": form(LowRankSpec(rank=64)),
    "low_rank 8 and decoder LoRA": Way(DecoderLoraLayer, learning_rate_of(LowRankSpec())),
    "scale_shift": form(AlignmentSpec(form="scale_shift")),
    "low_rank 8, jitter 0.05": recipe(box_jitter=0.05),
    "low_rank 4": form(LowRankSpec(rank=4)),
    "low_rank 16": form(LowRankSpec(rank=16)),
    "casam (paper)": form(AlignmentSpec(form="casam")),
    "low_rank 8, batch 6 x 5": recipe(batch_images=6, instances=5),
    "low_rank 8, averaged": recipe(average=0.98),
    "low_rank 8, rate 1e-3": recipe(1e-3),
    "low_rank 8, rate 1e-2": recipe(1e-2),
    "low_rank 8, warm-up 30": recipe(warmup=30),
    "low_rank 8, mixed prompts": recipe(prompts="mixed"),
}
"""The first is the default, with which the others are compared. `lora` encodes an image in every step."""


@dataclass(frozen=True)
class Images:
    """The images of one task and seed. seen: embeddings, or pixels for a layer that sees pixels."""

    train: Sequence[Example]
    val: Sequence[Example]
    test: Sequence[Example]


def run(around: Surroundings) -> Figures:
    """Every way on every task and seed. Figures: see `pareto`, `floors` and `calibrations`."""
    backbone = around.lite_medsam(precision="auto", encoder="fast")
    tasks = [*PHANTOM_TASKS, *OTHER_PHANTOMS, *(REAL_TASKS if around.data_root else ())]
    default = next(iter(WAYS))
    cells = [
        cell
        for seed in SEEDS
        for task in tasks
        for name in WAYS
        if (cell := kept_or_learned(around, backbone, name, task, seed)) is not None
    ]
    figures: Figures = {}
    for kind, known in KINDS.items():
        if some := [cell for cell in cells if cell["task"] in known]:
            figures |= pareto(some, default, kind, around.show)
            figures |= floors(some, kind, around.show)
            figures |= calibrations(of_way(some, default), kind, around.show)
    return figures


def kept_or_learned(
    around: Surroundings, backbone: Backbone, name: str, task: str, seed: int
) -> dict[str, Any] | None:
    """A cell from its file, or learned now; None if another process is learning it."""
    folder = around.home / "layer-seconds"
    path = folder / f"{task}-{seed}-{name.replace(' ', '_')}.json"
    with alone(folder / f".{path.name}.lock") as free:
        if not path.exists() and free:
            about: dict[str, Any] = {"way": name, "task": task, "seed": seed}
            way = replace(WAYS[name], most=FEW) if task in OTHER_PHANTOMS else WAYS[name]
            cell = about | learn(around, backbone, way, task, seed)
            write_atomic(path, json.dumps(cell).encode())
            around.say(f"{task}, seed {seed}, {name}: {len(cell['at'])} budgets")
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


def learn(around: Surroundings, backbone: Backbone, way: Way, task: str, seed: int) -> dict[str, Any]:
    """Train once and measure after each budget."""
    layer = way.build(backbone, derive_seed(seed, "layer", task))
    frozen = IdentityLayer(backbone.geometry.channels)
    embeddings = images_of(around, backbone, task, seed, pixels=False)
    seen = images_of(around, backbone, task, seed, pixels=True) if layer.sees_pixels else embeddings
    cell: dict[str, Any] = {
        "parameters": sum(value.numel() for value in layer.parameters()),
        "bytes": sum(value.nbytes for value in weights_of(layer).values()),
        "frozen": judged(frozen, backbone, embeddings),
        "at": {},
    }
    for budget, steps, learned in trained(layer, backbone, seen.train, way, seed, around.threads):
        cell["at"][f"{budget:g}"] = {"steps": steps, **judged(learned, backbone, seen)}
    return cell


def trained(
    layer: AlignmentLayer,
    backbone: Backbone,
    examples: Sequence[Example],
    way: Way,
    seed: int,
    threads: int,
) -> Iterator[tuple[float, int, AlignmentLayer]]:
    """(budget, steps so far, the layer to measure) whenever a budget of processor seconds is used up."""
    spec = SPEC.model_copy(update=dict(way.training))
    rng = numpy_generator(seed, "layer-seconds")
    learner = Learner(layer.train(), backbone, examples, spec, way.learning_rate, rng)
    steps, now = OpenSteps()(learner), clock(threads)
    used, done = 0.0, 0
    averaged = copy.deepcopy(layer) if way.average else layer
    for budget in (b for b in BUDGETS if b <= way.most):
        layer.train()
        while used < budget:
            begun = now()
            done = next(steps).done
            if way.average:
                follow(averaged, layer, way.average)
            used += now() - begun
        yield budget, done, averaged.eval()


@torch.no_grad()
def follow(averaged: AlignmentLayer, layer: AlignmentLayer, share: float) -> None:
    """Keep this share of the average of the weights, and add the new ones (Polyak and Juditsky 1992)."""
    for old, new in zip(averaged.parameters(), layer.parameters(), strict=True):
        old.lerp_(new, 1 - share)


def images_of(around: Surroundings, backbone: Backbone, task: str, seed: int, *, pixels: bool) -> Images:
    """The images of a task in an order drawn from the seed; phantoms are painted anew for every seed."""
    count = TRAIN + VALIDATE + TEST
    spec = DataSpec(reader="phantom", phantom=task, images=count)
    if task in REAL_TASKS:
        spec = DataSpec.model_validate({"path": task, "labels": REAL_TASKS[task]})
    dataset = open_dataset(spec, data_root=around.data_root, seed=seed, institution="bench")
    order = numpy_generator(seed, "images", task).permutation(len(dataset.samples))[:count]
    store = EmbeddingStore(around.home / "embeddings")
    around.say(f"{task}, seed {seed}: encode {count} images, or find them")
    loaded = [dataset.load(dataset.samples[i]) for i in order]
    examples = [
        Example(
            backbone.preprocess(item.image_HW3) if pixels else store.embed(item.image_HW3, backbone)[1],
            item.labels_HW,
        )
        for item in loaded
    ]
    ends = TRAIN, TRAIN + VALIDATE
    return Images(examples[: ends[0]], examples[ends[0] : ends[1]], examples[ends[1] :])


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
    found = {}
    for kind in kinds:
        prompts = makers[kind]().into(frame_of(labels_HW, backbone.geometry.side))
        logits_Nhw, estimate_N = backbone.decode(z_CHW, prompts, layer.own_decoder())
        mask_NK = (logits_Nhw > 0).flatten(1).numpy()
        iou_N = (mask_NK & target_NK).sum(1) / (mask_NK | target_NK).sum(1)
        found[kind] = [(float(e), float(i)) for e, i in zip(estimate_N, iou_N, strict=True)]
    return found
