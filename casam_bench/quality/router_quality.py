"""Router quality: does a router recognise the task, and does it separate unknown from known images?

In each split, a third of the tasks is unseen. Every other task is learned from `images` training images: a
router state, and a threshold: the router's constant, or one that is calibrated only on held-out folds of
these images. Test images are different ones. An image's unknownness is its score under the nearest task minus
that task's threshold. AUROC and FPR at 95 % TPR compare the unknownness of unseen (positive) and seen test
images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from casam_bench.bench import Figures, Surroundings, table_of
from casam_bench.membership.statistics import auc
from casam_bench.quality.phantom_features import Features, phantom_features
from casam_core.config.named_parts import BackboneSpec, RouterSpec
from casam_core.routing.decision import decide
from casam_core.routing.routers import Arrays, GaussianSpec, PublicFrameSpec, Router, VaeSpec, build_router
from casam_core.routing.threshold import choose_threshold, learn_and_score
from casam_core.seeding import derive_seed, numpy_generator

TEST_IMAGES = 32
TRAINING_IMAGES = (8, 16, 64, 256)
SPLITS = 4
TASKS = (
    "cardiac_mr", "dental_xray", "glomeruli_a", "glomeruli_b", "histology",
    "polyp", "prostate_mr_a", "prostate_mr_b", "spleen_ct",
)  # fmt: skip
TWINS = (("glomeruli_a", "glomeruli_b"), ("prostate_mr_a", "prostate_mr_b"))
MANY = ("glomeruli_a", "glomeruli_b", "prostate_mr_a", "prostate_mr_b")
"""Tasks of the row with more than 64 training images: only the twins, because 288 images cost minutes."""

CANDIDATES: dict[str, RouterSpec] = {
    "vae, attention, sampled, no margin (paper)": VaeSpec(features="attention", sampled=True, margin=0),
    "vae, attention": VaeSpec(features="attention"),
    "vae, moments": VaeSpec(features="moments"),
    "nearest mean, attention": RouterSpec(kind="nearest_mean", features="attention"),
    "nearest mean, moments": RouterSpec(kind="nearest_mean", features="moments"),
    "gaussian, attention": GaussianSpec(features="attention"),
    "gaussian, moments": GaussianSpec(features="moments"),
    "gaussian, moments, no margin": GaussianSpec(features="moments", margin=0),
    "public frame, attention": PublicFrameSpec(features="attention"),
    "public frame, moments": PublicFrameSpec(features="moments"),
}


@dataclass(frozen=True)
class Quality:
    """One candidate on one split. accuracy: seen test images sent to their own task.

    confused: seen images sent to another task. false_unknown: seen images sent to identity. unknown:
    unseen images sent to identity. auroc, fpr95: of unknownness. twins: accuracy over tasks whose twin
    (a similar task) was learned, too; None without such tasks.
    """

    accuracy: float
    confused: float
    false_unknown: float
    unknown: float
    auroc: float
    fpr95: float
    twins: float | None


COLUMNS = tuple(field.name for field in fields(Quality))
"""Columns of a table of qualities."""


@dataclass(frozen=True)
class Scores:
    """One router on one split. seen, unseen: task names. held_out: by seen task, scores of its training
    images under states that were learned without them. tests: by task, scores_NS of N test images under S
    seen tasks."""

    seen: list[str]
    unseen: list[str]
    held_out: dict[str, NDArray[np.float64]]
    tests: dict[str, NDArray[np.float64]]


def score(
    spec: RouterSpec,
    features: Mapping[str, NDArray[np.float32]],
    images: int,
    split: int,
) -> Scores:
    """One candidate on one split. The last TEST_IMAGES images of every task are for testing.

    features: f_NF by task.
    """
    rng = numpy_generator(split, "router-quality", images)
    order = [str(task) for task in rng.permutation(sorted(features))]
    seen, unseen = sorted(order[len(order) // 3 :]), sorted(order[: len(order) // 3])
    router = build_router(spec)
    states, held_out = [], {}
    for task in seen:
        f_NF = features[task]
        chosen = np.sort(rng.permutation(len(f_NF) - TEST_IMAGES)[:images])
        seed = derive_seed(split, "router", task)
        state, held_out[task] = learn_and_score(router, torch.from_numpy(f_NF[chosen]), spec, seed)
        states.append(state)
    return Scores(seen, unseen, held_out, score_tests(router, states, features))


def score_tests(
    router: Router, states: Sequence[Arrays], features: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float64]]:
    """By task, scores_NS of its test images under the states of the seen tasks."""
    return {
        task: np.array(
            [[router.score(f_F, state) for state in states] for f_F in torch.from_numpy(f_NF[-TEST_IMAGES:])]
        )
        for task, f_NF in features.items()
    }


def thresholds_of(scores: Scores, spec: RouterSpec) -> list[float]:
    """Every seen task's threshold: the router's constant, or one from the task's held-out scores."""
    if spec.constant is not None:
        return [spec.constant] * len(scores.seen)
    return [choose_threshold(scores.held_out[task], spec) for task in scores.seen]


def judge(scores: Scores, thresholds: Sequence[float], twins: Sequence[Sequence[str]]) -> Quality:
    """The quality of these scores with these thresholds of the seen tasks; every seen task counts equally."""
    seen = scores.seen
    known = {task: routed(scores, task, thresholds) for task in seen}
    strange = [result for task in scores.unseen for result in routed(scores, task, thresholds)]
    right = [float(np.mean([name == task for name, _ in known[task]])) for task in seen]
    lost = [float(np.mean([name == "identity" for name, _ in known[task]])) for task in seen]
    paired = with_twin(seen, twins)
    margins = [margin for results in known.values() for _, margin in results]
    unknownness = np.array([*(margin for _, margin in strange), *margins], np.float64)
    positive = np.array([1] * len(strange) + [0] * len(margins))
    return Quality(
        accuracy=float(np.mean(right)),
        confused=float(np.mean(1 - np.array(right) - np.array(lost))),
        false_unknown=float(np.mean(lost)),
        unknown=float(np.mean([name == "identity" for name, _ in strange])),
        auroc=auc(unknownness[positive == 1], unknownness[positive == 0]),
        fpr95=false_positive_rate(unknownness, positive),
        twins=float(np.mean([right[seen.index(task)] for task in paired])) if paired else None,
    )


def with_twin(seen: Sequence[str], twins: Sequence[Sequence[str]]) -> list[str]:
    """Tasks whose twin was learned, too."""
    return [task for pair in twins if set(pair) <= set(seen) for task in pair]


def routed(scores: Scores, task: str, thresholds: Sequence[float]) -> list[tuple[str, float]]:
    """(route, unknownness) of every test image of a task."""
    results = []
    for row_S in scores.tests[task]:
        best = int(np.argmin(row_S))
        route = decide(scores.seen, row_S.tolist(), thresholds)
        results.append((route.name, row_S[best] - thresholds[best]))
    return results


def measure(
    spec: RouterSpec,
    features: Mapping[str, Features],
    images: int,
    split: int,
    twins: Sequence[Sequence[str]],
) -> Quality:
    """One candidate with the product's thresholds, on one split."""
    pooled = {task: of_task[spec.features] for task, of_task in features.items()}
    scores = score(spec, pooled, images, split)
    return judge(scores, thresholds_of(scores, spec), twins)


def false_positive_rate(unknownness: NDArray[np.float64], positive: NDArray[np.int64]) -> float:
    """Share of seen images at or above the value that 95 % of the unseen images reach."""
    strange = np.sort(unknownness[positive == 1])[::-1]
    cut = strange[math.ceil(0.95 * len(strange)) - 1]
    return float(np.mean(unknownness[positive == 0] >= cut))


def run(around: Surroundings) -> Figures:
    """All candidates on all numbers of training images; figures are those of the default router."""
    table = quality_table(
        f"mean over {SPLITS} splits; tasks of phantoms, {TEST_IMAGES} test images each", "images"
    )
    figures: Figures = {}
    for images in [n for n in TRAINING_IMAGES if n <= around.images]:
        features = learnable(around, images)
        for name, plain in CANDIDATES.items():
            spec = plain.completed(BackboneSpec(name="lite_medsam"))
            splits = [measure(spec, features, images, split, TWINS) for split in range(SPLITS)]
            means = means_of(splits)
            table.add_row(name, str(images), *cells_of(means))
            around.say(
                f"{name}, {images} images: accuracy {means['accuracy']:.3f}, AUROC {means['auroc']:.3f}"
            )
            if plain == PublicFrameSpec():
                figures |= {f"{key}_{images}": value for key, value in means.items() if value is not None}
    around.show(table)
    return figures


def quality_table(title: str, *more: str) -> Table:
    """A table of routers without rows: the name, more columns, and the figures of Quality."""
    return table_of(title, ("router", *more, *COLUMNS))


def learnable(around: Surroundings, images: int) -> dict[str, Features]:
    """Features of every task with `images` images for training and TEST_IMAGES more for testing."""
    backbone = around.lite_medsam()
    tasks = TASKS if images <= 64 else MANY
    return {
        task: phantom_features(backbone, task, images + TEST_IMAGES, around.home, around.say)
        for task in tasks
    }


def means_of(qualities: Sequence[Quality]) -> dict[str, float | None]:
    """Mean of every figure over the splits."""
    return {column: mean_of([getattr(quality, column) for quality in qualities]) for column in COLUMNS}


def cells_of(means: Mapping[str, float | None]) -> list[str]:
    """The cells of a table row."""
    return ["-" if mean is None else f"{mean:.3f}" for mean in means.values()]


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean over the splits that have the figure; None without any."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
