"""Kidney cortex in two stains: glomeruli (one instance each, capsule included) among tubules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.data.dataset import LoadedSample
from client.data.phantoms.shapes import Blob, Canvas, Colour, Field, wobble
from client.data.phantoms.texture import fractal_noise, grain, smooth_noise, soften


@dataclass(frozen=True)
class _Stain:
    """RGB of each tissue, and how dense the cortex is cut."""

    stroma: Colour
    epithelium: Colour
    lumen: Colour
    tuft: Colour
    nucleus: Colour
    pitch: float


_PERIODIC_ACID_SCHIFF = _Stain(
    stroma=(0.84, 0.70, 0.82),
    epithelium=(0.77, 0.54, 0.70),
    lumen=(0.93, 0.88, 0.93),
    tuft=(0.72, 0.45, 0.66),
    nucleus=(0.42, 0.28, 0.55),
    pitch=0.14,
)
_TRICHROME = _Stain(
    stroma=(0.55, 0.68, 0.80),
    epithelium=(0.70, 0.45, 0.50),
    lumen=(0.84, 0.84, 0.86),
    tuft=(0.64, 0.47, 0.58),
    nucleus=(0.33, 0.18, 0.30),
    pitch=0.12,
)


def paint_a(rng: np.random.Generator, size: int, patient: np.random.Generator | None = None) -> LoadedSample:
    """Site A: periodic acid-Schiff, magenta."""
    return _paint(rng, size, patient or rng, _PERIODIC_ACID_SCHIFF)


def paint_b(rng: np.random.Generator, size: int, patient: np.random.Generator | None = None) -> LoadedSample:
    """Site B: trichrome, blue collagen and red epithelium, smaller tubules."""
    return _paint(rng, size, patient or rng, _TRICHROME)


def _paint(rng: np.random.Generator, size: int, slide: np.random.Generator, stain: _Stain) -> LoadedSample:
    tint = slide.normal(0, 0.015, 3)
    canvas = Canvas(size, stain.stroma)
    texture = fractal_noise(rng, size, 0.03, 2) * 0.03
    glomeruli = _place(rng)
    _paint_tubules(rng, canvas, stain, texture)
    for label, glomerulus in enumerate(glomeruli, start=1):
        _paint_glomerulus(rng, canvas, stain, glomerulus, texture * 2)
        canvas.label(glomerulus, label)
    soften(canvas, 0.003)
    canvas.image_CHW += (texture + grain(rng, size) * 0.015) + tint[:, None, None]
    return canvas.sample(smallest=0.004)


def _place(rng: np.random.Generator) -> list[Blob]:
    """One to three glomeruli that do not touch; the first lies well inside the image."""
    placed: list[Blob] = []
    for trial in range(int(rng.integers(2, 8))):
        low = 0.25 if trial == 0 else 0.05
        y, x = rng.uniform(low, 1 - low, 2)
        radius = rng.uniform(0.12, 0.18)
        blob = Blob(y, x, radius * rng.uniform(0.8, 1.0), radius, rng.uniform(0, np.pi), wobble(rng, 0.05))
        if all(np.hypot(y - b.y, x - b.x) > blob.reach + b.reach for b in placed):
            placed.append(blob)
    return placed[:3]


def _paint_tubules(rng: np.random.Generator, canvas: Canvas, stain: _Stain, texture: Field) -> None:
    """Tubules on a jittered grid: cut lengthwise or across, most with a lumen, ringed by nuclei."""
    nuclei: list[tuple[float, float]] = []
    steps = np.arange(-0.02, 1.05, stain.pitch)
    for y0 in steps:
        for x0 in steps:
            y, x = np.array([y0, x0]) + rng.normal(0, 0.014, 2)
            radius = stain.pitch * rng.uniform(0.42, 0.54)
            long = radius * rng.uniform(1.0, 1.35)
            tubule = Blob(y, x, radius, long, rng.uniform(0, np.pi), wobble(rng, 0.07, (2, 3)))
            canvas.fill(tubule, stain.epithelium, softness=0.05, texture_HW=texture)
            if rng.random() < 0.75:
                canvas.fill(tubule.scaled(rng.uniform(0.2, 0.55)), stain.lumen, softness=0.15, opacity=0.9)
            nuclei += [tubule.at(0.72, theta) for theta in rng.uniform(0, 2 * np.pi, 4)]
    canvas.dots(nuclei, 0.009, stain.nucleus)


def _paint_glomerulus(
    rng: np.random.Generator, canvas: Canvas, stain: _Stain, glomerulus: Blob, texture: Field
) -> None:
    """A faint capsule around a pale space and an off-centre tuft, whose edge is the strongest one."""
    canvas.fill(glomerulus.scaled(1.1), stain.stroma, softness=0.04, opacity=0.6)
    canvas.fill(glomerulus.scaled(1.02), stain.tuft, softness=0.03, texture_HW=texture)
    canvas.fill(glomerulus.scaled(0.95), stain.tuft, softness=0.04, texture_HW=texture)
    shift = rng.normal(0, 0.012, 2)
    tuft = Blob(
        glomerulus.y + shift[0],
        glomerulus.x + shift[1],
        glomerulus.ry * 0.78,
        glomerulus.rx * 0.78,
        glomerulus.angle,
        wobble(rng, 0.09, (2, 3, 5, 7)),
    )
    # The space is open on some sides only; on the others the tuft touches the capsule.
    opening = np.clip(0.4 + 0.6 * smooth_noise(rng, canvas.size, 0.12), 0, 1)
    canvas.fill(glomerulus.scaled(0.95), stain.lumen, softness=0.04, opacity=opening)
    canvas.fill(tuft, stain.tuft, softness=0.04, texture_HW=texture)
    loops = np.clip(smooth_noise(rng, canvas.size, 0.022) - 0.3, 0, 1) * 0.7
    canvas.fill(tuft, stain.lumen, softness=0.04, opacity=loops)
    places = zip(np.sqrt(rng.uniform(0, 0.95, 34)), rng.uniform(0, 2 * np.pi, 34), strict=True)
    canvas.dots([tuft.at(radius, theta) for radius, theta in places], 0.009, stain.nucleus)
