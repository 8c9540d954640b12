"""What the default router could be instead: features of other encoder depths, and other thresholds.

The figures are those of router_quality, with as few training images as where the default loses any, and
on six of its tasks, near twins among them, because every image is encoded for this alone. Threshold rules
differ in nothing but the number they make of the same held-out scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from scipy.stats import t as student

from casam_bench.bench import Figures, Surroundings
from casam_bench.quality.encoder_depths import ENCODER_DEPTHS
from casam_bench.quality.phantom_features import Features, phantom_features
from casam_bench.quality.router_quality import (
    COLUMNS,
    TEST_IMAGES,
    TWINS,
    Quality,
    Rule,
    cells_of,
    judge,
    means_of,
    score,
)
from casam_core.config.scenario import RouterSpec
from casam_core.routing.threshold import choose_threshold

TRAINING_IMAGES = (8, 16)
TASKS = (*(task for pair in TWINS for task in pair), "cardiac_mr", "dental_xray")
IMAGES = TEST_IMAGES + max(TRAINING_IMAGES)
"""Of every task, encoded once at every depth."""
SPLITS = 12
DEFAULT = RouterSpec()
DEPTHS = (
    ("stem",),
    ("stage 1",),
    ("stage 2",),
    ("stage 3",),
    ("stage 4",),
    ("embedding",),
    ("stem", "embedding"),
    ("stage 2", "embedding"),
)
"""Side by side. Wider ones would cost minutes for their covariances alone."""


def percentile_rule(margin: float) -> Rule:
    """The product's, with this margin."""
    return lambda scores_N: choose_threshold(scores_N, RouterSpec(margin=margin))


def student_rule(tail: float) -> Rule:
    """What a new score exceeds with probability `tail`, if scores are normal with unknown mean and deviation.

    The fewer images, the wider: mean + t_(N-1)(1 - tail) s sqrt(1 + 1 / N).
    """

    def threshold(scores_N: NDArray[np.float64]) -> float:
        count = len(scores_N)
        deviation = float(scores_N.std(ddof=1)) * math.sqrt(1 + 1 / count)
        return float(scores_N.mean()) + float(student.ppf(1 - tail, count - 1)) * deviation

    return threshold


DEFAULT_RULE = percentile_rule(DEFAULT.margin)
RULES: dict[str, Rule] = {
    "percentile 97, margin 0": percentile_rule(0),
    f"percentile 97, margin {DEFAULT.margin:g} (default)": DEFAULT_RULE,
    "percentile 97, margin 3": percentile_rule(3),
    "Student, 1 in 100": student_rule(0.01),
    "Student, 1 in 1000": student_rule(0.001),
}


def run(around: Surroundings) -> Figures:
    """Both tables; figures by choice and number of images."""
    backbone = around.lite_medsam()
    features = {
        task: phantom_features(backbone, task, IMAGES, around.home, around.say, ENCODER_DEPTHS)
        for task in TASKS
    }
    return compare(around, features, [n for n in TRAINING_IMAGES if n <= around.images], SPLITS)


def compare(
    around: Surroundings, features: Mapping[str, Features], training: Sequence[int], splits: int
) -> Figures:
    """Depths under the default rule, then rules on the product's own features, over the same splits."""
    by_depth = table_of(f"encoder depths: moments, default threshold; mean over {splits} splits")
    by_rule = table_of(f"thresholds: moments of the embedding; mean over {splits} splits")
    figures: Figures = {}
    for images in training:
        for depths in DEPTHS:
            pooled = {task: concatenated(of_task, depths) for task, of_task in features.items()}
            scores = [score(DEFAULT, pooled, images, split) for split in range(splits)]
            choice = " + ".join(depths)
            figures |= add_row(by_depth, choice, images, [judge(s, DEFAULT_RULE, TWINS) for s in scores])
            around.say(f"{choice}, {images} images: accuracy {figures[f'accuracy_{choice}_{images}']:.3f}")
            if depths == ("embedding",):
                for name, rule in RULES.items():
                    figures |= add_row(by_rule, name, images, [judge(s, rule, TWINS) for s in scores])
    around.show(by_depth)
    around.show(by_rule)
    return figures


def concatenated(of_task: Features, depths: Sequence[str]) -> NDArray[np.float32]:
    """f_NF of several depths side by side."""
    return np.concatenate([of_task[depth] for depth in depths], axis=1)


def table_of(title: str) -> Table:
    """Without rows yet."""
    table = Table(title=title)
    for name in ("choice", "images", *COLUMNS):
        table.add_column(name, justify="left" if name == "choice" else "right")
    return table


def add_row(table: Table, choice: str, images: int, qualities: Sequence[Quality]) -> Figures:
    """Means over splits, shown and returned as `<column>_<choice>_<images>`."""
    means = means_of(qualities)
    table.add_row(choice, str(images), *cells_of(means))
    return {f"{column}_{choice}_{images}": m for column, m in means.items() if m is not None}
