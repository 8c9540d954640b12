"""Noise for private releases. In a real deployment, its only source is the operating system.

Noise is added in one place, `NoiseSource.add_to`: to integers, as integers.
"""

from __future__ import annotations

import hashlib
import os

import numpy as np
from numpy.typing import NDArray

from casam_core.privacy.discrete_gaussian import discrete_gaussian
from casam_core.privacy.keystream import Keystream
from casam_core.seeding import derive_seed


class NoiseSource:
    """Random draws that protect images; with the scenario alone they cannot be repeated."""

    def __init__(self, secret: bytes) -> None:
        """secret: at least 16 random bytes."""
        self._stream = Keystream(secret)
        self._secret = secret

    @staticmethod
    def from_system() -> NoiseSource:
        """Noise that cannot be repeated."""
        return NoiseSource(os.urandom(32))

    @staticmethod
    def seeded(run_seed: int, *scope: int | str) -> NoiseSource:
        """For simulations only: anyone who knows the seed can repeat the noise and subtract it."""
        return NoiseSource(derive_seed(run_seed, *scope).to_bytes(16, "big"))

    def add_to(self, total_D: NDArray[np.int64], largest: int, grid: float) -> NDArray[np.int64]:
        """total_D with discrete Gaussian noise of standard deviation SIGMA in every component.

        largest: the square of the largest L2 norm of one unit's part of the total. grid: the value of one
        step. The noise does not depend on them; tests/client/dp/test_neighbours.py compares them with what a
        unit really changes.
        """
        return total_D + discrete_gaussian(self._stream, len(total_D))

    def takes_part(self, step: int, unit: str, rate: float) -> bool:
        """Whether this unit is in the Poisson sample of this step.

        The draw depends on the step and the unit's name only: no other unit, and no order of units, changes
        it. The probability is `rate`, rounded down to a multiple of 2^-64.
        """
        drawn = hashlib.sha256(b"member" + self._secret + step.to_bytes(8, "big") + unit.encode()).digest()
        return int.from_bytes(drawn[:8], "big") < int(rate * 2.0**64)
