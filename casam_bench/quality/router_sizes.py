"""What a smaller router state costs in routing: fewer directions of the covariance, and half precision.

The figures are those of router_quality. Thresholds are made before a state is rounded, as in a run, so
rounded and exact states of one size share their held-out scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from casam_bench.bench import Figures, Surroundings
from casam_bench.quality.router_quality import (
    COLUMNS,
    TRAINING_IMAGES,
    TWINS,
    Quality,
    cells_of,
    judge,
    learnable,
    means_of,
    score,
)
from casam_core.bank.entries import rounded
from casam_core.config.scenario import RouterSpec
from casam_core.routing.routers import Arrays, build_router
from casam_core.routing.threshold import choose_threshold

DIRECTIONS = (32, 16, 8, 4, 0)
SPLITS = 12
EXACT, HALF = "float32", "float16"


@dataclass(frozen=True)
class Size:
    """One candidate: how many directions are kept, and how the state is stored."""

    directions: int
    precision: str

    @property
    def spec(self) -> RouterSpec:
        """The default router but for its size."""
        return RouterSpec(directions=self.directions)

    @property
    def name(self) -> str:
        """For tables and figures."""
        return f"{self.directions}_{self.precision}"

    def stored(self, state: Arrays) -> Arrays:
        """The state as an institution receives it."""
        return rounded(state) if self.precision == HALF else state

    def kib(self, f_NF: NDArray[np.float32]) -> float:
        """Of a state learned from these features."""
        router = build_router(self.spec)
        state = self.stored(router.fit(router.sufficient_statistics(torch.from_numpy(f_NF), 0)))
        return sum(array.nbytes for array in state.values()) / 1024

    def qualities(self, pooled: Mapping[str, NDArray[np.float32]], images: int) -> list[Quality]:
        """One per split."""
        found = (score(self.spec, pooled, images, split, self.stored) for split in range(SPLITS))
        return [judge(one, lambda s_N: choose_threshold(s_N, self.spec), TWINS) for one in found]


SIZES = (Size(DIRECTIONS[0], EXACT), *(Size(directions, HALF) for directions in DIRECTIONS))


def run(around: Surroundings) -> Figures:
    """Figures by size and number of training images: `accuracy_8_float16_64`, ...; `kib_8_float16`."""
    table = Table(title=f"gaussian router on moments, mean over {SPLITS} splits")
    for name in ("directions", "stored as", "KiB", "images", *COLUMNS):
        table.add_column(name, justify="right")
    figures: Figures = {}
    for images in [n for n in TRAINING_IMAGES if n <= around.images]:
        pooled = {task: found["moments"] for task, found in learnable(around, images).items()}
        for size in SIZES:
            judged, kib = size.qualities(pooled, images), size.kib(next(iter(pooled.values()))[:images])
            means = means_of(judged)
            figures |= {f"{key}_{size.name}_{images}": v for key, v in means.items() if v is not None}
            figures[f"kib_{size.name}"] = kib
            table.add_row(str(size.directions), size.precision, f"{kib:.1f}", str(images), *cells_of(means))
            around.say(f"{size.name}, {images} images: accuracy {means['accuracy']:.3f}")
    around.show(table)
    return figures
