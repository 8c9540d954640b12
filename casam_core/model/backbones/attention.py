"""SAM's attention with relative positions on an H x W grid, without the scores of all pairs in memory.

The score of two cells is q . k / sqrt(D) plus q . up[row distance] plus q . aside[column distance]. For a
grid of 64 x 64 cells SAM computes 4096 x 4096 scores per head, close to a gigabyte per image and block.
Here are two ways to the same numbers:

- `RowAttention` computes one head and some rows of queries at a time, so that scores stay in a processor's
  cache.
- `FoldedAttention` writes the two position terms as further channels of queries and keys: the query's are its
  products with all row and column distances, the key's are 1 at its own row and column. What is left is plain
  attention, for which torch has kernels that keep no scores (scaled_dot_product_attention).

R: all heads of all images or windows. N = H W cells, D channels per head.
"""

from __future__ import annotations

import torch
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 1024
"""Query rows computed at a time by RowAttention; their scores in one head take 8 MB in bfloat16."""

ALIGNED = 8
"""Kernels for attention want a multiple of so many channels."""


class GridAttention(nn.Module):
    """The weights of SAM's attention, and what is around the attention itself.

    up_HHD, aside_WWD: the vectors of row and column distances between all rows and columns; they are
    computed once here, because SAM makes their index on the processor at every call and an accelerator
    would have to wait.
    """

    up_HHD: Tensor
    aside_WWD: Tensor

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.num_heads, self.scale = attention.num_heads, attention.scale
        self.qkv, self.proj = attention.qkv, attention.proj
        self.height, self.width = (
            (len(table) + 1) // 2 for table in (attention.rel_pos_h, attention.rel_pos_w)
        )
        self.register_buffer("up_HHD", get_rel_pos(self.height, self.height, attention.rel_pos_h))
        self.register_buffer("aside_WWD", get_rel_pos(self.width, self.width, attention.rel_pos_w))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        batch, height, width, channels = x_BHWC.shape
        if (height, width) != (self.height, self.width):
            raise ValueError(
                f"expected a grid of {self.height} x {self.width} cells, found {height} x {width}"
            )
        qkv = self.qkv(x_BHWC).view(batch, height * width, 3, self.num_heads, channels // self.num_heads)
        q_RND, k_RND, v_RND = qkv.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)
        grid_RHWD = q_RND.view(-1, height, width, q_RND.shape[-1])
        up_RNH = torch.einsum("rhwd,hkd->rhwk", grid_RHWD, self.up_HHD).flatten(1, 2)
        aside_RNW = torch.einsum("rhwd,wkd->rhwk", grid_RHWD, self.aside_WWD).flatten(1, 2)
        looks_RND = self.look(q_RND * self.scale, k_RND, v_RND, up_RNH, aside_RNW)
        looks = looks_RND.view(batch, self.num_heads, height * width, -1).transpose(1, 2)
        merged: Tensor = self.proj(looks.reshape(batch, height, width, channels))
        return merged

    def look(self, q_RND: Tensor, k_RND: Tensor, v_RND: Tensor, up_RNH: Tensor, aside_RNW: Tensor) -> Tensor:
        """looks_RND: softmax(q . k + up of the key's row + aside of the key's column) . v; q is scaled."""
        raise NotImplementedError


class RowAttention(GridAttention):
    """By head and by rows of queries: for a processor."""

    def look(self, q_RND: Tensor, k_RND: Tensor, v_RND: Tensor, up_RNH: Tensor, aside_RNW: Tensor) -> Tensor:
        looks_RND, cells = torch.empty_like(v_RND), q_RND.shape[1]
        together = max(1, ROWS * ROWS // (cells * min(cells, ROWS)))
        for r in range(0, len(q_RND), together):
            some = slice(r, r + together)
            for n in range(0, cells, ROWS):
                rows = slice(n, n + ROWS)
                pairs = q_RND[some, rows] @ k_RND[some].transpose(1, 2)
                grid = pairs.view(*pairs.shape[:2], self.height, self.width)
                grid += up_RNH[some, rows, :, None]
                grid += aside_RNW[some, rows, None, :]
                looks_RND[some, rows] = pairs.softmax(2) @ v_RND[some]
        return looks_RND


class FoldedAttention(GridAttention):
    """With the positions as channels of queries and keys: for an accelerator.

    even: values get as many channels as keys (zeros), because the fastest kernels want it.
    """

    place_NX: Tensor

    def __init__(self, attention: Attention, *, even: bool = True) -> None:
        super().__init__(attention)
        self.even = even
        row_N = torch.arange(self.height).repeat_interleave(self.width)
        column_N = torch.arange(self.width).repeat(self.height)
        place_NX = torch.cat([F.one_hot(row_N, self.height), F.one_hot(column_N, self.width)], dim=1)
        self.spare = -(place_NX.shape[1] + attention.qkv.in_features // self.num_heads) % ALIGNED
        place_NX = F.pad(place_NX, (0, self.spare)).to(self.up_HHD.dtype)
        self.register_buffer("place_NX", place_NX)

    def look(self, q_RND: Tensor, k_RND: Tensor, v_RND: Tensor, up_RNH: Tensor, aside_RNW: Tensor) -> Tensor:
        place_RNX = self.place_NX.expand(len(k_RND), -1, -1)
        q_RNX = torch.cat([q_RND, up_RNH, F.pad(aside_RNW, (0, self.spare))], dim=2)
        k_RNX = torch.cat([k_RND, place_RNX], dim=2)
        width = v_RND.shape[2]
        v_RNX = F.pad(v_RND, (0, k_RNX.shape[2] - width)) if self.even else v_RND
        # With a leading 1, R is torch's dimension of heads; its kernels ask for four dimensions.
        looks_1RNX = F.scaled_dot_product_attention(q_RNX[None], k_RNX[None], v_RNX[None], scale=1.0)
        return looks_1RNX[0, :, :, :width]
