"""Haematoxylin and eosin: purple nuclei (one instance each) on pink stroma, among look-alikes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.data.dataset import LoadedSample
from client.data.phantoms.shapes import Blob, Canvas, Field, wobble
from client.data.phantoms.texture import fractal_noise, grain, smooth_noise, soften


def paint(rng: np.random.Generator, size: int, patient: np.random.Generator | None = None) -> LoadedSample:
    """One tile; the slide fixes the stain."""
    slide = patient or rng
    pink = np.array([0.88, 0.66, 0.78]) + slide.normal(0, 0.02, 3)
    purple = np.array([0.52, 0.36, 0.62]) + slide.normal(0, 0.03, 3)

    canvas = Canvas(size, tuple(pink))
    along, across = rng.permutation([0.025, 0.12])
    fibres = smooth_noise(rng, size, along, across)
    weave = fibres * 0.025 + fractal_noise(rng, size, 0.15) * 0.025
    # Dense fibres take up eosin, which swallows green most.
    canvas.image_CHW += weave * np.array([0.6, 1.0, 0.7])[:, None, None]
    _paint_tissue(rng, canvas, purple)

    chromatin = grain(rng, size, 0.006) * 0.07
    nucleoli: list[tuple[float, float]] = []
    for label in range(1, int(rng.integers(36, 56)) + 1):
        nucleus = _place(rng, canvas)
        _paint_nucleus(rng, canvas, nucleus, purple, chromatin)
        canvas.label(nucleus, label)
        for theta in rng.uniform(0, 2 * np.pi, rng.integers(0, 3)):
            nucleoli.append(nucleus.at(rng.uniform(0, 0.5), theta))
    canvas.dots(nucleoli, 0.006, tuple(purple - 0.14))

    soften(canvas, 0.003)
    canvas.image_CHW += grain(rng, size) * 0.015
    return canvas.sample(smallest=0.0006)


def _place(rng: np.random.Generator, canvas: Canvas) -> Blob:
    """A nucleus that mostly misses earlier ones; a few touch or overlap, as in tissue."""
    for _ in range(6):
        y, x = rng.uniform(0.0, 1.0, 2)
        row, column = int(y * canvas.size), int(x * canvas.size)
        if canvas.labels_HW[row, column] == 0:
            break
    radius = rng.uniform(0.026, 0.044)
    return Blob(y, x, radius * rng.uniform(0.6, 0.95), radius, rng.uniform(0, np.pi), wobble(rng, 0.06))


def _paint_nucleus(
    rng: np.random.Generator, canvas: Canvas, nucleus: Blob, purple: NDArray[np.float64], chromatin: Field
) -> None:
    """Halo, membrane, and either dense or vesicular chromatin."""
    faint = float(rng.uniform(0.5, 0.95))
    # Purple cytoplasm beyond the nucleus: an edge that is not the labelled one.
    shift = rng.normal(0, 0.008, 2)
    cytoplasm = nucleus.moved(*shift).scaled(rng.uniform(1.4, 1.9))
    canvas.fill(cytoplasm, tuple(purple + 0.2), softness=0.12, opacity=0.45)
    canvas.fill(nucleus, tuple(purple), softness=0.1, opacity=faint, texture_HW=chromatin)
    if rng.random() < 0.5:
        pale = tuple(purple + np.array([0.22, 0.2, 0.16]))
        canvas.fill(nucleus.scaled(0.72), pale, softness=0.15, opacity=0.75, texture_HW=chromatin * 1.4)


def _paint_tissue(rng: np.random.Generator, canvas: Canvas, purple: NDArray[np.float64]) -> None:
    """Gaps, basophilic haze, out-of-focus nuclei, fibroblasts and debris: none of them labelled."""
    for _ in range(int(rng.integers(1, 4))):
        y, x = rng.uniform(0, 1, 2)
        ry, rx = rng.uniform(0.03, 0.1, 2)
        gap = Blob(y, x, ry, rx, rng.uniform(0, 3), wobble(rng, 0.12))
        canvas.fill(gap, (0.95, 0.93, 0.95), softness=0.06)
    haze = np.clip(smooth_noise(rng, canvas.size, 0.2) * 0.25, 0, 0.45)
    canvas.blend(haze, tuple(purple + 0.12))
    canvas.dots(_scatter(rng, 20), 0.03, tuple(purple + 0.2))
    for _ in range(14):
        y, x = rng.uniform(0, 1, 2)
        streak = Blob(y, x, 0.007, rng.uniform(0.03, 0.06), rng.uniform(0, np.pi), wobble(rng, 0.1))
        canvas.fill(streak, tuple(purple), softness=0.25, opacity=0.6)
    canvas.dots(_scatter(rng, 20), 0.006, tuple(purple - 0.05))


def _scatter(rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
    return [(float(y), float(x)) for y, x in rng.uniform(0, 1, (count, 2))]
