"""Colonoscopy: a polyp (one instance each) that differs from the mucosa mostly by its shading."""

from __future__ import annotations

import numpy as np

from client.data.dataset import LoadedSample
from client.data.phantoms.shapes import Blob, Canvas, Colour, wobble
from client.data.phantoms.texture import fractal_noise, grain, smooth_noise, soften, vignette


def paint(rng: np.random.Generator, size: int, patient: np.random.Generator | None = None) -> LoadedSample:
    """One frame; the patient fixes the mucosa's colour."""
    body = patient or rng
    mucosa = np.array([0.78, 0.42, 0.32]) + body.normal(0, 0.03, 3)

    canvas = Canvas(size, tuple(mucosa))
    light = 0.1 * smooth_noise(rng, size, 0.4) + 0.03 * fractal_noise(rng, size, 0.1)
    canvas.image_CHW *= np.exp(light)
    _paint_lumen_and_folds(rng, canvas)
    for label in range(1, 2 + int(rng.random() < 0.3)):
        polyp = _shape(rng)
        _paint_polyp(rng, canvas, polyp, tuple(mucosa))
        canvas.label(polyp, label)
    _paint_vessels(rng, canvas)
    soften(canvas, 0.004)
    _paint_highlights(rng, canvas)

    vignette(canvas, 0.65)
    lens = Blob(0.5, 0.5, 0.56, 0.6, 0.0, ((4, 0.05, float(np.pi)),))
    canvas.image_CHW *= lens.level(canvas.y, canvas.x) < 1
    # The dark frame hides what lies behind it, from the annotator too.
    canvas.labels_HW[lens.level(canvas.y, canvas.x) >= 1] = 0
    canvas.image_CHW += grain(rng, size, 0.002) * 0.012
    return canvas.sample(smallest=0.003)


def _shape(rng: np.random.Generator) -> Blob:
    y, x = rng.uniform(0.27, 0.73, 2)
    radius = rng.uniform(0.09, 0.2)
    return Blob(y, x, radius * rng.uniform(0.65, 1.0), radius, rng.uniform(0, np.pi), wobble(rng, 0.09))


def _paint_polyp(rng: np.random.Generator, canvas: Canvas, polyp: Blob, mucosa: Colour) -> None:
    """A bump: lit on one side, in its own shadow on the other, its foot fading into the mucosa."""
    theta = rng.uniform(0, 2 * np.pi)
    dy, dx = 0.5 * polyp.reach * np.sin(theta), 0.5 * polyp.reach * np.cos(theta)
    dark, bright = tuple(0.62 * c for c in mucosa), tuple(min(1.0, 1.25 * c + 0.05) for c in mucosa)
    hue = tuple(np.array(mucosa) * (1.0, 0.8, 0.86))
    canvas.fill(polyp.moved(-0.25 * dy, -0.25 * dx).scaled(1.08), dark, softness=0.1, opacity=0.5)
    canvas.fill(polyp, hue, softness=0.08, opacity=float(rng.uniform(0.65, 0.95)))
    # The lit cap has a clearer edge than the polyp itself.
    canvas.fill(polyp.moved(0.3 * dy, 0.3 * dx).scaled(0.62), bright, softness=0.12, opacity=0.5)
    nodules = np.clip(smooth_noise(rng, canvas.size, 0.035) * 0.25, 0, 0.4)
    canvas.fill(polyp, dark, softness=0.08, opacity=nodules)


def _paint_lumen_and_folds(rng: np.random.Generator, canvas: Canvas) -> None:
    """The dark way ahead and the folds around it, each a bright ridge over a shadow."""
    y, x = rng.uniform(0.15, 0.85, 2)
    hole = Blob(y, x, 0.14, 0.18, rng.uniform(0, 3), wobble(rng, 0.08))
    canvas.fill(hole, (0.16, 0.06, 0.05), softness=0.25)
    for radius in np.arange(0.26, 0.9, rng.uniform(0.18, 0.26)):
        centre = np.array([y, x]) + rng.normal(0, 0.03, 2)
        fold = Blob(centre[0], centre[1], radius, radius * 1.15, rng.uniform(0, 3), wobble(rng, 0.06))
        level = fold.level(canvas.y, canvas.x)
        part = np.clip(0.5 + 0.6 * smooth_noise(rng, canvas.size, 0.35), 0, 1)
        ridge = np.exp(-(((level - 1) * radius / 0.012) ** 2)) * part
        shadow = np.exp(-(((level - 1) * radius / 0.03 + 1) ** 2)) * part
        canvas.image_CHW *= 1 - 0.35 * shadow + 0.22 * ridge


def _paint_vessels(rng: np.random.Generator, canvas: Canvas) -> None:
    """Fine red branches: the zero lines of a smooth field."""
    field = smooth_noise(rng, canvas.size, 0.09)
    lines = np.exp(-((field / 0.07) ** 2)) * np.clip(smooth_noise(rng, canvas.size, 0.25), 0, 1) * 0.35
    canvas.blend(lines, (0.55, 0.15, 0.13))


def _paint_highlights(rng: np.random.Generator, canvas: Canvas) -> None:
    """Wet spots that mirror the lamp, on the polyp or off it."""
    for _ in range(int(rng.integers(8, 18))):
        y, x = rng.normal(0.5, 0.2, 2)
        radius = rng.uniform(0.004, 0.014)
        spot = Blob(y, x, radius, radius * rng.uniform(1, 2.5), rng.uniform(0, 3), wobble(rng, 0.1))
        canvas.fill(spot, (1.0, 0.97, 0.93), softness=0.2)
