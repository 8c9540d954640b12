"""Forms that treat every cell alike, with few parameters: `low_rank`, `scale_shift` and `identity`.

All start as the exact identity. They are for slow links and for training under noise.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from casam_core.model.forms.base import AlignmentLayer


class LowRankLayer(AlignmentLayer):
    """Mixes channels, z + B A z + b: A_RC random at a fixed scale, B_CR and b_C zero.

    4,352 parameters at C = 256 and rank 8: 17 KB up, 9 KB in an entry.
    """

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.down_RC = nn.Parameter(torch.randn(rank, channels) / channels**0.5)
        self.up_CR = nn.Parameter(torch.zeros(channels, rank))
        self.shift_C = nn.Parameter(torch.zeros(channels))

    def forward(self, z_BCHW: Tensor) -> Tensor:
        mixed = torch.einsum("cr,rd,bdhw->bchw", self.up_CR, self.down_RC, z_BCHW)
        return z_BCHW + mixed + self.shift_C[:, None, None]


class ScaleShiftLayer(AlignmentLayer):
    """z * (1 + scale_C) + shift_C, both zero at first: 512 parameters at C = 256, 2 KB on the wire."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale_C = nn.Parameter(torch.zeros(channels))
        self.shift_C = nn.Parameter(torch.zeros(channels))

    def forward(self, z_BCHW: Tensor) -> Tensor:
        return z_BCHW * (1 + self.scale_C[:, None, None]) + self.shift_C[:, None, None]


class IdentityLayer(AlignmentLayer):
    """z_BCHW unchanged: what a task keeps whose trained layer did not beat frozen SAM.

    Its only content says for how many channels it stands.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("unchanged_C", torch.zeros(channels))

    def forward(self, z_BCHW: Tensor) -> Tensor:
        return z_BCHW


def identity_like(weights: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The identity's content in place of a layer of another form. ValueError: see channels_in."""
    return {"unchanged_C": np.zeros(channels_in(weights), np.float32)}


def channels_in(weights: Mapping[str, NDArray[np.float32]]) -> int:
    """The embedding's C: every form's longest vector (a bias, norm or shift) has one value per channel.

    Raises ValueError for a layer without any.
    """
    vectors = [len(value) for value in weights.values() if value.ndim == 1]
    if not vectors:
        raise ValueError("expected a layer with one value per channel, found none")
    return max(vectors)
