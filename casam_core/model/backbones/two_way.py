"""SAM's two-way transformer for one prompt, with its projections folded into the few tokens.

A prompt has T = 7 or so tokens in H = 8 heads: 56 columns. The image has K = 4,096 cells. segment_anything
projects every cell to keys, values and queries before the tokens meet them. The same numbers come out if the
weights of these projections are multiplied with the tokens instead:

    tokens look at cells:  (q W_q) (x W_k)^T      = (q W_q W_k^T) x^T,    p (x W_v) = (p x) W_v
    cells look at tokens:  (x W_q) (k W_k)^T      = x (k W_k W_q^T)^T,    p (v W_v) W_o = p (v W_v W_o)

This holds for each head by itself. It takes less than half of the products, and no intermediate has a row
per cell and channel except the new cells themselves. Tests compare masks and gradients with
segment_anything's own modules, whose weights are used as they are.

Shapes: T tokens, K cells, C channels, H heads of d channels, X = H * T columns.
"""

from __future__ import annotations

import math

import torch
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer
from torch import Tensor, nn


def attend(
    transformer: TwoWayTransformer, tokens_TC: Tensor, cells_KC: Tensor, pe_KC: Tensor, answers: int
) -> tuple[Tensor, Tensor]:
    """(answers_AC, cells_KC): the first A tokens and the cells after all blocks.

    The last attention gives every token its answer independently of the others, so only those that are
    read are computed.
    """
    queries_TC = tokens_TC
    for block in transformer.layers:
        queries_TC, cells_KC = two_way(block, queries_TC, tokens_TC, cells_KC, pe_KC)
    asked_AC, pe_AC = queries_TC[:answers], tokens_TC[:answers]
    looks_AC = look(transformer.final_attn_token_to_image, asked_AC + pe_AC, cells_KC, cells_KC + pe_KC)
    return transformer.norm_final_attn(asked_AC + looks_AC), cells_KC


def two_way(
    block: TwoWayAttentionBlock, queries_TC: Tensor, tokens_TC: Tensor, cells_KC: Tensor, pe_KC: Tensor
) -> tuple[Tensor, Tensor]:
    """One block: (queries_TC, cells_KC). tokens_TC: the positions of the queries."""
    if block.skip_first_layer_pe:
        queries_TC = attention_among(block.self_attn, queries_TC, queries_TC)
    else:
        queries_TC = queries_TC + attention_among(block.self_attn, queries_TC + tokens_TC, queries_TC)
    queries_TC = block.norm1(queries_TC)
    placed_KC = cells_KC + pe_KC
    looks_TC = look(block.cross_attn_token_to_image, queries_TC + tokens_TC, cells_KC, placed_KC)
    queries_TC = block.norm2(queries_TC + looks_TC)
    queries_TC = block.norm3(queries_TC + block.mlp(queries_TC))
    told_KC = tell(block.cross_attn_image_to_token, cells_KC, placed_KC, queries_TC + tokens_TC, queries_TC)
    return queries_TC, block.norm4(told_KC)


def attention_among(attention: Attention, placed_TC: Tensor, values_TC: Tensor) -> Tensor:
    """segment_anything's own attention of the tokens among each other."""
    found_1TC: Tensor = attention(q=placed_TC[None], k=placed_TC[None], v=values_TC[None])
    return found_1TC[0]


def look(attention: Attention, queries_TC: Tensor, cells_KC: Tensor, placed_KC: Tensor) -> Tensor:
    """looks_TC: what every token takes from the cells; placed_KC: the cells with their positions.

    The bias of the keys adds the same number to all scores of a token, so the softmax removes it.
    """
    tokens, heads = len(queries_TC), attention.num_heads
    asked_THd = split(attention, attention.q_proj(queries_TC))
    asked_XC = torch.einsum("thd,hdc->htc", asked_THd, by_heads(attention.k_proj, heads)).flatten(0, 1)
    attention_XK = torch.softmax(asked_XC @ placed_KC.T, dim=-1)
    seen_HTC = (attention_XK @ cells_KC).view(heads, tokens, -1)
    values_THd = torch.einsum("htc,hdc->thd", seen_HTC, by_heads(attention.v_proj, heads))
    looks_TC: Tensor = attention.out_proj(values_THd.flatten(1) + attention.v_proj.bias)
    return looks_TC


def tell(
    attention: Attention, cells_KC: Tensor, placed_KC: Tensor, keys_TC: Tensor, values_TC: Tensor
) -> Tensor:
    """cells_KC plus what every cell takes from the tokens."""
    tokens, heads = len(keys_TC), attention.num_heads
    keys_THd = split(attention, attention.k_proj(keys_TC))
    keys_XC = torch.einsum("thd,hdc->htc", keys_THd, by_heads(attention.q_proj, heads)).flatten(0, 1)
    bias_X1 = torch.einsum("thd,hd->ht", keys_THd, attention.q_proj.bias.view(heads, -1)).reshape(-1, 1)
    scores_XK = torch.addmm(bias_X1, keys_XC, placed_KC.T)
    attention_XK = torch.softmax(scores_XK.view(heads, tokens, -1), dim=1).flatten(0, 1)
    values_THd = attention.v_proj(values_TC).view(tokens, heads, -1)
    out_CHd = attention.out_proj.weight.view(-1, heads, values_THd.shape[-1])
    values_HTC = torch.einsum("thd,chd->htc", values_THd, out_CHd)
    # A head's attention adds up to 1: with a share of the bias in every value, each cell gets it once.
    told_XC = (values_HTC + attention.out_proj.bias / heads).flatten(0, 1)
    return torch.addmm(cells_KC, attention_XK.T, told_XC)


def split(attention: Attention, x_TD: Tensor) -> Tensor:
    """x_THd, divided by the square root of d as attention scores are."""
    x_THd = x_TD.view(len(x_TD), attention.num_heads, -1)
    return x_THd / math.sqrt(x_THd.shape[-1])


def by_heads(projection: nn.Linear, heads: int) -> Tensor:
    """weight_HdC: the weight of a projection from C channels, by head."""
    return projection.weight.view(heads, -1, projection.in_features)
