"""A faster image encoder with the same weights; its embeddings differ by rounding (compute.encoder).

- Every batch norm is folded into the convolution before it: in a frozen model it is one factor and
  one offset per channel.
- Weights are bfloat16 if the chip supports it, and convolutions use channels-last memory.
- SAM's attention keeps no scores of all pairs of cells (casam_core.model.backbones.attention).
- Channel norms are computed in one pass over channels-last memory, with sums in float32.

docs/performance.md says how large the differences are. Because of them, the embeddings have their own keys in
the store, and a layer, router or threshold must not be used with the other encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from casam_core.model.backbones.attention import FoldedAttention, GridAttention, RowAttention
from casam_core.model.compute import Compute

ATTENTIONS: dict[str, Callable[[Attention], GridAttention]] = {
    "rows": RowAttention,
    "folded": FoldedAttention,
    "narrow": partial(FoldedAttention, even=False),
}
"""Ways to compute SAM's attention; `casam bench gpu` compares them."""


def attention_for(device: str) -> str:
    """The way that is used on a device."""
    return "rows" if device == "cpu" else "folded"


class FastEncoder(nn.Module):
    """x_B3SS float32 -> z_BCHW float32, like the encoder that it copies.

    attention: a name in ATTENTIONS; by default that of the device.
    """

    def __init__(self, encoder: nn.Module, compute: Compute, attention: str | None = None) -> None:
        super().__init__()
        attend = ATTENTIONS[attention or attention_for(compute.device)]
        self.dtype = torch.bfloat16 if compute.encoder_precision == "bfloat16" else torch.float32
        fast = rebuilt(copy.deepcopy(encoder).eval().requires_grad_(False), attend)
        fast = fast.to(compute.device, self.dtype).to(memory_format=torch.channels_last)
        self.encoder = torch.compile(fast, dynamic=False) if compute.encoder == "compiled" else fast

    @torch.no_grad()
    def forward(self, x_B3SS: Tensor) -> Tensor:
        x_B3SS = x_B3SS.to(self.dtype).contiguous(memory_format=torch.channels_last)
        z_BCHW: Tensor = self.encoder(x_B3SS)
        return z_BCHW.float().contiguous()


def folded(encoder: nn.Module) -> nn.Module:
    """The encoder with folded norms in channels-last memory, for training: float32 weights, SAM's attention.

    The encoder is changed in place, except for the memory of weights that it shares with another one.
    """
    faster = rebuilt(encoder, lambda attention: attention)
    for part in faster.modules():
        if isinstance(part, nn.Conv2d):
            part.weight = nn.Parameter(part.weight.detach().clone(), requires_grad=False)
    return faster.to(memory_format=torch.channels_last)


def rebuilt(module: nn.Module, attend: Callable[[Attention], nn.Module]) -> nn.Module:
    """The module with its parts replaced by faster equivalents; a container is changed in place."""
    for name, child in list(module.named_children()):
        setattr(module, name, rebuilt(child, attend))
    if isinstance(module, nn.Sequential) and len(module) == 2:
        convolution, norm = module
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            return fuse_conv_bn_eval(convolution, norm)
    if isinstance(module, Attention) and module.use_rel_pos:
        return attend(module)
    if type(module).__name__ == "LayerNorm2d":  # SAM's class, and its copy in LiteMedSAM
        return ChannelNorm(module)
    return module


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of x_BCHW, in one pass over channels-last memory."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        assert isinstance(norm.weight, nn.Parameter)
        assert isinstance(norm.bias, nn.Parameter)
        self.weight, self.bias = norm.weight, norm.bias
        self.eps = float(norm.eps)  # type: ignore[arg-type]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        return F.layer_norm(x_BHWC, self.weight.shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)
