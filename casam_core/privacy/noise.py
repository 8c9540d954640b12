"""Noise for private releases. In a real deployment, its only source is the operating system."""

from __future__ import annotations

import math
import os

import numpy as np
from numpy.typing import NDArray

from casam_core.privacy.keystream import Keystream
from casam_core.seeding import derive_seed


class NoiseSource:
    """Random draws that protect images; with the scenario alone they cannot be repeated."""

    def __init__(self, secret: bytes) -> None:
        self._stream = Keystream(secret)

    @staticmethod
    def from_system() -> NoiseSource:
        """Noise that cannot be repeated."""
        return NoiseSource(os.urandom(32))

    @staticmethod
    def seeded(run_seed: int, *scope: int | str) -> NoiseSource:
        """For simulations only: anyone who knows the seed can repeat the noise and subtract it."""
        return NoiseSource(derive_seed(run_seed, *scope).to_bytes(16, "big"))

    def normal(self, *shape: int) -> NDArray[np.float64]:
        """Standard normal numbers.

        Each is half the sum of four draws, so that the gaps between floating-point numbers do not reveal the
        protected value (Holohan and Braghin 2021; Opacus' secure mode does the same).
        """
        count = math.prod(shape)
        halves = self._box_muller(count) + self._box_muller(count)
        return ((halves + self._box_muller(count) + self._box_muller(count)) / 2).reshape(shape)

    def _box_muller(self, count: int) -> NDArray[np.float64]:
        half = -(-count // 2)
        radius = np.sqrt(-2 * np.log1p(-self._stream.uniform(half)))
        angle = 2 * np.pi * self._stream.uniform(half)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def poisson_sample(self, units: int, rate: float) -> list[int]:
        """The indices of the sampled units; each is drawn independently with probability `rate`."""
        return [int(i) for i in np.flatnonzero(self._stream.uniform(units) < rate)]
