"""Shapes on a canvas. All lengths are in units of the image's side, angles in radians.

Every phantom looks the same at every size: only noise finer than a pixel differs.
Shape suffixes: H rows, W columns, C channels (1 grey, 3 colour).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.data.dataset import LoadedSample

Field = NDArray[np.float32]
Colour = Sequence[float]
Crop = tuple[slice, slice]


@dataclass(frozen=True)
class Blob:
    """An ellipse whose radius is modulated by a few harmonics.

    y, x: centre. ry, rx: half axes. angle: of the rx axis, clockwise on screen.
    harmonics: (order, amplitude, phase), orders rising from 1; amplitudes are shares of the radius.
    """

    y: float
    x: float
    ry: float
    rx: float
    angle: float = 0.0
    harmonics: tuple[tuple[int, float, float], ...] = ()

    @property
    def reach(self) -> float:
        """Upper bound of the distance between the blob's border and its centre."""
        return max(self.ry, self.rx) * (1 + math.fsum(abs(amplitude) for _, amplitude, _ in self.harmonics))

    def level(self, y: Field, x: Field) -> Field:
        """0 at the centre, 1 on the border, growing linearly outwards."""
        # Plain floats keep float32 arrays float32, which halves the time of the whole painting.
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        dy, dx = y - float(self.y), x - float(self.x)
        u, v = (cos * dx + sin * dy) / float(self.rx), (cos * dy - sin * dx) / float(self.ry)
        radius = np.sqrt(u * u + v * v)
        if not self.harmonics:
            return np.asarray(radius)
        # The addition theorem instead of cosines of the angle: several times as fast.
        inverse = 1 / np.maximum(radius, 1e-6)
        cos_1, sin_1 = u * inverse, v * inverse
        cos_n, sin_n, reached = cos_1, sin_1, 1
        edge = np.ones_like(radius)
        for order, amplitude, phase in self.harmonics:
            while reached < order:
                cos_n, sin_n = cos_n * cos_1 - sin_n * sin_1, sin_n * cos_1 + cos_n * sin_1
                reached += 1
            edge += (amplitude * math.cos(phase)) * cos_n
            edge -= (amplitude * math.sin(phase)) * sin_n
        return np.asarray(radius / edge)

    def scaled(self, factor: float) -> Blob:
        """The same outline around the same centre, `factor` times as large."""
        return replace(self, ry=self.ry * factor, rx=self.rx * factor)

    def moved(self, dy: float, dx: float) -> Blob:
        """The same outline, shifted."""
        return replace(self, y=self.y + dy, x=self.x + dx)

    def at(self, radius: float, theta: float) -> tuple[float, float]:
        """(y, x) of a point at `radius` (a share of the half axes) in direction `theta`."""
        u, v = radius * self.rx * math.cos(theta), radius * self.ry * math.sin(theta)
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return float(self.y + sin * u + cos * v), float(self.x + cos * u - sin * v)


def wobble(
    rng: np.random.Generator, amplitude: float, orders: Sequence[int] = (2, 3, 4, 5)
) -> tuple[tuple[int, float, float], ...]:
    """Random harmonics for a Blob; higher orders are weaker, so outlines stay smooth.

    amplitude: of the lowest order, as a share of the radius.
    """
    return tuple(
        (order, float(amplitude * rng.uniform(0.4, 1.0) * 2 / order), float(rng.uniform(0, 2 * np.pi)))
        for order in orders
    )


def _per_channel(colour: Colour) -> Field:
    return np.array(colour, dtype=np.float32)[:, None, None]


class Canvas:
    """An image being painted, its labels, and the coordinates of its pixel centres."""

    def __init__(self, size: int, background: Colour) -> None:
        self.size = size
        centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
        self.y, self.x = (np.ascontiguousarray(axis) for axis in np.meshgrid(centres, centres, indexing="ij"))
        self.image_CHW: Field = np.empty((len(background), size, size), dtype=np.float32)
        self.image_CHW[:] = _per_channel(background)
        self.labels_HW = np.zeros((size, size), dtype=np.int32)

    def window(self, blob: Blob, margin: float = 1.0) -> Crop:
        """The pixels within `margin` times the blob's reach, at least one row and column."""
        reach = blob.reach * margin

        def span(centre: float) -> slice:
            low = min(max(math.floor((centre - reach) * self.size), 0), self.size - 1)
            return slice(low, min(max(math.ceil((centre + reach) * self.size), low + 1), self.size))

        return span(blob.y), span(blob.x)

    def fill(
        self,
        blob: Blob,
        colour: Colour,
        *,
        softness: float = 0.03,
        opacity: float | Field = 1.0,
        texture_HW: Field | None = None,
    ) -> None:
        """Blend `colour` into the blob.

        softness: width of the border as a share of the radius. opacity: 0..1, a number or a field HW.
        texture_HW: added to the colour inside.
        """
        window = self.window(blob, 1 + 4 * softness)
        steepness = (1 - blob.level(self.y[window], self.x[window])) / float(softness)
        mask = 1 / (1 + np.exp(-np.clip(steepness, -30, 30)))
        mask *= opacity if isinstance(opacity, float) else opacity[window]
        self.blend(mask, colour, window, texture_HW)

    def blend(
        self, mask: Field, colour: Colour, window: Crop | None = None, texture_HW: Field | None = None
    ) -> None:
        """Blend `colour` in with the weights `mask` (0..1, of the window's shape)."""
        where = window or (slice(None), slice(None))
        part_CHW = self.image_CHW[:, *where]
        part_CHW += mask * (_per_channel(colour) - part_CHW)
        if texture_HW is not None:
            part_CHW += mask * texture_HW[where]

    def dots(self, points: Sequence[tuple[float, float]], radius: float, colour: Colour) -> None:
        """Blend one soft round dot into every point (y, x); many at once cost as much as one.

        radius: in the units of the points.
        """
        drops = np.zeros((self.size, self.size), dtype=np.float32)
        for y, x in points:
            if 0 <= y < 1 and 0 <= x < 1:
                drops[int(y * self.size), int(x * self.size)] += 1.0
        sigma = 0.7 * radius * self.size
        peak = 2 * math.pi * max(sigma, 0.4) ** 2
        drops = ndimage.gaussian_filter(drops, sigma, mode="constant", truncate=2.5)
        self.blend(np.minimum(1.3 * peak * drops, 0.9), colour)

    def label(self, blob: Blob, label: int) -> None:
        """Label the pixels whose centre lies in the blob, and always the pixel nearest its centre."""
        window = self.window(blob)
        self.labels_HW[window][blob.level(self.y[window], self.x[window]) <= 1] = label
        row, column = (min(max(int(c * self.size), 0), self.size - 1) for c in (blob.y, blob.x))
        self.labels_HW[row, column] = label

    def sample(self, *, smallest: float = 0.0003) -> LoadedSample:
        """The finished sample: grey becomes RGB, labels become 1..n.

        smallest: instances below this share of the image are dropped (slivers at the border or
        behind another instance), except that the largest always stays.
        """
        pixels = np.clip(self.image_CHW * 255 + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0)
        counts = np.bincount(self.labels_HW.ravel())
        counts[0] = 0
        keep = counts >= max(1.0, smallest * self.size**2)
        keep[0] = False
        keep[int(np.argmax(counts))] = True
        lookup = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
        image = np.ascontiguousarray(np.broadcast_to(pixels, (self.size, self.size, 3)))
        return LoadedSample(image_HW3=image, labels_HW=lookup[self.labels_HW])
