"""IoU after 0 to 5 simulated clicks, of frozen SAM and of layers; with or without a box and the earlier mask.

casam_core/bank/clicking.py says where a click lies. A cell is one task and one seed, a file; so the command
can be stopped and started again. No setting was chosen on these figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from casam_bench import models
from casam_bench.bench import Figures, Surroundings, csv_of, markdown
from casam_bench.quality.layer_seconds import KINDS, SEEDS, images_of, kept_or_made
from casam_bench.quality.layer_tables import interval
from casam_core.bank.clicking import masks_by_clicks
from casam_core.bank.inference import align
from casam_core.config.scenario import TrainingSpec
from casam_core.files import write_atomic
from casam_core.metrics.segmentation import iou
from casam_core.model.backbones import Backbone
from casam_core.model.examples import Example
from casam_core.model.forms import AlignmentLayer
from casam_core.seeding import derive_seed, numpy_generator

EPOCHS, IMAGES, INSTANCES, CLICKS, ENOUGH = 2, 3, 2, 5, 0.85
"""Of training (48 steps); test images of a cell, most instances of an image, clicks on each; the IoU that NoC
asks for."""

LAYERS: dict[str, Literal["box", "mixed"] | None] = {
    "frozen SAM": None,
    "learned with boxes": "box",
    "learned with boxes and points": "mixed",
}
"""Of low_rank 8: training.prompts."""


@dataclass(frozen=True)
class Way:
    """How an object is asked for. box: its tight box comes first. mask: the earlier mask is a prompt, too."""

    box: bool
    mask: bool


WAYS = {
    "clicks": Way(box=False, mask=True),
    "clicks, masks forgotten": Way(box=False, mask=False),
    "box, then clicks": Way(box=True, mask=True),
    "box, then clicks, masks forgotten": Way(box=True, mask=False),
}


@dataclass(frozen=True)
class Row:
    """One layer and way on one task and seed.

    iou_0 ... iou_5: mean IoU after so many clicks; without a box, 0 clicks give no mask. noc: mean number of
    clicks to an IoU of ENOUGH; an instance that never gets there counts as CLICKS. missed: share of these.
    """

    kind: str
    task: str
    seed: int
    layer: str
    way: str
    instances: int
    iou_0: float
    iou_1: float
    iou_2: float
    iou_3: float
    iou_4: float
    iou_5: float
    noc: float
    missed: float

    @property
    def curve(self) -> list[float]:
        """IoU after 0, 1, ... clicks."""
        return [getattr(self, f"iou_{k}") for k in range(CLICKS + 1)]


def curve(
    backbone: Backbone,
    aligned_CHW: Tensor,
    layer: AlignmentLayer | None,
    true_HW: NDArray[np.bool_],
    way: Way,
) -> list[float]:
    """IoU of one object after 0 to CLICKS clicks, in pixels of the image."""
    masks = masks_by_clicks(backbone, aligned_CHW, layer, true_HW, CLICKS, box=way.box, mask=way.mask)
    return [iou(predicted_HW, true_HW) for predicted_HW in masks]


def run(around: Surroundings) -> Figures:
    """All tasks and seeds, seed by seed; rows are also in clicks.csv in the folder of cells."""
    backbone = around.lite_medsam(precision="auto", encoder="fast")
    rows: list[Row] = []
    for seed in range(around.seeds or len(SEEDS)):
        for kind, tasks in KINDS.items():
            for task in tasks if around.data_root or kind != "real" else ():
                path = around.home / "clicks" / f"{task}-{seed}.json"
                if cell := kept_or_made(path, partial(measure, around, backbone, task, seed)):
                    rows += rows_of(cell, kind, task, seed)
        around.say(f"seed {seed}: done")
        write_atomic(around.home / "clicks" / "clicks.csv", csv_of(Row, rows).encode())
    around.say(tables(rows))
    return {
        f"{kind} {layer}, {way}: {name}": value
        for kind, layer, way, own in grouped(rows)
        for name, value in (("iou_1", mean_of(own, "iou_1")), ("iou_5", mean_of(own, "iou_5")))
    }


def measure(around: Surroundings, backbone: Backbone, task: str, seed: int) -> dict[str, Any]:
    """By layer, by way, by image, by instance: the curve."""
    images = images_of(around, backbone, task, seed, pixels=False)
    cell = {}
    for name, prompts in LAYERS.items():
        layer = None if prompts is None else learned(backbone, images.train, prompts, task, seed)
        cell[name] = measured(backbone, layer, images.test[:IMAGES])
    around.say(f"{task}, seed {seed}: measured")
    return cell


def learned(
    backbone: Backbone, examples: Sequence[Example], prompts: Literal["box", "mixed"], task: str, seed: int
) -> AlignmentLayer:
    """The default layer after EPOCHS of the default training with these prompts."""
    spec, rng = TrainingSpec(prompts=prompts, epochs=EPOCHS), numpy_generator(seed, "clicks", task)
    return models.learned(backbone, examples, spec, seed=derive_seed(seed, "layer", task), rng=rng)[0]


def measured(
    backbone: Backbone, layer: AlignmentLayer | None, examples: Sequence[Example]
) -> dict[str, list[list[list[float]]]]:
    """By way, by image, by instance: the curve. Instances are the same for all layers and ways."""
    found: dict[str, list[list[list[float]]]] = {name: [] for name in WAYS}
    for number, example in enumerate(examples):
        labels_HW, rng = example.labels_HW, np.random.default_rng(number)
        chosen = rng.permutation(np.unique(labels_HW[labels_HW > 0]))[:INSTANCES]
        aligned_CHW = align(example.seen_CHW, layer, backbone.compute)
        for name, way in WAYS.items():
            found[name].append([curve(backbone, aligned_CHW, layer, labels_HW == i, way) for i in chosen])
    return found


def rows_of(cell: dict[str, Any], kind: str, task: str, seed: int) -> list[Row]:
    """A row for each layer and way of a cell."""
    rows = []
    for layer, ways in cell.items():
        for way, images in ways.items():
            curves_NK = np.array([found for image in images for found in image])
            image_K = np.mean([np.mean(image, axis=0) for image in images if image], axis=0)
            enough_NK = curves_NK >= ENOUGH
            reached_N = enough_NK.any(axis=1)
            clicks_N = np.where(reached_N, enough_NK.argmax(axis=1), CLICKS)
            figures = {f"iou_{k}": float(value) for k, value in enumerate(image_K)}
            figures |= {"noc": float(clicks_N.mean()), "missed": float(1 - reached_N.mean())}
            rounded = {name: round(value, 5) for name, value in figures.items()}
            rows.append(Row(kind, task, seed, layer, way, len(curves_NK), **rounded))
    return rows


# --- Tables


def grouped(rows: Sequence[Row]) -> Iterable[tuple[str, str, str, list[Row]]]:
    """(kind, layer, way, their rows), in the order of the rows."""
    for kind, layer, way in dict.fromkeys((row.kind, row.layer, row.way) for row in rows):
        yield kind, layer, way, [r for r in rows if (r.kind, r.layer, r.way) == (kind, layer, way)]


def by_seed(rows: Sequence[Row], figure: str) -> list[float]:
    """The mean over tasks, of each seed."""
    return [
        float(np.mean([getattr(row, figure) for row in rows if row.seed == seed]))
        for seed in sorted({row.seed for row in rows})
    ]


def mean_of(rows: Sequence[Row], figure: str) -> float:
    """The mean over seeds of the mean over tasks."""
    return float(np.mean(by_seed(rows, figure)))


def tables(rows: Sequence[Row]) -> str:
    """Markdown: for each kind of tasks a line per layer and way. IoU in percent.

    What later clicks add to the first mask is a difference within a task and seed; its 95 % interval is
    Student's.
    """
    heads = [
        "layer",
        "prompts",
        *(f"click {k}" if k else "no click" for k in range(CLICKS + 1)),
        "later clicks add, points",
    ]
    heads += [f"NoC@{100 * ENOUGH:.0f}", f"never {100 * ENOUGH:.0f} %"]
    parts = []
    for kind in dict.fromkeys(row.kind for row in rows):
        own = [row for row in rows if row.kind == kind]
        tasks, seeds = len({row.task for row in own}), len({row.seed for row in own})
        lines = []
        for _, layer, way, some in grouped(own):
            first = 0 if WAYS[way].box else 1
            figures = [f"{100 * mean_of(some, f'iou_{k}'):.1f}" for k in range(first, CLICKS + 1)]
            added, half = interval([row.curve[CLICKS] - row.curve[first] for row in some])
            figures = [*[""] * first, *figures, f"{100 * added:+.1f} ± {100 * half:.1f}"]
            figures += [f"{mean_of(some, 'noc'):.2f}", f"{100 * mean_of(some, 'missed'):.0f} %"]
            lines.append([layer, way, *figures])
        parts += [f"**{kind} tasks: {tasks}, seeds: {seeds}**", markdown(heads, lines)]
    return "\n\n".join(parts)
