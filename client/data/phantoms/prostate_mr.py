"""Axial T2 MR of the pelvis at two sites: the whole prostate (1), whose inner zones have the clear edge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.data.dataset import LoadedSample
from client.data.phantoms.shapes import Blob, Canvas, Field, wobble
from client.data.phantoms.texture import bias_field, fractal_noise, rician, smooth_noise, soften


@dataclass(frozen=True)
class _Site:
    """What differs between two scanners. zoom: field of view; coil: glow near the rectum; noise: sigma."""

    zoom: float
    coil: float
    noise: float
    blur: float
    fat: float


_SITE_A = _Site(zoom=1.0, coil=0.0, noise=0.025, blur=0.004, fat=0.70)
_SITE_B = _Site(zoom=1.2, coil=0.7, noise=0.05, blur=0.006, fat=0.52)


def paint_a(rng: np.random.Generator, size: int, patient: np.random.Generator | None = None) -> LoadedSample:
    """Site A: surface coil, wide view."""
    return _paint(rng, size, patient or rng, _SITE_A)


def paint_b(rng: np.random.Generator, size: int, patient: np.random.Generator | None = None) -> LoadedSample:
    """Site B: a coil in the rectum, narrower view, darker fat, more noise."""
    return _paint(rng, size, patient or rng, _SITE_B)


def _paint(rng: np.random.Generator, size: int, body: np.random.Generator, site: _Site) -> LoadedSample:
    y, x = body.uniform(0.46, 0.54), body.uniform(0.47, 0.53)
    radius, height = body.uniform(0.12, 0.17) * site.zoom, body.uniform(0.72, 0.95)
    shape, inner = wobble(body, 0.05), body.uniform(0.6, 0.75)
    # Slices run from the apex (small) to the base.
    radius *= rng.uniform(0.8, 1.05)
    gland = Blob(y, x, radius * height, radius, rng.normal(0, 0.05), shape)

    canvas = Canvas(size, (0.05,))
    texture = fractal_noise(rng, size, 0.05) * 0.035
    _paint_pelvis(rng, canvas, gland, site)
    _paint_gland(rng, canvas, gland, inner, texture)
    canvas.label(gland, 1)
    soften(canvas, site.blur)
    if site.coil:
        distance2 = (canvas.y - gland.y - 1.5 * gland.ry) ** 2 + (canvas.x - gland.x) ** 2
        canvas.image_CHW *= 0.75 + site.coil * np.exp(-distance2 / 0.03)
    bias_field(rng, canvas, 0.12)
    rician(rng, canvas, site.noise)
    return canvas.sample()


def _paint_pelvis(rng: np.random.Generator, canvas: Canvas, gland: Blob, site: _Site) -> None:
    """Fat, muscles and bones on both sides, bladder above, rectum below, vessels around the gland."""
    z = site.zoom
    canvas.fill(Blob(0.5, 0.5, 0.44 * z, 0.54 * z, 0.0, wobble(rng, 0.02)), (site.fat,), softness=0.015)
    for side in (-1, 1):
        tilt = side * 0.3
        canvas.fill(Blob(0.42, 0.5 + side * 0.41 * z, 0.1 * z, 0.1 * z, 0, wobble(rng, 0.04)), (0.5,))
        muscle = Blob(0.5, 0.5 + side * 0.26 * z, 0.22 * z, 0.055 * z, tilt, wobble(rng, 0.08))
        canvas.fill(muscle, (0.2,), softness=0.06)
        canvas.fill(Blob(0.82, 0.5 + side * 0.22 * z, 0.12 * z, 0.17 * z, -tilt, wobble(rng, 0.05)), (0.23,))
    # Tissue around the gland as grey as the gland's own rim: the labelled border is the weak one.
    bed = gland.scaled(1.35).moved(0.01, 0)
    canvas.fill(bed, (0.42,), softness=0.08, texture_HW=fractal_noise(rng, canvas.size, 0.04, 2) * 0.07)
    rectum = Blob(gland.y + gland.ry + 0.075 * z, gland.x, 0.06 * z, 0.075 * z, 0.0, wobble(rng, 0.05))
    canvas.fill(rectum.scaled(1.2), (0.25,), softness=0.05)
    canvas.fill(rectum, (0.08 if site.coil else float(rng.uniform(0.3, 0.6)),), softness=0.06)
    top = gland.y - gland.ry - 0.05
    canvas.fill(Blob(top, gland.x, 0.035 * z, 0.12 * z, 0.0, wobble(rng, 0.06)), (0.24,), softness=0.1)
    for _ in range(10):
        y, x = gland.at(rng.uniform(1.1, 1.4), rng.uniform(0, 2 * np.pi))
        grey = (float(rng.choice([0.2, 0.65, 0.7])),)
        canvas.fill(Blob(y, x, 0.01, 0.015, rng.uniform(0, 3)), grey, softness=0.3)


def _paint_gland(rng: np.random.Generator, canvas: Canvas, gland: Blob, inner: float, texture: Field) -> None:
    """Bright peripheral zone below, dark transition zone with nodules above, a thin broken capsule."""
    patches = np.clip(0.35 + 0.35 * smooth_noise(rng, canvas.size, 0.1), 0, 0.8)
    canvas.fill(gland.scaled(1.03), (0.24,), softness=0.03, opacity=patches)
    rim = (float(rng.uniform(0.45, 0.52)),)
    canvas.fill(gland.scaled(0.98), rim, softness=0.05, texture_HW=texture * 1.5)
    zone = gland.scaled(inner).moved(-0.2 * gland.ry, 0)
    canvas.fill(zone.scaled(1.06), (0.2,), softness=0.05)
    canvas.fill(zone, (float(rng.uniform(0.3, 0.36)),), softness=0.06, texture_HW=texture * 1.5)
    for _ in range(int(rng.integers(3, 8))):
        y, x = zone.at(rng.uniform(0, 0.7), rng.uniform(0, 2 * np.pi))
        radius = zone.ry * rng.uniform(0.15, 0.4)
        nodule = Blob(y, x, radius, radius * 1.2, rng.uniform(0, 3), wobble(rng, 0.08))
        canvas.fill(nodule, (float(rng.uniform(0.22, 0.6)),), softness=0.12, opacity=0.8)
