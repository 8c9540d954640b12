"""Form `identity`: nothing is changed. What a task keeps whose trained layer did not beat frozen SAM."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casam_core.model.forms.base import AlignmentLayer


class IdentityLayer(AlignmentLayer):
    """z_BCHW as it came. Its only content says for how many channels it stands."""

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
