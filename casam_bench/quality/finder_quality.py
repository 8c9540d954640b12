"""Finders: what they find without a prompt, against boxes of the truth and against SAM's automatic grid.

A cell is one task and one seed, learned from 24 images with the product's own loop and measured on test
images. Cells are files, so the command can be stopped and started again. The settings of the finder were
chosen on phantoms; real tasks (--data-root) had no part in a choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casam_bench import models
from casam_bench.bench import Figures, Surroundings, csv_of, markdown
from casam_bench.quality.layer_seconds import KINDS, SEEDS, images_of, kept_or_made
from casam_bench.quality.layer_tables import interval
from casam_bench.timing import clock
from casam_core.bank.finding import box_of, distinct, find
from casam_core.bank.inference import align, decode_masks
from casam_core.config.named_parts import BackboneSpec, LowRankSpec, PublicFrameSpec
from casam_core.config.scenario import TrainingSpec
from casam_core.files import write_atomic
from casam_core.metrics.detection import Matched, matched
from casam_core.metrics.segmentation import iou
from casam_core.model.backbones import Backbone
from casam_core.model.examples import Example
from casam_core.model.forms import AlignmentLayer
from casam_core.model.frame import frame_of
from casam_core.model.prompts import single_points, tight_boxes
from casam_core.model.training import add_finder_gradient, draw_batch
from casam_core.routing.features import pool
from casam_core.routing.routers import build_router
from casam_core.seeding import derive_seed, numpy_generator

IMAGES = 6
"""Test images of a cell."""
GRID_SEEDS, GRID_IMAGES, GRID, SURE, STABLE, SAME = (0,), 1, 32, 0.88, 0.95, 0.7
"""SAM's automatic grid, with its defaults: points per side, the smallest estimate and stability, and the
largest IoU of two boxes. It takes so long that few images of few seeds are measured."""


@dataclass(frozen=True)
class Row:
    """One task and seed.

    instances: in the test images. ap50, recall, precision: of the finder. iou_found, iou_boxes: of the
    instances that it hit, by its masks and by those of true boxes. ap50_grid, ap50_on_grid: of the automatic
    grid, and of the finder on the same images; nan where no grid was measured. seconds: of the processor, an
    image, after the encoder. share: of a training step, what the finder adds. silent: share of the test
    images for which no finder of the kind's other tasks answers.
    """

    kind: str
    task: str
    seed: int
    instances: int
    ap50: float
    recall: float
    precision: float
    iou_found: float
    iou_boxes: float
    ap50_grid: float
    ap50_on_grid: float
    seconds: float
    seconds_grid: float
    share: float
    silent: float

    @property
    def below(self) -> float:
        """How far the instances that the finder hit lie below the same ones with true boxes."""
        return self.iou_boxes - self.iou_found


def run(around: Surroundings) -> Figures:
    """All tasks and seeds, seed by seed; a row for each in finder.csv in the folder of cells.

    Figures: means over tasks and seeds, by kind.
    """
    backbone = around.lite_medsam(precision="auto", encoder="fast")
    rows: list[Row] = []
    for seed in range(around.seeds or len(SEEDS)):
        for kind, tasks in KINDS.items():
            own = [] if kind == "real" and around.data_root is None else list(tasks)
            silent = silent_unseen(around, backbone, own, seed)
            for task in own:
                path = around.home / "finder" / f"{task}-{seed}.json"
                if cell := kept_or_made(path, partial(measure, around, backbone, task, seed)):
                    rows.append(Row(kind, task, seed, silent=silent[task], **cell))
        write_atomic(around.home / "finder" / "finder.csv", csv_of(Row, map(rounded, rows)).encode())
    around.say(tables(rows))
    means = (
        "ap50",
        "recall",
        "precision",
        "iou_found",
        "iou_boxes",
        "ap50_grid",
        "seconds",
        "share",
        "silent",
    )
    return {
        f"{kind} {name}": float(np.nanmean([getattr(row, name) for row in rows if row.kind == kind]))
        for kind in dict.fromkeys(row.kind for row in rows)
        for name in means
    }


def measure(around: Surroundings, backbone: Backbone, task: str, seed: int) -> dict[str, Any]:
    """Learn layer and finder of one task, and measure: a row's figures."""
    images, now = images_of(around, backbone, task, seed, pixels=False), clock(around.threads)
    layer, share = learned(backbone, task, images.train, around.threads, seed)
    found: list[Matched] = []
    by_boxes: list[float] = []
    seconds = 0.0
    for example in images.test[:IMAGES]:
        z_CHW, aligned_CHW = example.seen_CHW, align(example.seen_CHW, layer, backbone.compute)
        frame, begun = frame_of(example.labels_HW, backbone.geometry.side), now()
        instances = find(backbone, layer.finder, layer, z_CHW, aligned_CHW, frame)
        seconds += now() - begun
        of_image, hit = matched(instances.masks_NHW, instances.scores_N, example.labels_HW)
        found.append(of_image)
        if hit:
            by_boxes += iou_by_boxes(backbone, layer, aligned_CHW, example.labels_HW, sorted(hit))
    begun = now()
    on_grid = images.test[:GRID_IMAGES] if seed in GRID_SEEDS else []
    grid = [by_grid(backbone, example) for example in on_grid]
    seconds_grid = (now() - begun) / len(grid) if grid else float("nan")
    iou_M = np.concatenate([image.iou_M for image in found])
    masks_of_all, hits = (
        sum(len(image.hits_N) for image in found),
        sum(image.hits_N.sum() for image in found),
    )
    around.say(f"{task}, seed {seed}: AP50 {ap50(found):.3f}")
    return {
        "instances": len(iou_M),
        "ap50": ap50(found),
        "recall": float((iou_M > 0).mean()),
        "precision": float(hits / max(masks_of_all, 1)),
        "iou_found": float(iou_M[iou_M > 0].mean()) if hits else float("nan"),
        "iou_boxes": float(np.mean(by_boxes)) if hits else float("nan"),
        "ap50_grid": ap50(grid) if grid else float("nan"),
        "ap50_on_grid": ap50(found[:GRID_IMAGES]) if grid else float("nan"),
        "seconds": seconds / IMAGES,
        "seconds_grid": seconds_grid,
        "share": share,
    }


def iou_by_boxes(
    backbone: Backbone,
    layer: AlignmentLayer,
    aligned_CHW: Tensor,
    labels_HW: NDArray[np.int32],
    numbers: Sequence[int],
) -> list[float]:
    """The IoU of these instances of an image by their true boxes."""
    frame = frame_of(labels_HW, backbone.geometry.side)
    boxes = tight_boxes(labels_HW, np.array(numbers, np.int32))
    parts = decode_masks(backbone, aligned_CHW, frame, boxes, layer)
    masks = (mask_HW for masks_nHW, _ in parts for mask_HW in masks_nHW)
    return [iou(mask_HW, labels_HW == number) for number, mask_HW in zip(numbers, masks, strict=True)]


def learned(
    backbone: Backbone, task: str, examples: Sequence[Example], threads: int, seed: int
) -> tuple[AlignmentLayer, float]:
    """(the layer with its finder, the share of a step that the finder adds)."""
    form, training, now = LowRankSpec(finder=True), TrainingSpec(), clock(threads)
    initial, rng = derive_seed(seed, "layer", task), numpy_generator(seed, "finder", task)
    begun = now()
    layer, result = models.learned(backbone, examples, training, seed=initial, rng=rng, form=form)
    step = (now() - begun) / result.steps
    drawn = draw_batch(
        np.arange(len(examples)), examples, backbone, training, numpy_generator(seed, "timing", task)
    )
    begun = now()
    for item in drawn:
        add_finder_gradient(layer, backbone, [item])
    added = (now() - begun) / len(drawn)
    return layer, added / (step - added)


@torch.no_grad()
def by_grid(backbone: Backbone, example: Example) -> Matched:
    """What frozen SAM's automatic grid finds (Kirillov et al. 2023): points, masks that are sure and stable,
    none twice. At the decoder's resolution."""
    low, side = backbone.geometry.low, backbone.geometry.side
    at = ((np.arange(GRID) + 0.5) * side / GRID).astype(np.float32)
    points_N2 = np.stack(np.meshgrid(at, at), -1).reshape(-1, 2)
    masks, sure = [], []
    for start in range(0, len(points_N2), 64):
        logits_Nhw, iou_N = backbone.decode(example.seen_CHW, single_points(points_N2[start : start + 64]))
        inner_N, outer_N = (logits_Nhw > 1).sum((1, 2)), (logits_Nhw > -1).sum((1, 2))
        kept_N = (iou_N >= SURE) & (inner_N >= STABLE * outer_N) & (logits_Nhw > 0).any(2).any(1)
        masks += list((logits_Nhw[kept_N] > 0).numpy())
        sure += iou_N[kept_N].tolist()
    order = np.argsort(-np.array(sure), kind="stable")
    boxes_N4 = [box_of(masks[i]) for i in order]
    kept = order[distinct(np.array(boxes_N4, np.float32).reshape(-1, 4), SAME)]
    masks_NHW = np.array([masks[i] for i in kept], bool).reshape(-1, low, low)
    labels_SS = frame_of(example.labels_HW, low).resize_labels(example.labels_HW)
    return matched(masks_NHW, np.array([sure[i] for i in kept]), labels_SS)[0]


def silent_unseen(
    around: Surroundings, backbone: Backbone, tasks: Sequence[str], seed: int
) -> dict[str, float]:
    """By task: the share of its images that a bank of all other tasks does not know, so no finder answers."""
    spec = PublicFrameSpec().completed(BackboneSpec(name="lite_medsam"))
    assert spec.constant is not None
    router, seen, known = build_router(spec), {}, {}
    for task in tasks:
        images = images_of(around, backbone, task, seed, pixels=False)
        f_NF = torch.stack([pool(example.seen_CHW, spec.features) for example in images.train])
        known[task] = router.fit(router.sufficient_statistics(f_NF, seed))
        seen[task] = [pool(example.seen_CHW, spec.features) for example in images.test]
    return {
        task: float(
            np.mean(
                [
                    all(router.score(f_F, known[other]) > spec.constant for other in known if other != task)
                    for f_F in seen[task]
                ]
            )
        )
        for task in tasks
    }


def ap50(images: Sequence[Matched]) -> float:
    """Average precision at IoU 0.5 over the instances of all images, in [0, 1].

    The area below the precision, made monotone, over the recall (PASCAL VOC 2010). NaN without instances.
    """
    total = sum(len(image.iou_M) for image in images)
    if total == 0:
        return float("nan")
    scores = np.concatenate([image.scores_N for image in images])
    hits = np.concatenate([image.hits_N for image in images])[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float((best_from_here * hits).sum() / total)


def rounded(row: Row) -> Row:
    """The row with four digits."""
    cells: dict[str, Any] = {k: round(v, 4) for k, v in asdict(row).items() if isinstance(v, float)}
    return replace(row, **cells)


def tables(rows: Sequence[Row]) -> str:
    """Markdown: for each kind of tasks a line per task and one of all. IoU in percent.

    Intervals are Student's 95 %: of a task over its seeds, of all over the seeds' means over tasks.
    """
    heads = ["task", "AP50", "recall", "precision", "IoU of the found", "below true boxes, points"]
    heads += ["seconds an image", "grid: AP50", "grid: seconds", "step, more", "silent as unseen"]
    parts = []
    for kind in dict.fromkeys(row.kind for row in rows):
        own = [row for row in rows if row.kind == kind]
        by_task = {
            task: [row for row in own if row.task == task] for task in dict.fromkeys(r.task for r in own)
        }
        seeds = sorted({row.seed for row in own})
        lines = [line(task, some, [[row] for row in some]) for task, some in by_task.items()]
        lines.append(line("**mean**", own, [[row for row in own if row.seed == seed] for seed in seeds]))
        parts += [f"**{kind} tasks: {len(by_task)}, seeds: {len(seeds)}**", markdown(heads, lines)]
    return "\n\n".join(parts)


def line(name: str, rows: Sequence[Row], draws: Sequence[Sequence[Row]]) -> list[str]:
    """One line of the table. draws: the rows of each seed, for the intervals."""

    def known(field: str, some: Sequence[Row]) -> list[float]:
        return [value for row in some if not np.isnan(value := getattr(row, field))]

    def mean(field: str, digits: int, scale: float = 1.0) -> str:
        return f"{scale * np.mean(known(field, rows)):.{digits}f}"

    def spread(field: str, digits: int, scale: float = 1.0) -> str:
        middle, half = interval([float(np.mean(values)) for some in draws if (values := known(field, some))])
        return f"{scale * middle:.{digits}f} ± {scale * half:.{digits}f}"

    cells = [spread("ap50", 2), mean("recall", 2), mean("precision", 2), mean("iou_found", 1, 100)]
    cells += [spread("below", 1, 100), mean("seconds", 1), mean("ap50_grid", 2), mean("seconds_grid", 0)]
    cells += [f"{mean('share', 0, 100)} %", f"{mean('silent', 0, 100)} %"]
    return [name, *cells]
