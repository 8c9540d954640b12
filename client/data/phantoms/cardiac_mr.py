"""Short-axis cine MR of the heart: blood pool (1) and the ring of myocardium around it (2)."""

from __future__ import annotations

import numpy as np

from client.data.dataset import LoadedSample
from client.data.phantoms.shapes import Blob, Canvas, wobble
from client.data.phantoms.texture import bias_field, fractal_noise, rician, smooth_noise, soften


def paint(rng: np.random.Generator, size: int, patient: np.random.Generator | None = None) -> LoadedSample:
    """One slice; the patient fixes the heart's place, size, wall and the direction of the septum."""
    body = patient or rng
    y, x = body.uniform(0.45, 0.57), body.uniform(0.48, 0.6)
    outer_radius, wall = body.uniform(0.13, 0.18), body.uniform(0.3, 0.42)
    septum = body.uniform(2.7, 3.7)
    shape = wobble(body, 0.03)
    # Slices run from the apex (small, thick wall) to the base.
    height = rng.uniform(0.75, 1.0)
    epi = Blob(y, x, outer_radius * height, outer_radius * height * 1.05, septum, shape)
    endo = epi.scaled(1 - wall / height**0.5).moved(*rng.normal(0, 0.004, 2))

    canvas = Canvas(size, (0.07,))
    organs = fractal_noise(rng, size, 0.1) * 0.02
    _paint_chest(rng, canvas, epi)
    _paint_right_ventricle(rng, canvas, epi, septum)

    # Epicardial fat is the strongest edge near the outer border, and it covers only a part of it.
    patches = (smooth_noise(rng, size, 0.16) > 0.3).astype(np.float32) * 0.75
    canvas.fill(epi.scaled(1.1), (0.72,), softness=0.03, opacity=patches)
    muscle = float(rng.uniform(0.27, 0.34))
    canvas.fill(epi, (muscle,), softness=0.05, texture_HW=organs)
    canvas.fill(endo, (float(rng.uniform(0.6, 0.78)),), softness=0.09, texture_HW=organs * 2)
    # Papillary muscles and trabeculae look like wall but count as pool, as in the clinical convention.
    for theta in (rng.uniform(0.3, 1.2), rng.uniform(2.2, 3.2), *rng.uniform(0, 2 * np.pi, 4)):
        py, px = endo.at(rng.uniform(0.6, 0.92), theta)
        radius = endo.rx * rng.uniform(0.12, 0.24)
        canvas.fill(Blob(py, px, radius, radius * 1.3, theta), (muscle + 0.03,), softness=0.2, opacity=0.9)

    canvas.label(epi, 2)
    canvas.label(endo, 1)
    soften(canvas, 0.0045)
    bias_field(rng, canvas, 0.15)
    rician(rng, canvas, 0.03)
    return canvas.sample()


def _paint_chest(rng: np.random.Generator, canvas: Canvas, heart: Blob) -> None:
    """Chest wall with fat, dark lungs, liver under the heart, spine and aorta."""
    torso = Blob(0.52, 0.5, 0.47, 0.62, 0.0, wobble(rng, 0.02))
    canvas.fill(torso, (0.75,), softness=0.012)
    canvas.fill(torso.scaled(0.92), (0.36,), softness=0.02)
    canvas.fill(Blob(0.45, 0.16, 0.3, 0.2, 0.2, wobble(rng, 0.05)), (0.11,))
    canvas.fill(Blob(0.5, 0.87, 0.34, 0.16, -0.2, wobble(rng, 0.05)), (0.11,))
    grey = (float(rng.uniform(0.3, 0.4)),)
    canvas.fill(Blob(heart.y + 0.3, heart.x - 0.2, 0.17, 0.36, 0.1, wobble(rng, 0.05)), grey, softness=0.04)
    canvas.fill(Blob(0.87, 0.5, 0.07, 0.075), (0.45,), softness=0.1)
    canvas.fill(Blob(0.78, 0.62, 0.028, 0.028), (0.7,), softness=0.1)
    # Fat around the heart's sac.
    canvas.fill(heart.moved(0, -0.06).scaled(1.6), (0.5,), softness=0.06, opacity=0.7)


def _paint_right_ventricle(rng: np.random.Generator, canvas: Canvas, epi: Blob, septum: float) -> None:
    """A bright crescent that hugs the septum, with a thin wall."""
    ry, rx = epi.at(0.95, 0.0)
    crescent = Blob(ry, rx, epi.ry * 1.05, epi.rx * 0.75, septum, wobble(rng, 0.06))
    canvas.fill(crescent.scaled(1.12), (0.3,), softness=0.05)
    canvas.fill(crescent, (float(rng.uniform(0.55, 0.72)),), softness=0.06)
