"""Axial abdominal CT, soft-tissue window: the spleen (1), hardly brighter than its neighbours."""

from __future__ import annotations

import numpy as np

from client.data.dataset import LoadedSample
from client.data.phantoms.shapes import Blob, Canvas, wobble
from client.data.phantoms.texture import grain, smooth_noise, soften


def paint(
    rng: np.random.Generator,
    size: int,
    patient: np.random.Generator | None = None,
    *,
    extent: float = 1.0,
    noise: np.random.Generator | None = None,
) -> LoadedSample:
    """One slice; the patient fixes the torso, the spleen's form and the contrast phase.

    extent: of the spleen in this slice, 0 (not in it) to 1. noise: of the detector; by default from `rng`.
    Slices of one volume have the same `rng` and patient, another extent and other noise.
    """
    body = patient or rng
    torso = Blob(0.52, 0.5, body.uniform(0.33, 0.38), body.uniform(0.43, 0.47), 0.0, wobble(body, 0.015))
    phase = float(body.uniform(-0.03, 0.03))
    # The spleen lies along the inner side of the wall, on the right of the image.
    theta = body.uniform(0.2, 0.42)
    y, x = torso.at(0.61, theta)
    along = np.arctan2(torso.rx * np.sin(theta), torso.ry * np.cos(theta)) + body.normal(0, 0.06)
    length, width = body.uniform(0.13, 0.17) * rng.uniform(0.75, 1.05), body.uniform(0.055, 0.075)
    spleen = Blob(y, x, length * extent, width * extent, along, wobble(body, 0.06))

    canvas = Canvas(size, (0.02,))
    _paint_wall(rng, canvas, torso)
    _paint_organs(rng, canvas, phase)
    if extent > 0:
        _paint_spleen(rng, canvas, spleen, phase)
    soften(canvas, 0.004)
    # Reconstructed CT noise is coarser than a pixel and as strong as the organs' contrast.
    inside = torso.level(canvas.y, canvas.x) < 1.02
    drawn = noise or rng
    canvas.image_CHW += (0.05 * grain(drawn, size, 0.004) + 0.015 * smooth_noise(drawn, size, 0.05)) * inside
    return canvas.sample()


def _paint_wall(rng: np.random.Generator, canvas: Canvas, torso: Blob) -> None:
    """Skin, fat, muscle, ribs, spine with its canal, the table underneath."""
    canvas.fill(Blob(1.15, 0.5, 0.24, 0.75), (0.14,), softness=0.01)
    canvas.fill(torso, (0.5,), softness=0.008)
    canvas.fill(torso.scaled(0.985), (0.22,), softness=0.008)
    canvas.fill(torso.scaled(0.9), (0.46,), softness=0.012)
    canvas.fill(torso.scaled(0.83), (0.25,), softness=0.015)
    start = rng.uniform(0, 0.4)
    for theta in np.arange(start, start + 2 * np.pi, 0.42):
        if 1.2 < theta % (2 * np.pi) < 1.95:
            continue
        y, x = torso.at(0.865, theta)
        along = np.arctan2(torso.ry * np.cos(theta), -torso.rx * np.sin(theta))
        rib = Blob(y, x, 0.011, rng.uniform(0.025, 0.045), along)
        canvas.fill(rib, (0.95,), softness=0.15)
        canvas.fill(rib.scaled(0.55), (0.68,), softness=0.2)
    bottom = torso.y + torso.ry * 0.62
    for side in (-1, 1):
        canvas.fill(Blob(bottom + 0.04, 0.5 + side * 0.12, 0.06, 0.085, 0.0, wobble(rng, 0.05)), (0.47,))
    canvas.fill(Blob(bottom, 0.5, 0.055, 0.065, 0.0, wobble(rng, 0.04)), (0.92,), softness=0.05)
    canvas.fill(Blob(bottom, 0.5, 0.045, 0.054), (0.72,), softness=0.08)
    canvas.fill(Blob(bottom + 0.085, 0.5, 0.05, 0.03, 0.0, wobble(rng, 0.1)), (0.9,), softness=0.1)
    canvas.fill(Blob(bottom + 0.062, 0.5, 0.02, 0.026), (0.4,), softness=0.1)


def _paint_organs(rng: np.random.Generator, canvas: Canvas, phase: float) -> None:
    """Liver with vessels, stomach with an air bubble, aorta, kidney, bowel."""
    liver = Blob(0.45 + rng.normal(0, 0.01), 0.3, 0.2, 0.17, 0.4, wobble(rng, 0.1))
    canvas.fill(liver, (0.57 + phase,), softness=0.02)
    canvas.fill(Blob(0.37, 0.44, 0.09, 0.12, 0.1, wobble(rng, 0.08)), (0.57 + phase,), softness=0.03)
    for _ in range(7):
        y, x = liver.at(rng.uniform(0.1, 0.7), rng.uniform(0, 2 * np.pi))
        vessel = Blob(y, x, 0.008, rng.uniform(0.01, 0.03), rng.uniform(0, 3))
        canvas.fill(vessel, (0.64 + phase,), softness=0.2)
    stomach = Blob(0.41, 0.64 + rng.normal(0, 0.015), 0.1, 0.14, -0.2, wobble(rng, 0.08))
    canvas.fill(stomach, (0.55,), softness=0.02)
    canvas.fill(stomach.scaled(0.88), (float(rng.uniform(0.45, 0.55)),), softness=0.03)
    bubble = ((canvas.y < stomach.y - 0.02) & (stomach.level(canvas.y, canvas.x) < 0.85)).astype(np.float32)
    canvas.blend(bubble, (0.02,))
    canvas.fill(Blob(0.66, 0.55, 0.03, 0.03), (0.68 + phase,), softness=0.06)
    canvas.fill(Blob(0.62, 0.43, 0.028, 0.036), (0.6 + phase,), softness=0.08)
    for x in (0.34, 0.655):
        kidney = Blob(0.7 + rng.normal(0, 0.01), x, 0.075, 0.05, rng.normal(0, 0.2), wobble(rng, 0.05))
        canvas.fill(kidney, (0.62 + phase,), softness=0.04)
        canvas.fill(kidney.scaled(0.45), (0.45,), softness=0.15)
    for _ in range(6):
        y, x = rng.uniform(0.5, 0.58), rng.uniform(0.44, 0.66)
        loop = Blob(y, x, rng.uniform(0.02, 0.035), rng.uniform(0.02, 0.04), 0.0, wobble(rng, 0.08))
        canvas.fill(loop, (float(rng.uniform(0.42, 0.56)),), softness=0.08)


def _paint_spleen(rng: np.random.Generator, canvas: Canvas, spleen: Blob, phase: float) -> None:
    """A bean leaning on wall, stomach and kidney, mottled as in the arterial phase, with a hilum."""
    mottle = np.clip(smooth_noise(rng, canvas.size, 0.035), -2, 2) * 0.06
    # The folded stomach and the flexure of the bowel touch it and are as grey as it is.
    for theta in (rng.uniform(-2.0, -1.4), np.pi + rng.normal(0, 0.3), rng.uniform(1.9, 2.4)):
        y, x = spleen.at(1.15, theta)
        ry, rx = rng.uniform(0.025, 0.045, 2)
        loop = Blob(y, x, ry, rx, rng.uniform(0, 3), wobble(rng, 0.1))
        canvas.fill(loop, (float(rng.uniform(0.5, 0.58)) + phase,), softness=0.08)
    canvas.fill(spleen, (0.56 + phase,), softness=0.05, texture_HW=mottle)
    canvas.label(spleen, 1)
    # Vessels enter at the hilum: a bright edge inside the outline.
    for _ in range(4):
        y, x = spleen.at(rng.uniform(0.3, 0.95), np.pi + rng.normal(0, 0.35))
        canvas.fill(Blob(y, x, 0.008, 0.02, rng.normal(0, 0.4)), (0.74 + phase,), softness=0.25)
