"""Noise, shading and light: fields over the whole image, in units that do not depend on its size."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from client.data.phantoms.shapes import Canvas, Field


def _spline(lattice: Field, positions: Field, axis: int) -> Field:
    """Cubic B-spline of `lattice` along `axis` at `positions`.

    Four plain taps instead of a matrix product, whose last bits depend on the number of threads.
    """
    floor = np.floor(positions)
    cell, t = floor.astype(np.intp), positions - floor
    taps = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
    shape = (-1, 1) if axis == 0 else (1, -1)
    total = taps[0].reshape(shape) * np.take(lattice, cell, axis=axis)
    for offset, weight in enumerate(taps[1:], start=1):
        total += weight.reshape(shape) * np.take(lattice, cell + offset, axis=axis)
    return np.asarray(total)


def smooth_noise(rng: np.random.Generator, size: int, scale: float, scale_x: float | None = None) -> Field:
    """HW, mean 0, standard deviation about 1, features about `scale` wide (`scale_x` across columns).

    size: of a side, in pixels. scale: in units of the side.
    """
    cells = [max(1, round(1 / s)) for s in (scale, scale if scale_x is None else scale_x)]
    lattice = rng.standard_normal((cells[0] + 4, cells[1] + 4), dtype=np.float32)
    centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
    # The spline averages white noise to a standard deviation of about 0.48; undo that.
    return _spline(_spline(lattice, centres * cells[0], 0), centres * cells[1], 1) / 0.48


def fractal_noise(rng: np.random.Generator, size: int, scale: float, octaves: int = 3) -> Field:
    """HW, standard deviation about 1: smooth noise plus ever finer, ever weaker copies, `octaves` in all."""
    total = np.zeros((size, size), dtype=np.float32)
    for octave in range(octaves):
        total += smooth_noise(rng, size, scale / 2**octave) * 0.6**octave
    return total


def grain(rng: np.random.Generator, size: int, blur: float = 0.0) -> Field:
    """HW white noise of standard deviation 1, smoothed by `blur` (units of the side) if that is visible."""
    noise = rng.standard_normal((size, size), dtype=np.float32)
    if blur * size < 0.3:
        return noise
    noise = ndimage.gaussian_filter(noise, blur * size, mode="wrap", truncate=3.0)
    return np.asarray(noise / max(float(noise.std()), 1e-6), dtype=np.float32)


def soften(canvas: Canvas, blur: float) -> None:
    """Blur the image in place: the point spread of the machine. blur: units of the side."""
    if blur * canvas.size < 0.2:
        return
    for plane in canvas.image_CHW:
        plane[:] = ndimage.gaussian_filter(plane, blur * canvas.size, mode="nearest", truncate=3.0)


def rician(rng: np.random.Generator, canvas: Canvas, sigma: float) -> None:
    """Magnitude MR noise: never negative, and dark air is lifted. sigma: of gray values from 0 to 1."""
    shape = canvas.image_CHW.shape
    real, imaginary = (sigma * rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
    canvas.image_CHW = np.sqrt((canvas.image_CHW + real) ** 2 + imaginary**2)


def bias_field(rng: np.random.Generator, canvas: Canvas, strength: float) -> None:
    """Slow multiplicative shading of an MR coil; strength is its standard deviation."""
    canvas.image_CHW *= np.exp(strength * smooth_noise(rng, canvas.size, 0.6))


def vignette(canvas: Canvas, strength: float) -> None:
    """Darken towards the corners; strength 0..1 is the loss of brightness there."""
    radius2 = ((canvas.y - 0.5) ** 2 + (canvas.x - 0.5) ** 2) * 2
    canvas.image_CHW *= 1 - strength * radius2
