"""A faster image encoder with the same weights; its embeddings differ by rounding (compute.encoder).

- Every batch norm is folded into the convolution before it: in a frozen model it is one factor and
  one offset per channel.
- Weights are bfloat16 if the chip supports it, and convolutions use channels-last memory.
- SAM's global attention needs 4096 x 4096 scores per head, close to a gigabyte per block. Here it is
  computed for one head and some rows at a time, so that the scores stay in cache.
- Channel norms are computed in one pass over channels-last memory, with sums in float32.

docs/performance.md says how large the differences are. Because of them, the embeddings have their own keys in
the store, and a layer, router or threshold must not be used with the other encoder.
"""

from __future__ import annotations

import copy

import torch
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from casam_core.model.compute import Compute

ROWS = 1024
"""Query rows computed at a time; their scores in one head take 8 MB in bfloat16."""


class FastEncoder(nn.Module):
    """x_B3SS float32 -> z_BCHW float32, like the encoder that it copies."""

    def __init__(self, encoder: nn.Module, compute: Compute) -> None:
        super().__init__()
        self.dtype = torch.bfloat16 if compute.encoder_precision == "bfloat16" else torch.float32
        fast = rebuilt(copy.deepcopy(encoder).eval().requires_grad_(False))
        fast = fast.to(compute.device, self.dtype).to(memory_format=torch.channels_last)
        self.encoder = torch.compile(fast, dynamic=False) if compute.encoder == "compiled" else fast

    @torch.no_grad()
    def forward(self, x_B3SS: Tensor) -> Tensor:
        x_B3SS = x_B3SS.to(self.dtype).contiguous(memory_format=torch.channels_last)
        z_BCHW: Tensor = self.encoder(x_B3SS)
        return z_BCHW.float().contiguous()


def rebuilt(module: nn.Module) -> nn.Module:
    """The module with its parts replaced by faster equivalents; a container is changed in place."""
    for name, child in list(module.named_children()):
        setattr(module, name, rebuilt(child))
    if isinstance(module, nn.Sequential) and len(module) == 2:
        convolution, norm = module
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            return fuse_conv_bn_eval(convolution, norm)
    if isinstance(module, Attention) and module.use_rel_pos:
        return RowAttention(module)
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


class RowAttention(nn.Module):
    """SAM's attention with relative positions on an H x W grid, computed by head and by rows of queries."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.num_heads, self.scale = attention.num_heads, attention.scale
        self.qkv, self.proj = attention.qkv, attention.proj
        self.rel_pos_h, self.rel_pos_w = attention.rel_pos_h, attention.rel_pos_w

    def forward(self, x_BHWC: Tensor) -> Tensor:
        batch, height, width, channels = x_BHWC.shape
        cells = height * width
        # R: all heads of all images or windows, one after the other.
        qkv = self.qkv(x_BHWC).view(batch, cells, 3, self.num_heads, channels // self.num_heads)
        q_RND, k_RND, v_RND = qkv.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)
        grid_RHWD = q_RND.view(-1, height, width, q_RND.shape[-1])
        up_HHD = get_rel_pos(height, height, self.rel_pos_h)
        aside_WWD = get_rel_pos(width, width, self.rel_pos_w)
        up_RNH = torch.einsum("rhwd,hkd->rhwk", grid_RHWD, up_HHD).flatten(1, 2)
        aside_RNW = torch.einsum("rhwd,wkd->rhwk", grid_RHWD, aside_WWD).flatten(1, 2)
        q_RND = q_RND * self.scale
        looks_RND = torch.empty_like(v_RND)
        together = max(1, ROWS * ROWS // (cells * min(cells, ROWS)))
        for r in range(0, len(q_RND), together):
            some = slice(r, r + together)
            for n in range(0, cells, ROWS):
                rows = slice(n, n + ROWS)
                pairs = q_RND[some, rows] @ k_RND[some].transpose(1, 2)
                grid = pairs.view(*pairs.shape[:2], height, width)
                grid += up_RNH[some, rows, :, None]
                grid += aside_RNW[some, rows, None, :]
                looks_RND[some, rows] = pairs.softmax(2) @ v_RND[some]
        looks = looks_RND.view(batch, self.num_heads, cells, -1).transpose(1, 2)
        merged: Tensor = self.proj(looks.reshape(batch, height, width, channels))
        return merged
