"""The paper's Alignment Layer (CA-SAM, section on the Alignment Layer): form `casam`."""

from __future__ import annotations

import math

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from casam_core.model.forms.base import AlignmentLayer

BLOCKS = 3


class ChannelAttention(nn.Module):
    """w_BC11 = sigmoid(conv1d(mean over cells)): a weight in (0, 1) per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernel = attention_kernel(channels)
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        mean_B1C = x_BCHW.mean(dim=(2, 3))[:, None, :]
        return torch.sigmoid(self.conv(mean_B1C))[:, 0, :, None, None]


def attention_kernel(channels: int) -> int:
    """Odd kernel of floor((log2 C + 1) / 2): 5 for C = 256."""
    kernel = int((math.log2(channels) + 1) / 2)
    return kernel if kernel % 2 else kernel + 1


class CasamBlock(nn.Module):
    """x -> x * w + r with two 3x3 convolutions, each behind a ReLU; r is the block's input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.attention = ChannelAttention(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        r = x_BCHW
        x = self.conv1(F.relu(r))
        x = self.conv2(F.relu(x))
        weighted: Tensor = x * self.attention(x)
        return weighted + r


class CasamLayer(AlignmentLayer):
    """Three blocks, each followed by the one shared channel norm; 3,541,007 parameters at C = 256.

    It does not start as the identity: training must first recover the frozen embedding.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CasamBlock(channels) for _ in range(BLOCKS))
        self.norm = LayerNorm2d(channels)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        for layer in self.layers:
            z_BCHW = self.norm(layer(z_BCHW))
        return z_BCHW
