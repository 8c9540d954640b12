"""Private training from a public start: noisy gradients, filtered by what public gradients look like.

The gradients and their noise are those of DP-SGD (casam_core.privacy.dp_training), and so is their cost: what
happens to a noisy sum afterwards is free. A public library of layers (casam_core.model.layer_library) gives

    the start:  the layer of all public tasks (casam_core.methods.first_layer),
    the filter: along each public direction, and everywhere else, a gradient keeps the share of its square
                that is expected to be signal (Wiener 1949),
    the length: all steps of a round together go PATH times as far as the joint layer is from frozen SAM if
                there is no noise, and less where the filter keeps less.

A step follows a running mean of the noisy gradients, which has less noise than the newest one, and steps get
shorter to the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from casam_core.model.layer_library import LayerLibrary

SIGNAL = 0.6
"""The length of the mean of a task's clipped gradients, in units of `clip`, before it has noise."""
FORGOTTEN = 2.7
"""A gradient's weight in the running mean falls by exp(-FORGOTTEN) over a round, whatever its steps."""
PATH = 2.8
"""The length of all steps together, in lengths of the joint layer, if every gradient is at the clip and the
filter keeps all of it."""


@dataclass
class PublicDescent:
    """The steps of one round, one noisy mean gradient after the other.

    Args:
        names: of the library's free weights, in the order of the numbers of a gradient.
        clip: the largest norm of one unit's gradient.
        noise: the standard deviation of each number of a mean gradient, in units of `clip`.
        steps: of the whole round.
    """

    library: LayerLibrary
    names: Sequence[str]
    clip: float
    noise: float
    steps: int
    taken: int = 0
    sum_D: NDArray[np.float64] | float = 0.0

    @cached_property
    def rows(self) -> NDArray[np.float64]:
        """The public directions_KD."""
        return self.library.rows(self.names)

    @cached_property
    def squares(self) -> NDArray[np.float64]:
        """The expected squares_D of a gradient: along each public direction, then along all others."""
        shares_K, width = self.library.shares_K, self.rows.shape[1]
        rest = (1 - shares_K.sum()) / width
        expected_D: NDArray[np.float64] = np.pad(shares_K, (0, width - len(shares_K))) + rest
        return SIGNAL**2 * expected_D

    @cached_property
    def length(self) -> float:
        """The length of all steps together."""
        kept_D = signal_share(self.squares, self.noise * self.weights(self.steps)[1])
        return PATH * self.library.length * float(np.average(kept_D, weights=self.squares))

    def weights(self, count: int) -> tuple[float, float]:
        """The sum of the weights of so many gradients in the running mean, and how much of a gradient's noise
        the mean has."""
        weights_T = math.exp(-FORGOTTEN / self.steps) ** np.arange(count)
        total = float(weights_T.sum())
        return total, float(np.linalg.norm(weights_T)) / total

    def step(self, gradient_D: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the next step adds to the weights."""
        self.taken += 1
        self.sum_D = math.exp(-FORGOTTEN / self.steps) * self.sum_D + gradient_D / self.clip
        total, less = self.weights(self.taken)
        left = (self.steps + 1 - self.taken) * 2 / (self.steps * (self.steps + 1))  # 1 over all steps
        moved_D: NDArray[np.float64] = (
            -left * self.length * self.filtered(self.sum_D / total, less * self.noise)
        )
        return moved_D

    def filtered(self, noisy_D: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
        """The expected gradient behind a noisy one, both in units of `clip`."""
        along_K = self.rows @ noisy_D
        elsewhere_D = noisy_D - along_K @ self.rows
        kept_D = signal_share(self.squares, noise)
        found_D: NDArray[np.float64] = (kept_D[: len(along_K)] * along_K) @ self.rows
        found_D += kept_D[-1] * elsewhere_D
        return found_D


def signal_share(expected_D: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
    """The share of each noisy number's expected square that is not noise; expected_D: the squares without.

    >>> signal_share(np.array([0.25, 0.0]), 0.5)
    array([0.5, 0. ])
    """
    share_D: NDArray[np.float64] = expected_D / (expected_D + noise**2)
    return share_D
