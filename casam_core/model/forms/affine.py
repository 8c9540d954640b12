"""Forms with few parameters that treat all cells equally: `low_rank`, `scale_shift` and `identity`.

All start as the exact identity. They suit slow links and training with noise.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from casam_core.model.forms.base import AlignmentLayer
from casam_core.model.forms.finder import PREFIX, without_finder


class LowRankLayer(AlignmentLayer):
    """Mixes channels: z + B A z + b. At first, A_RC is random at a fixed scale, B_CR and b_C are zero.

    4,352 parameters at C = 256 and rank 8: 17 KB per reply, 9 KB in an entry.
    """

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.down_RC = nn.Parameter(torch.randn(rank, channels) / channels**0.5)
        self.up_CR = nn.Parameter(torch.zeros(channels, rank))
        self.shift_C = nn.Parameter(torch.zeros(channels))

    def forward(self, z_BCHW: Tensor) -> Tensor:
        z_BCK = z_BCHW.flatten(2)
        up_BCR = self.up_CR.expand(z_BCK.shape[0], -1, -1)
        mixed_BCK = torch.baddbmm(z_BCK, up_BCR, self.down_RC @ z_BCK)
        return (mixed_BCK + self.shift_C[:, None]).view_as(z_BCHW)


class ScaleShiftLayer(AlignmentLayer):
    """z * (1 + scale_C) + shift_C, both zero at first: 512 parameters at C = 256, 2 KB per reply."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale_C = nn.Parameter(torch.zeros(channels))
        self.shift_C = nn.Parameter(torch.zeros(channels))

    def forward(self, z_BCHW: Tensor) -> Tensor:
        return z_BCHW * (1 + self.scale_C[:, None, None]) + self.shift_C[:, None, None]


class IdentityLayer(AlignmentLayer):
    """z_BCHW unchanged: the fallback for a task whose trained layer is not better than frozen SAM.

    Its only array, all zeros, records the number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("unchanged_C", torch.zeros(channels))

    def forward(self, z_BCHW: Tensor) -> Tensor:
        return z_BCHW


def identity_like(weights: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The weights of an identity layer for the same channels; a finder stays. Raises ValueError (see
    channels_in)."""
    finder = {name: value for name, value in weights.items() if name.startswith(PREFIX)}
    return {"unchanged_C": np.zeros(channels_in(weights), np.float32)} | finder


def channels_in(weights: Mapping[str, NDArray[np.float32]]) -> int:
    """C of the embedding: in every form, the longest vector (a bias, norm or shift) has C values.

    Raises ValueError for a layer without vectors.
    """
    vectors = [len(value) for value in without_finder(weights).values() if value.ndim == 1]
    if not vectors:
        raise ValueError("expected a layer with one value per channel, found none")
    return max(vectors)
