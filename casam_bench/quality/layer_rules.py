"""Rules that use a few validation images, tried on the layers of casam_bench.quality.layer_seconds.

`floors`: when to keep frozen SAM. `calibrations`: how to correct the decoder's estimate of the IoU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from scipy import stats

from casam_bench.bench import Figures
from casam_bench.quality.layer_tables import Cell, Show, image_iou
from casam_core.seeding import numpy_generator

VALIDATED, REDRAWS, CLEAR = 6, 50, 0.002
"""Validation images; how often they are drawn anew; the gain or loss from which a layer is good or bad."""

Pairs = NDArray[np.float64]
"""pairs_M2 of M masks: the decoder's estimate, and the IoU."""


# --- When to keep frozen SAM


def by_mean(gains_N: NDArray[np.float64]) -> bool:
    """The layer is better on the mean."""
    return bool(gains_N.mean() > 0)


def by_t_test(level: float) -> Callable[[NDArray[np.float64]], bool]:
    """Student's paired test, one-sided: the gain is above 0 at this level."""

    def rule(gains_N: NDArray[np.float64]) -> bool:
        if np.ptp(gains_N) == 0:
            return bool(gains_N[0] > 0)
        return bool(stats.ttest_1samp(gains_N, 0, alternative="greater").pvalue < level)

    return rule


def by_rank_test(level: float) -> Callable[[NDArray[np.float64]], bool]:
    """Wilcoxon's signed ranks, one-sided and exact."""

    def rule(gains_N: NDArray[np.float64]) -> bool:
        if not gains_N.any():
            return False
        return bool(stats.wilcoxon(gains_N, alternative="greater").pvalue < level)

    return rule


RULES: dict[str, Callable[[NDArray[np.float64]], bool]] = {
    "no floor": lambda gains_N: True,
    "mean": by_mean,
    "t-test, level 0.3": by_t_test(0.3),
    "t-test, level 0.2": by_t_test(0.2),
    "t-test, level 0.1": by_t_test(0.1),
    "t-test, level 0.05": by_t_test(0.05),
    "signed ranks, level 0.1": by_rank_test(0.1),
}


def floors(cells: Sequence[Cell], kind: str, show: Show) -> Figures:
    """Every rule on every measured layer, with validation images drawn anew from all its images."""
    table = Table(title=f"{kind} tasks: rules of the fallback to the identity, {VALIDATED} validation images")
    for name in ("rule", "points above frozen", "worst layer", "good kept", "bad dropped", "good", "bad"):
        table.add_column(name, justify="left" if name == "rule" else "right")
    layers = [gains_of(cell, at) for cell in cells for at in cell["at"].values()]
    figures: Figures = {}
    for name, rule in RULES.items():
        rng = numpy_generator(0, "floors")
        tried = [tried_on(gains_N, rule, rng) for gains_N in layers]
        kept, gain, others = (np.array(part) for part in zip(*tried, strict=True))
        good, bad = others > CLEAR, others < -CLEAR
        key = f"{kind}_{name.replace(', level', '').replace(' ', '_')}"
        found = {
            f"gain_{key}": 100 * float(gain.mean()),
            f"worst_{key}": 100 * float(gain.mean(axis=1).min()),
            f"good_kept_{key}": float(kept[good].mean()) if good.any() else np.nan,
            f"bad_dropped_{key}": float(1 - kept[bad].mean()) if bad.any() else np.nan,
        }
        first, second, *shares = found.values()
        row = [f"{first:+.2f}", f"{second:+.2f}", *(f"{share:.3f}" for share in shares)]
        table.add_row(name, *row, str(good.sum()), str(bad.sum()))
        figures |= found
    show(table)
    return figures


def gains_of(cell: Cell, at: Mapping[str, Any]) -> NDArray[np.float64]:
    """gains_N over frozen SAM, of all images that were measured."""
    parts = [image_iou(at[part]) - image_iou(cell["frozen"][part]) for part in ("val", "test")]
    return np.concatenate(parts)


def tried_on(
    gains_N: NDArray[np.float64], rule: Callable[[NDArray[np.float64]], bool], rng: np.random.Generator
) -> tuple[list[bool], list[float], list[float]]:
    """By redraw: whether the layer was kept, the gain of what was kept, and of the layer, on other images."""
    kept, gain, others = [], [], []
    for _ in range(REDRAWS):
        order = rng.permutation(len(gains_N))
        of_others = float(gains_N[order[VALIDATED:]].mean())
        kept.append(rule(gains_N[order[:VALIDATED]]))
        gain.append(of_others if kept[-1] else 0.0)
        others.append(of_others)
    return kept, gain, others


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
    table = Table(title=f"{kind} tasks: the decoder's estimate of the IoU, corrected by validation masks")
    for name in ("correction", "calibration error", "mean error of a mask"):
        table.add_column(name, justify="left" if name == "correction" else "right")
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
