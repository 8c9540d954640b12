"""SAM's mask decoder for many prompts on one image.

It has the weights and the mathematics of segment_anything.modeling.MaskDecoder with a single mask per
prompt, in another order. Tests compare the two.

- The projections of the attention are folded into the tokens. A prompt has 7 or so tokens in 8 heads: 56
  columns. The image has 4,096 cells. segment_anything projects every cell to keys, values and queries before
  the tokens meet them; the same numbers come out if the tokens are multiplied with these weights instead.
  For each head, with the weights W of queries, keys, values and output:

      tokens look at cells:  (t Wq) (x Wk)^T = (t Wq Wk^T) x^T,    p (x Wv) = (p x) Wv
      cells look at tokens:  (x Wq) (t Wk)^T = x (t Wk Wq^T)^T,    p (t Wv) Wo = p (t Wv Wo)

- Its two transposed convolutions have kernel 2 and stride 2. Their outputs do not overlap, so each
  is a matrix product per cell, which can be computed in a window of cells alone.
- SAM computes four masks and answers for all tokens; here only what is read is computed.
- Prompts are decoded one by one: their cells stay in the processor's cache.

Shapes: N prompts, T tokens each (SAM's five and the prompt's), H heads of d channels, X = H * T columns,
K = cells^2 cells, C channels; P rows that the decoder gets of an image: cells, and perhaps means of cells
(casam_core.model.window).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from casam_core.model.window import BLOCK, Window

IOU_TOKEN, MASK_TOKEN = 0, 1
"""Places of the tokens from which the IoU estimate and the single mask are read."""


def decode_prompts(
    decoder: MaskDecoder,
    z_CHW: Tensor,
    image_pe_1CHW: Tensor,
    sparse_NTC: Tensor,
    dense_1CHW: Tensor,
    windows: Sequence[Window],
) -> tuple[list[Tensor], Tensor]:
    """(logits_hw in the window of each prompt, iou_N) of N >= 1 prompts on one embedding.

    sparse_NTC: the prompts' tokens. dense_1CHW: SAM adds it to the embedding if no mask is given; it is the
    same for every prompt.
    """
    cells = z_CHW.shape[-1]
    own_TC = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    image_CHW, rows = z_CHW + dense_1CHW[0], with_means if any(w.pooled for w in windows) else as_rows
    all_QC, all_pe_QC = rows(image_CHW), rows(image_pe_1CHW[0])
    seen = {window: seen_by(window, all_QC, all_pe_QC, cells) for window in dict.fromkeys(windows)}
    logits, iou = [], []
    for sparse_TC, window in zip(sparse_NTC, windows, strict=True):
        tokens_TC = torch.cat([own_TC, sparse_TC])
        answers_2C, told_PC = attend(decoder.transformer, tokens_TC, *seen[window], answers=2)
        iou.append(decoder.iou_prediction_head(answers_2C[IOU_TOKEN])[0])
        mask_D = decoder.output_hypernetworks_mlps[0](answers_2C[MASK_TOKEN])
        near_hwC = told_PC[: window.height * window.width].view(window.height, window.width, -1)
        logits.append(mask_logits(decoder.output_upscaling, near_hwC, mask_D))
    return logits, torch.stack(iou)


def as_rows(x_CHW: Tensor) -> Tensor:
    """x_KC: a row per cell, one after the other in memory."""
    return x_CHW.flatten(1).T.contiguous()


def seen_by(window: Window, all_QC: Tensor, all_pe_QC: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """(cells_PC, pe_PC, weight_P): what the decoder gets for a window; the cells in the window come first."""
    index_P, weight_P = (x_P.to(all_QC.device) for x_P in window.rows(cells))
    return all_QC.index_select(0, index_P), all_pe_QC.index_select(0, index_P), weight_P


def with_means(x_CHW: Tensor) -> Tensor:
    """x_QC: a row per cell, and after them a row per block of cells: its mean."""
    return torch.cat([as_rows(x_CHW), as_rows(F.avg_pool2d(x_CHW, BLOCK))])


def mask_logits(upscaling: Iterable[Any], rows_hwC: Tensor, mask_D: Tensor) -> Tensor:
    """logits, 4 h x 4 w: upscale the cells twice by 2 x 2, then weight them by the D channels of the mask."""
    widen, norm, act, widen_again, act_again = upscaling
    quarters = doubled(widen, rows_hwC)
    quarters = act(F.layer_norm(quarters, norm.weight.shape, norm.weight, norm.bias, norm.eps))
    sixteenths = act_again(doubled(widen_again, quarters))
    height, width = rows_hwC.shape[:2]
    # Which quarter of a cell, and which quarter of that; each is a row and a column of two.
    parts: Tensor = (sixteenths @ mask_D).view(height, width, 2, 2, 2, 2)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(4 * height, 4 * width)


def doubled(convolution: nn.ConvTranspose2d, x_C: Tensor) -> Tensor:
    """x_PD: the transposed convolution turns each row of C channels into P = 2 x 2 rows of D channels."""
    weight_CDP = convolution.weight.flatten(2)
    channels, width, parts = weight_CDP.shape
    weight_CX = weight_CDP.transpose(1, 2).reshape(channels, parts * width)
    assert convolution.bias is not None  # every such convolution of SAM has one
    parts_CX: Tensor = x_C @ weight_CX
    return parts_CX.view(*x_C.shape[:-1], parts, width) + convolution.bias


# --- The two-way transformer for one prompt


def attend(
    transformer: TwoWayTransformer,
    tokens_TC: Tensor,
    cells_PC: Tensor,
    pe_PC: Tensor,
    weight_P: Tensor,
    answers: int,
) -> tuple[Tensor, Tensor]:
    """(answers_AC, cells_PC): the first A tokens and the cells after all blocks.

    The last attention gives every token its answer independently of the others, so only those that are
    read are computed.

    weight_P: added to the scores of each cell: log n if it stands for n equal cells, 0 if for itself.
    """
    queries_TC = tokens_TC
    for block in transformer.layers:
        queries_TC, cells_PC = two_way(block, queries_TC, tokens_TC, cells_PC, pe_PC, weight_P)
    asked_AC, pe_AC = queries_TC[:answers], tokens_TC[:answers]
    last = transformer.final_attn_token_to_image
    looks_AC = look(last, asked_AC + pe_AC, cells_PC, cells_PC + pe_PC, weight_P)
    return transformer.norm_final_attn(asked_AC + looks_AC), cells_PC


def two_way(
    block: TwoWayAttentionBlock,
    queries_TC: Tensor,
    tokens_TC: Tensor,
    cells_PC: Tensor,
    pe_PC: Tensor,
    weight_P: Tensor,
) -> tuple[Tensor, Tensor]:
    """One block: (queries_TC, cells_PC). tokens_TC: the positions of the queries."""
    if block.skip_first_layer_pe:
        queries_TC = attention_among(block.self_attn, queries_TC, queries_TC)
    else:
        queries_TC = queries_TC + attention_among(block.self_attn, queries_TC + tokens_TC, queries_TC)
    queries_TC = block.norm1(queries_TC)
    placed_PC = cells_PC + pe_PC
    to_image = block.cross_attn_token_to_image
    looks_TC = look(to_image, queries_TC + tokens_TC, cells_PC, placed_PC, weight_P)
    queries_TC = block.norm2(queries_TC + looks_TC)
    queries_TC = block.norm3(queries_TC + block.mlp(queries_TC))
    told_PC = tell(block.cross_attn_image_to_token, cells_PC, placed_PC, queries_TC + tokens_TC, queries_TC)
    return queries_TC, block.norm4(told_PC)


def attention_among(attention: Attention, placed_TC: Tensor, values_TC: Tensor) -> Tensor:
    """segment_anything's own attention of the tokens among each other."""
    found_1TC: Tensor = attention(q=placed_TC[None], k=placed_TC[None], v=values_TC[None])
    return found_1TC[0]


def look(
    attention: Attention, queries_TC: Tensor, cells_PC: Tensor, placed_PC: Tensor, weight_P: Tensor
) -> Tensor:
    """looks_TC: what every token takes from the cells; placed_PC: the cells with their positions.

    The bias of the keys adds the same number to all scores of a token, so the softmax removes it.
    """
    tokens, heads = len(queries_TC), attention.num_heads
    asked_THd = split(attention, attention.q_proj(queries_TC))
    asked_XC = torch.einsum("thd,hdc->htc", asked_THd, by_heads(attention.k_proj, heads)).flatten(0, 1)
    attention_XP = torch.softmax(torch.addmm(weight_P, asked_XC, placed_PC.T), dim=-1)
    seen_HTC = (attention_XP @ cells_PC).view(heads, tokens, -1)
    values_THd = torch.einsum("htc,hdc->thd", seen_HTC, by_heads(attention.v_proj, heads))
    looks_TC: Tensor = attention.out_proj(values_THd.flatten(1) + attention.v_proj.bias)
    return looks_TC


def tell(
    attention: Attention, cells_PC: Tensor, placed_PC: Tensor, keys_TC: Tensor, values_TC: Tensor
) -> Tensor:
    """cells_PC plus what every cell takes from the tokens."""
    tokens, heads = len(keys_TC), attention.num_heads
    keys_THd = split(attention, attention.k_proj(keys_TC))
    keys_XC = torch.einsum("thd,hdc->htc", keys_THd, by_heads(attention.q_proj, heads)).flatten(0, 1)
    bias_X1 = torch.einsum("thd,hd->ht", keys_THd, attention.q_proj.bias.view(heads, -1)).reshape(-1, 1)
    scores_XP = torch.addmm(bias_X1, keys_XC, placed_PC.T)
    attention_XP = torch.softmax(scores_XP.view(heads, tokens, -1), dim=1).flatten(0, 1)
    values_THd = attention.v_proj(values_TC).view(tokens, heads, -1)
    out_CHd = attention.out_proj.weight.view(-1, heads, values_THd.shape[-1])
    values_HTC = torch.einsum("thd,chd->htc", values_THd, out_CHd)
    # A head's attention adds up to 1: with a share of the bias in every value, each cell gets it once.
    told_XC = (values_HTC + attention.out_proj.bias / heads).flatten(0, 1)
    return torch.addmm(cells_PC, attention_XP.T, told_XC)


def split(attention: Attention, x_TD: Tensor) -> Tensor:
    """x_THd, divided by the square root of d as attention scores are."""
    x_THd = x_TD.view(len(x_TD), attention.num_heads, -1)
    return x_THd / math.sqrt(x_THd.shape[-1])


def by_heads(projection: nn.Linear, heads: int) -> Tensor:
    """weight_HdC: the weight of a projection from C channels, by head."""
    return projection.weight.view(heads, -1, projection.in_features)
