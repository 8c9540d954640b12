"""SAM's mask decoder for many prompts on one image, without repeating the image per prompt.

It has the weights and the mathematics of segment_anything.modeling.MaskDecoder with a single mask per
prompt, in another order. Tests compare the two.

- SAM repeats the embedding and its positions for every prompt before the transformer. They differ
  between prompts only after the first block, so everything before that is computed once.
- Its two transposed convolutions have kernel 2 and stride 2. Their outputs do not overlap, so each
  is a matrix product per cell. Masks stay in the transformer's layout, channels last; only the
  final logits are put in image order.
- SAM computes four masks; here only the returned one is computed.

Shapes: N prompts, T tokens each (SAM's five and the prompt's), K = cells^2 cells, C channels,
h x w = 4 cells x 4 cells mask logits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.transformer import TwoWayAttentionBlock, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F


def decode_prompts(
    decoder: MaskDecoder, z_CHW: Tensor, image_pe_1CHW: Tensor, sparse_NTC: Tensor, dense_1CHW: Tensor
) -> tuple[Tensor, Tensor]:
    """(logits_Nhw, iou_N) of N >= 1 prompts on one embedding.

    sparse_NTC: the prompts' tokens. dense_1CHW: SAM adds it to the embedding if no mask is given; it is the
    same for every prompt.
    """
    cells = z_CHW.shape[-1]
    own_TC = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens_NTC = torch.cat([own_TC.expand(len(sparse_NTC), -1, -1), sparse_NTC], dim=1)
    cells_1KC = as_rows(z_CHW[None] + dense_1CHW)
    hidden_NTC, cells_NKC = attend(decoder.transformer, tokens_NTC, cells_1KC, as_rows(image_pe_1CHW))
    iou_N = decoder.iou_prediction_head(hidden_NTC[:, 0])[:, 0]
    mask_ND = decoder.output_hypernetworks_mlps[0](hidden_NTC[:, 1])
    return mask_logits(decoder.output_upscaling, cells_NKC, mask_ND, cells), iou_N


def as_rows(x_BCHW: Tensor) -> Tensor:
    """x_BKC: a row per cell."""
    return x_BCHW.flatten(2).transpose(1, 2)


def attend(
    transformer: TwoWayTransformer, tokens_NTC: Tensor, cells_1KC: Tensor, pe_1KC: Tensor
) -> tuple[Tensor, Tensor]:
    """SAM's two-way transformer: (tokens_NTC, cells_NKC)."""
    first, *others = transformer.layers
    queries_NTC, cells_NKC = first_block(first, tokens_NTC, cells_1KC, pe_1KC)
    for block in others:
        queries_NTC, cells_NKC = block(
            queries=queries_NTC, keys=cells_NKC, query_pe=tokens_NTC, key_pe=pe_1KC
        )
    changes_NTC = transformer.final_attn_token_to_image(
        q=queries_NTC + tokens_NTC, k=cells_NKC + pe_1KC, v=cells_NKC
    )
    return transformer.norm_final_attn(queries_NTC + changes_NTC), cells_NKC


def first_block(
    block: TwoWayAttentionBlock, tokens_NTC: Tensor, cells_1KC: Tensor, pe_1KC: Tensor
) -> tuple[Tensor, Tensor]:
    """The first block, whose cells are the same for all prompts: their part is computed once.

    In the cross-attention to the cells, tokens do not depend on each other. So the tokens of all prompts
    attend to the cells as one sequence.
    """
    queries_NTC = block.norm1(block.self_attn(q=tokens_NTC, k=tokens_NTC, v=tokens_NTC))
    placed_1KC = cells_1KC + pe_1KC
    looks_NTC = block.cross_attn_token_to_image(
        q=(queries_NTC + tokens_NTC).flatten(0, 1)[None], k=placed_1KC, v=cells_1KC
    ).view_as(queries_NTC)
    queries_NTC = block.norm2(queries_NTC + looks_NTC)
    queries_NTC = block.norm3(queries_NTC + block.mlp(queries_NTC))
    changes_NKC = block.cross_attn_image_to_token(q=placed_1KC, k=queries_NTC + tokens_NTC, v=queries_NTC)
    return queries_NTC, block.norm4(cells_1KC + changes_NKC)


def mask_logits(upscaling: Iterable[Any], cells_NKC: Tensor, mask_ND: Tensor, cells: int) -> Tensor:
    """logits_Nhw: upscale the cells twice by 2 x 2, then weight them by the D channels of each mask."""
    widen, norm, act, widen_again, act_again = upscaling
    quarters = doubled(widen, cells_NKC)
    quarters = act(F.layer_norm(quarters, norm.weight.shape, norm.weight, norm.bias, norm.eps))
    sixteenths = act_again(doubled(widen_again, quarters))
    logits = torch.einsum("nkpqd,nd->nkpq", sixteenths, mask_ND)
    # p, q: which quarter of a cell, and which quarter of that; each is a row and a column of two.
    parts = logits.view(len(mask_ND), cells, cells, 2, 2, 2, 2)
    return parts.permute(0, 1, 3, 5, 2, 4, 6).reshape(len(mask_ND), 4 * cells, 4 * cells)


def doubled(convolution: nn.ConvTranspose2d, x_C: Tensor) -> Tensor:
    """x_PD: the transposed convolution turns each row of C channels into P = 2 x 2 rows of D channels."""
    weight_CDP = convolution.weight.flatten(2)
    channels, width, parts = weight_CDP.shape
    weight_CX = weight_CDP.transpose(1, 2).reshape(channels, parts * width)
    assert convolution.bias is not None  # every such convolution of SAM has one
    parts_CX: Tensor = x_C @ weight_CX
    return parts_CX.view(*x_C.shape[:-1], parts, width) + convolution.bias
