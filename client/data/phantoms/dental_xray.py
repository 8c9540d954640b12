"""Dental X-ray: two rows of overlapping teeth (one instance each, roots included) in bone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.data.dataset import LoadedSample
from client.data.phantoms.shapes import Blob, Canvas, Field, wobble
from client.data.phantoms.texture import fractal_noise, grain, smooth_noise, soften


@dataclass(frozen=True)
class _Tooth:
    """A tooth from the middle of its biting edge along its axis.

    y, x: middle of the biting edge. tilt: of the axis from the vertical. up: -1 upper jaw, 1 lower jaw.
    width, length: of crown and whole tooth. roots: 1 or 2.
    """

    y: float
    x: float
    tilt: float
    up: int
    width: float
    length: float
    roots: int

    def axes(self, y: Field, x: Field) -> tuple[Field, Field]:
        """(t, u): t along the axis, 0 biting edge, 1 tip of the root; u across it, units of the side."""
        dy, dx = (y - self.y) * self.up, x - self.x
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        return (cos * dy + sin * dx) / self.length, cos * dx - sin * dy

    def half_width(self, t: Field) -> Field:
        """Half the width at t: a rounded crown, a neck, a tapering root; 0 outside 0..1."""
        crown = np.sqrt(np.clip(t / 0.08, 0, 1))
        taper = 1 - 0.22 * np.clip((t - 0.25) / 0.15, 0, 1) - 0.5 * np.clip((t - 0.4) / 0.6, 0, 1)
        tip = np.sqrt(np.clip((1 - t) / 0.12, 0, 1))
        return np.asarray(0.5 * self.width * crown * taper * tip)


def paint(rng: np.random.Generator, size: int, patient: np.random.Generator | None = None) -> LoadedSample:
    """One exposure; the patient fixes the jaw's curve and the teeth's size."""
    body = patient or rng
    curve, gap = body.uniform(0.15, 0.35), body.uniform(0.01, 0.03)
    width = body.uniform(0.105, 0.13)

    canvas = Canvas(size, (0.3,))
    middle = 0.5 + rng.normal(0, 0.015) + curve * ((canvas.x - 0.5) ** 2 - 0.06)
    _paint_jaws(rng, canvas, middle)
    label = 0
    for up in (-1, 1):
        for x in np.arange(rng.uniform(-0.02, 0.03), 1.03, width * 0.93):
            if rng.random() < 0.06:
                continue
            label += 1
            tooth = _shape(rng, x, up, width, curve, gap)
            _paint_tooth(rng, canvas, tooth, label)

    soften(canvas, 0.005)
    canvas.image_CHW *= np.exp(0.12 * smooth_noise(rng, size, 0.4))
    canvas.image_CHW += grain(rng, size, 0.002) * 0.025
    return canvas.sample(smallest=0.002)


def _shape(rng: np.random.Generator, x: float, up: int, width: float, curve: float, gap: float) -> _Tooth:
    aside = x + rng.normal(0, 0.008)
    y = 0.5 + curve * ((aside - 0.5) ** 2 - 0.06) + up * gap + rng.normal(0, 0.006)
    molar = abs(aside - 0.5) > 0.22
    return _Tooth(
        y=y,
        x=aside,
        tilt=rng.normal(0, 0.08) - up * (aside - 0.5) * 0.25,
        up=up,
        width=width * rng.uniform(0.95, 1.15) * (1.1 if molar else 0.9),
        length=rng.uniform(0.26, 0.34) * (0.9 if molar else 1.05),
        roots=2 if molar else 1,
    )


def _paint_jaws(rng: np.random.Generator, canvas: Canvas, middle: Field) -> None:
    """Dark mouth between two bands of trabecular bone, sinus above, canal below."""
    distance = np.abs(canvas.y - middle)
    bone = 1 / (1 + np.exp(-(distance - 0.11) / 0.012)) / (1 + np.exp((distance - 0.42) / 0.03))
    trabeculae = 0.035 * fractal_noise(rng, canvas.size, 0.025, 2)
    trabeculae += 0.03 * smooth_noise(rng, canvas.size, 0.12)
    canvas.image_CHW[0] = 0.12 + bone * (0.36 + trabeculae)
    for x in (0.22, 0.8):
        sinus = Blob(0.06, x, 0.1, 0.17, 0.0, wobble(rng, 0.08))
        canvas.fill(sinus, (0.22,), softness=0.06, opacity=0.8)
    canal = np.exp(-(((canvas.y - middle - 0.36) / 0.012) ** 2)) * 0.3
    canvas.blend(canal, (0.2,))


def _paint_tooth(rng: np.random.Generator, canvas: Canvas, tooth: _Tooth, label: int) -> None:
    """Bright enamel, greyer dentine whose root sinks into the bone, dark pulp, sometimes a filling."""
    reach = Blob(tooth.y + tooth.up * tooth.length / 2, tooth.x, tooth.length * 0.65, tooth.length * 0.65)
    window = canvas.window(reach)
    t, u = tooth.axes(canvas.y[window], canvas.x[window])
    half = tooth.half_width(t)
    inside = 1 / (1 + np.exp(np.clip((np.abs(u) - half) / 0.003, -30, 30))) * (half > 0)
    ligament = np.exp(-(((np.abs(u) - half) / 0.005) ** 2)) * (t > 0.42) * (half > 0)
    canvas.blend(ligament * 0.35, (0.25,), window)
    # Film adds up all tissue along a ray, so bone and neighbouring teeth are visible through a tooth.
    root = np.clip((t - 0.3) / 0.3, 0, 1)
    canvas.blend(inside * (0.85 - 0.4 * root), (float(rng.uniform(0.56, 0.64)),), window)
    enamel = inside * (t < 0.3) * np.clip(1 - (half - np.abs(u)) / 0.02, 0, 1)
    canvas.blend(enamel * 0.8, (0.8,), window)
    offset = tooth.width * 0.2 if tooth.roots == 2 else 0.0
    pulp = np.exp(-(((np.abs(u) - offset * np.clip(t * 1.5, 0, 1)) / 0.007) ** 2)) * (t > 0.2) * (t < 0.92)
    canvas.blend(pulp * 0.55 * inside, (0.32,), window)
    if tooth.roots == 2:
        furcation = inside * (t > 0.62) * (np.abs(u) < 0.3 * half)
        canvas.blend(furcation * 0.5, (0.45,), window)
    if rng.random() < 0.3:
        y, x = tooth.y + tooth.up * tooth.length * rng.uniform(0.08, 0.2), tooth.x + rng.normal(0, 0.015)
        canvas.fill(Blob(y, x, 0.022, 0.03, 0.0, wobble(rng, 0.12)), (0.97,), softness=0.1)
    canvas.labels_HW[window][np.abs(u) < half] = label
