"""Sums over units with differential privacy: the only way in which private values get noise.

    row of a unit -> clip to the norm -> steps of a grid, rounded toward zero -> exact sum of integers
    -> integer noise -> times the grid

The grid is the noise's standard deviation divided by SIGMA, so all releases use the same integer noise. Sums
of integers are exact and do not depend on their order, so floating-point rounding reveals nothing (Mironov
2012). Rounding toward zero never makes a row longer.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from casam_core.privacy.discrete_gaussian import SIGMA
from casam_core.privacy.noise import NoiseSource

WIDEST = 1 << 22
"""The most numbers in one sum; casam_core.privacy.accounting needs a limit."""
LEAST_MULTIPLIER = 2.0**-8
"""With less noise, a unit's norm in steps of the grid would not fit into 64 bits with its square."""


@dataclass(frozen=True)
class PrivateSum:
    """A sum to which every unit adds a row of at most `norm` (L2); noise of norm * noise_multiplier.

    noise_multiplier: 0 for no noise, in measurements only.
    """

    norm: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        if self.noise_multiplier and self.noise_multiplier < LEAST_MULTIPLIER:
            raise ValueError(
                f"expected a noise multiplier of 0 or at least {LEAST_MULTIPLIER:g}, found "
                f"{self.noise_multiplier:g}"
            )
        if not sys.float_info.min <= self.grid < math.inf:  # a row would fail, or get no noise
            raise ValueError(f"expected a norm with steps that a number can hold, found {self.norm:g}")

    @property
    def grid(self) -> float:
        """The value of one step."""
        return self.norm * (self.noise_multiplier or LEAST_MULTIPLIER) / SIGMA

    @property
    def largest(self) -> int:
        """The square of the largest L2 norm of a row in steps: floor((SIGMA / noise_multiplier)^2)."""
        return math.floor((SIGMA / Fraction(self.noise_multiplier or LEAST_MULTIPLIER)) ** 2)

    def steps_of(self, row_D: NDArray[np.float64]) -> NDArray[np.int64]:
        """One unit's row in steps of the grid; its squares add up to at most `largest`.

        A row that is not finite becomes zero: an error would reveal it.
        """
        length = float(np.linalg.norm(row_D))
        if not math.isfinite(length):
            return np.zeros(len(row_D), np.int64)
        scale = min(1.0, self.norm / length) / self.grid if length else 0.0
        steps_D = np.trunc(row_D * scale).astype(np.int64)
        while int((steps_D * steps_D).sum()) > self.largest:  # by the rounding of the clip
            scale *= 1 - 2.0**-45
            steps_D = np.trunc(row_D * scale).astype(np.int64)
        return steps_D

    def release(
        self, rows_UD: Iterable[NDArray[np.float64]], width: int, noise: NoiseSource
    ) -> NDArray[np.float64]:
        """The noisy sum_D of the rows, one per unit; D = width. The rows may be of no unit at all.

        Raises ValueError for more than WIDEST numbers.
        """
        if width > WIDEST:
            raise ValueError(f"expected a private sum of at most {WIDEST} numbers, found {width}")
        total_D = np.zeros(width, np.int64)
        for row_D in rows_UD:
            total_D += self.steps_of(row_D)
        if self.noise_multiplier:
            total_D = noise.add_to(total_D, self.largest, self.grid)
        noisy_D: NDArray[np.float64] = total_D.astype(np.float64) * self.grid
        return noisy_D
