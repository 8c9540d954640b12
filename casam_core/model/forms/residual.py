"""Form `residual`: the paper's convolutions and attention, the exact identity at step 0."""

from __future__ import annotations

from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from casam_core.model.forms.base import AlignmentLayer
from casam_core.model.forms.casam import BLOCKS, ChannelAttention


class ResidualBlock(nn.Module):
    """x + w * f(norm(x)); the second convolution starts at zero, so f does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.attention = ChannelAttention(channels)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm(x_BCHW)))
        y = self.conv2(F.relu(y))
        change: Tensor = self.attention(y) * y
        return x_BCHW + change


class ResidualLayer(AlignmentLayer):
    """Three residual blocks. Training starts at frozen SAM and never has to climb back to it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(channels) for _ in range(BLOCKS))

    def forward(self, z_BCHW: Tensor) -> Tensor:
        for block in self.blocks:
            z_BCHW = block(z_BCHW)
        return z_BCHW
