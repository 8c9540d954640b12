"""Rules that use a few validation images, tried on the layers of casam_bench.quality.layer_seconds.

`floors`: when to keep frozen SAM. `calibrations`: how to correct the decoder's estimate of the IoU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from casam_bench.bench import Figures, table_of
from casam_bench.quality.layer_tables import Cell, image_iou
from casam_core.model.validation import clearly_above_zero
from casam_core.seeding import numpy_generator

VALIDATED, REDRAWS = 6, 200
"""Validation images, and how often they are drawn."""
SHIFTS = (-0.05, -0.02, -0.01, -0.005, 0.005, 0.01, 0.02, 0.05)
"""Mean gains over frozen SAM that are tried: no layer of a phantom is worse than frozen SAM by itself."""

Show = Callable[[Table], None]

Pairs = NDArray[np.float64]
"""pairs_M2 of M masks: the decoder's estimate, and the IoU."""


# --- When to keep frozen SAM


def by_mean(gains_N: NDArray[np.float64]) -> bool:
    """The layer is better on the mean."""
    return bool(gains_N.mean() > 0)


def by_t_test(level: float) -> Callable[[NDArray[np.float64]], bool]:
    """The product's rule at this level."""
    return lambda gains_N: clearly_above_zero(gains_N, level)


RULES: dict[str, Callable[[NDArray[np.float64]], bool]] = {
    "no floor": lambda gains_N: True,
    "mean": by_mean,
    "t-test, level 0.3": by_t_test(0.3),
    "t-test, level 0.2": by_t_test(0.2),
    "t-test, level 0.1": by_t_test(0.1),
    "t-test, level 0.05": by_t_test(0.05),
}


def floors(cells: Sequence[Cell], kind: str, show: Show) -> Figures:
    """Every rule on every first layer, its images' gains moved to each of SHIFTS on the mean.

    Validation images are drawn with replacement. Figures: of every rule the largest expected loss of a layer
    that is worse than frozen SAM, and the share of layers of each gain that it keeps.
    """
    title = f"{kind} tasks: layers kept by rules of the fallback, {VALIDATED} validation images"
    shifts = [f"{100 * shift:+.1f}" for shift in SHIFTS]
    table = table_of(title, ("rule", "largest loss, points", *shifts))
    layers = [gains_of(cell, next(iter(cell["at"].values()))) for cell in cells]
    figures: Figures = {}
    for name, rule in RULES.items():
        rng = numpy_generator(0, "floors")
        kept_S = np.array([np.mean([share_kept(g, shift, rule, rng) for g in layers]) for shift in SHIFTS])
        loss = 100 * float(max(-shift * kept for shift, kept in zip(SHIFTS, kept_S, strict=True)))
        key = f"{kind}_{name.replace(', level', '').replace(' ', '_')}"
        figures[f"loss_{key}"] = loss
        figures |= {f"kept_{100 * s:+.1f}_{key}": float(k) for s, k in zip(SHIFTS, kept_S, strict=True)}
        table.add_row(name, f"{loss:.2f}", *(f"{kept:.2f}" for kept in kept_S))
    show(table)
    return figures


def gains_of(cell: Cell, at: Mapping[str, Any]) -> NDArray[np.float64]:
    """gains_N over frozen SAM, of all images that were measured."""
    parts = [image_iou(at[part]) - image_iou(cell["frozen"][part]) for part in ("val", "test")]
    return np.concatenate(parts)


def share_kept(
    gains_N: NDArray[np.float64],
    shift: float,
    rule: Callable[[NDArray[np.float64]], bool],
    rng: np.random.Generator,
) -> float:
    """How often a layer is kept whose gains scatter like these, around `shift`."""
    moved_N = gains_N - gains_N.mean() + shift
    return float(np.mean([rule(rng.choice(moved_N, VALIDATED)) for _ in range(REDRAWS)]))


# --- How to correct the decoder's estimate


def unchanged(pairs_M2: Pairs) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """The decoder's own estimate."""
    return lambda estimate_M: estimate_M


def shifted(pairs_M2: Pairs) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """The estimate plus the mean error of the validation masks."""
    error = float((pairs_M2[:, 1] - pairs_M2[:, 0]).mean())
    return lambda estimate_M: np.clip(estimate_M + error, 0, 1)


def straight(pairs_M2: Pairs) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """A straight line by least squares; its slope is between 0 and 2."""
    estimate_M, iou_M = pairs_M2.T
    spread = float(np.var(estimate_M))
    slope = float(np.cov(estimate_M, iou_M, bias=True)[0, 1]) / spread if spread else 1.0
    slope = min(max(slope, 0.0), 2.0)
    start = float(iou_M.mean() - slope * estimate_M.mean())
    return lambda estimate_M: np.clip(start + slope * estimate_M, 0, 1)


def only_mean(pairs_M2: Pairs) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """The mean IoU of the validation masks, whatever the decoder says."""
    mean = float(pairs_M2[:, 1].mean())
    return lambda estimate_M: np.full(len(estimate_M), mean)


CORRECTIONS = {"none": unchanged, "shift": shifted, "line": straight, "mean of validation": only_mean}


def calibrations(cells: Sequence[Cell], kind: str, show: Show) -> Figures:
    """Every correction on every last layer: fitted to its validation masks, tried on its test masks."""
    title = f"{kind} tasks: the decoder's estimate of the IoU, corrected by validation masks"
    table = table_of(title, ("correction", "calibration error", "mean error of a mask"))
    last = [list(cell["at"].values())[-1] for cell in cells]
    figures: Figures = {}
    for name, fit in CORRECTIONS.items():
        corrected = []
        for at in last:
            estimate_M, iou_M = pairs_of(at["test"]).T
            corrected.append(np.stack([fit(pairs_of(at["val"]))(estimate_M), iou_M], axis=1))
        together = np.concatenate(corrected)
        key = f"{kind}_{name.replace(' ', '_')}"
        figures |= {f"ece_{key}": calibration_error(together), f"error_{key}": mean_error(together)}
        table.add_row(name, f"{figures[f'ece_{key}']:.3f}", f"{figures[f'error_{key}']:.3f}")
    show(table)
    return figures


def pairs_of(images: Sequence[Sequence[Sequence[float]]]) -> Pairs:
    """All masks of some images."""
    return np.array([pair for image in images for pair in image], np.float64).reshape(-1, 2)


def calibration_error(pairs_M2: Pairs, bins: int = 10) -> float:
    """Expected calibration error: |mean estimate - mean IoU| by tenths of the estimate, by masks."""
    estimate_M, iou_M = pairs_M2.T
    bin_M = np.clip((estimate_M * bins).astype(int), 0, bins - 1)
    apart = [abs((estimate_M - iou_M)[bin_M == b].sum()) for b in range(bins)]
    return float(np.sum(apart) / len(pairs_M2))


def mean_error(pairs_M2: Pairs) -> float:
    """Mean of |estimate - IoU|."""
    return float(np.abs(pairs_M2[:, 0] - pairs_M2[:, 1]).mean())
