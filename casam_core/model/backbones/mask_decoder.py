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
- On a processor prompts are decoded one by one, so that their cells stay in its cache; on an accelerator
  those of all images of a batch together, because each step of the mathematics is a call that it has to be
  given.

Shapes: B images, N prompts of all of them, T tokens each (SAM's five and the prompt's), H heads of d
channels, X = H * T columns, K = cells^2 cells, C channels; P rows that the decoder gets of an image: cells,
and perhaps means of cells (casam_core.model.backbones.window).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from casam_core.model.backbones.window import BLOCK, Window, whole
from casam_core.model.compute import to_device

IOU_TOKEN, MASK_TOKEN = 0, 1
"""Places of the tokens from which the IoU estimate and the single mask are read."""


class Seen(NamedTuple):
    """What the decoder gets of the images, for N prompts.

    cells_NPC; pe_NPC: their positions, N or 1. weight_N1P: is added to the scores of each row: log n if it
    stands for n equal cells, 0 if for itself, minus infinity if it only fills up; None: all 0.
    """

    cells_NPC: Tensor
    pe_NPC: Tensor
    weight_N1P: Tensor | None


def decode_prompts(
    decoder: MaskDecoder,
    z_CHW: Tensor,
    image_pe_1CHW: Tensor,
    sparse_NTC: Tensor,
    dense_MCHW: Tensor,
    windows: Sequence[Window],
) -> tuple[list[Tensor], Tensor]:
    """(logits_hw in the window of each prompt, iou_N) of N >= 1 prompts on one embedding, in turn.

    sparse_NTC: the prompts' tokens. dense_MCHW: what SAM adds to the embedding; M = N if every prompt has an
    earlier mask, and 1 if none has.
    """
    if len(dense_MCHW) > 1:
        each = zip(sparse_NTC[:, None], dense_MCHW[:, None], windows, strict=True)
        parts = [decode_prompts(decoder, z_CHW, image_pe_1CHW, s, d, [window]) for s, d, window in each]
        return [logits_hw for found, _ in parts for logits_hw in found], torch.cat([iou for _, iou in parts])
    cells, pooled = z_CHW.shape[-1], any(w.pooled for w in windows)
    all_1QC = rows_of((z_CHW + dense_MCHW[0])[None], pooled)
    pe_1QC = rows_of(image_pe_1CHW, pooled)
    seen = {window: seen_through([window], [0], all_1QC, pe_1QC, cells) for window in dict.fromkeys(windows)}
    logits, iou = [], []
    for sparse_TC, window in zip(sparse_NTC, windows, strict=True):
        found, iou_1 = decode_seen(decoder, sparse_TC[None], seen[window], [window])
        logits += found
        iou.append(iou_1)
    return logits, torch.cat(iou)


def decode_together(
    decoder: MaskDecoder,
    z_BCHW: Tensor,
    image_pe_1CHW: Tensor,
    sparse_NTC: Tensor,
    dense_MCHW: Tensor,
    windows: Sequence[Sequence[Window]],
) -> tuple[list[Tensor], Tensor]:
    """The same for the prompts of B images at once, image by image; M is 1 or B. windows: of each image's
    prompts."""
    cells, each = z_BCHW.shape[-1], [window for of_image in windows for window in of_image]
    pooled = any(window.pooled for window in each)
    all_BQC, pe_1QC = rows_of(z_BCHW + dense_MCHW, pooled), rows_of(image_pe_1CHW, pooled)
    owners = [b for b, of_image in enumerate(windows) for _ in of_image]
    if all(window == whole(cells) for window in each):  # nothing to choose: an image's prompts share its rows
        shared = zip(all_BQC, windows, strict=True)
        cells_NPC = torch.cat([all_QC.expand(len(of_image), -1, -1) for all_QC, of_image in shared])
        return decode_seen(decoder, sparse_NTC, Seen(cells_NPC, pe_1QC, None), each)
    return decode_seen(decoder, sparse_NTC, seen_through(each, owners, all_BQC, pe_1QC, cells), each)


def decode_seen(
    decoder: MaskDecoder, sparse_NTC: Tensor, seen: Seen, windows: Sequence[Window]
) -> tuple[list[Tensor], Tensor]:
    """(logits_hw in the window of each prompt, iou_N) of prompts that see these cells."""
    own_TC = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens_NTC = torch.cat([own_TC.expand(len(sparse_NTC), -1, -1), sparse_NTC], dim=1)
    answers_N2C, told_NPC = attend(decoder.transformer, tokens_NTC, seen, answers=2)
    iou_N = decoder.iou_prediction_head(answers_N2C[:, IOU_TOKEN])[:, 0]
    mask_ND = decoder.output_hypernetworks_mlps[0](answers_N2C[:, MASK_TOKEN])
    near = max(window.height * window.width for window in windows)
    parts_NKX = mask_logits(decoder.output_upscaling, told_NPC[:, :near], mask_ND)
    if len(set(windows)) == 1:
        return list(arranged(parts_NKX, windows[0]).unbind()), iou_N
    parts = zip(parts_NKX.unbind(), windows, strict=True)
    return [arranged(parts_KX[: w.height * w.width], w) for parts_KX, w in parts], iou_N


def rows_of(x_BCHW: Tensor, with_means: bool) -> Tensor:
    """x_BQC: a row per cell, one after the other in memory; then perhaps the mean of each block of cells."""
    rows = x_BCHW.flatten(2).mT.contiguous()
    return torch.cat([rows, rows_of(F.avg_pool2d(x_BCHW, BLOCK), False)], dim=1) if with_means else rows


def seen_through(
    windows: Sequence[Window], owners: Sequence[int], all_BQC: Tensor, pe_1QC: Tensor, cells: int
) -> Seen:
    """The rows of each window; the cells in it come first. owners: of each window, its image."""
    device, rows = all_BQC.device, all_BQC.shape[1]
    chosen = [window.rows(cells) for window in windows]
    index_NP = pad_sequence([index_P for index_P, _ in chosen], batch_first=True)
    weight_NP = pad_sequence([weight_P for _, weight_P in chosen], batch_first=True, padding_value=-math.inf)
    index_NP, weight_NP = to_device(index_NP, device), to_device(weight_NP, device)
    first_N1 = to_device(rows * torch.tensor(owners)[:, None], device)
    cells_XC = all_BQC.flatten(0, 1).index_select(0, (index_NP + first_N1).flatten())
    pe_XC = pe_1QC[0].index_select(0, index_NP.flatten())
    shape = (*index_NP.shape, -1)
    return Seen(cells_XC.view(shape), pe_XC.view(shape), weight_NP[:, None])


def mask_logits(upscaling: Iterable[Any], rows_NKC: Tensor, mask_ND: Tensor) -> Tensor:
    """logits_NKX of X = 16 pixels per cell: upscaled twice by 2 x 2, weighted by the mask's D channels."""
    widen, norm, act, widen_again, act_again = upscaling
    quarters = doubled(widen, rows_NKC)
    quarters = act(F.layer_norm(quarters, norm.weight.shape, norm.weight, norm.bias, norm.eps))
    sixteenths = act_again(doubled(widen_again, quarters))
    parts_NY1 = product(sixteenths.flatten(1, 3), mask_ND[:, :, None])
    return parts_NY1.view(*rows_NKC.shape[:2], -1)


def arranged(parts_KX: Tensor, window: Window) -> Tensor:
    """logits, 4 h x 4 w, of the 16 pixels of each cell of a window; further dimensions come first.

    Which quarter of a cell, and which quarter of that: each is a row and a column of two.
    """
    first, height, width = parts_KX.shape[:-2], window.height, window.width
    parts = parts_KX.reshape(*first, height, width, 2, 2, 2, 2)
    f = len(first)
    order = (*range(f), *(f + axis for axis in (0, 2, 4, 1, 3, 5)))
    return parts.permute(order).reshape(*first, 4 * height, 4 * width)


def doubled(convolution: nn.ConvTranspose2d, x_C: Tensor) -> Tensor:
    """x_PD: the transposed convolution turns each row of C channels into P = 2 x 2 rows of D channels."""
    weight_CDP = convolution.weight.flatten(2)
    channels, width, parts = weight_CDP.shape
    weight_CX = weight_CDP.transpose(1, 2).reshape(channels, parts * width)
    assert convolution.bias is not None  # every such convolution of SAM has one
    parts_CX: Tensor = x_C @ weight_CX
    return parts_CX.view(*x_C.shape[:-1], parts, width) + convolution.bias


# --- The two-way transformer


def attend(
    transformer: TwoWayTransformer, tokens_NTC: Tensor, seen: Seen, answers: int
) -> tuple[Tensor, Tensor]:
    """(answers_NAC, cells_NPC): the first A tokens and the cells after all blocks.

    The last attention gives every token its answer independently of the others, so only those that are
    read are computed.
    """
    queries_NTC = tokens_NTC
    for block in transformer.layers:
        queries_NTC, seen = two_way(block, queries_NTC, tokens_NTC, seen)
    asked_NAC, pe_NAC = queries_NTC[:, :answers], tokens_NTC[:, :answers]
    last = transformer.final_attn_token_to_image
    looks_NAC = look(last, asked_NAC + pe_NAC, seen, seen.cells_NPC + seen.pe_NPC)
    return transformer.norm_final_attn(asked_NAC + looks_NAC), seen.cells_NPC


def two_way(
    block: TwoWayAttentionBlock, queries_NTC: Tensor, tokens_NTC: Tensor, seen: Seen
) -> tuple[Tensor, Seen]:
    """One block: queries_NTC, and the cells. tokens_NTC: the positions of the queries."""
    if block.skip_first_layer_pe:
        queries_NTC = block.self_attn(q=queries_NTC, k=queries_NTC, v=queries_NTC)
    else:
        placed_NTC = queries_NTC + tokens_NTC
        queries_NTC = queries_NTC + block.self_attn(q=placed_NTC, k=placed_NTC, v=queries_NTC)
    queries_NTC = block.norm1(queries_NTC)
    placed_NPC = seen.cells_NPC + seen.pe_NPC
    looks_NTC = look(block.cross_attn_token_to_image, queries_NTC + tokens_NTC, seen, placed_NPC)
    queries_NTC = block.norm2(queries_NTC + looks_NTC)
    queries_NTC = block.norm3(queries_NTC + block.mlp(queries_NTC))
    to_token, placed_NTC = block.cross_attn_image_to_token, queries_NTC + tokens_NTC
    told_NPC = tell(to_token, seen.cells_NPC, placed_NPC, placed_NTC, queries_NTC)
    return queries_NTC, seen._replace(cells_NPC=block.norm4(told_NPC))


def look(attention: Attention, queries_NTC: Tensor, seen: Seen, placed_NPC: Tensor) -> Tensor:
    """looks_NTC: what every token takes from the cells; placed_NPC: the cells with their positions.

    The bias of the keys adds the same number to all scores of a token, so the softmax removes it.
    """
    prompts, tokens, _ = queries_NTC.shape
    heads = attention.num_heads
    asked_NTHd = split(attention, attention.q_proj(queries_NTC))
    asked_NHTC = torch.einsum("nthd,hdc->nhtc", asked_NTHd, by_heads(attention.k_proj, heads))
    asked_NXC, placed_NCP = asked_NHTC.flatten(1, 2), placed_NPC.mT
    scores_NXP = product(asked_NXC, placed_NCP, seen.weight_N1P)
    seen_NXC = product(torch.softmax(scores_NXP, dim=-1), seen.cells_NPC)
    seen_NHTC = seen_NXC.view(prompts, heads, tokens, -1)
    values_NTHd = torch.einsum("nhtc,hdc->nthd", seen_NHTC, by_heads(attention.v_proj, heads))
    looks_NTC: Tensor = attention.out_proj(values_NTHd.flatten(2) + attention.v_proj.bias)
    return looks_NTC


def tell(
    attention: Attention, cells_NPC: Tensor, placed_NPC: Tensor, keys_NTC: Tensor, values_NTC: Tensor
) -> Tensor:
    """cells_NPC plus what every cell takes from the tokens."""
    prompts, tokens, _ = keys_NTC.shape
    heads = attention.num_heads
    keys_NTHd = split(attention, attention.k_proj(keys_NTC))
    keys_NHTC = torch.einsum("nthd,hdc->nhtc", keys_NTHd, by_heads(attention.q_proj, heads))
    bias_NHT = torch.einsum("nthd,hd->nht", keys_NTHd, attention.q_proj.bias.view(heads, -1))
    bias_NX1 = bias_NHT.reshape(prompts, -1, 1)
    scores_NXP = product(keys_NHTC.flatten(1, 2), placed_NPC.mT, bias_NX1)
    attention_NHTP = torch.softmax(scores_NXP.view(prompts, heads, tokens, -1), dim=2)
    values_NTHd = attention.v_proj(values_NTC).view(prompts, tokens, heads, -1)
    out_CHd = attention.out_proj.weight.view(-1, heads, values_NTHd.shape[-1])
    values_NHTC = torch.einsum("nthd,chd->nhtc", values_NTHd, out_CHd)
    # A head's attention adds up to 1: with a share of the bias in every value, each cell gets it once.
    told_NXC = (values_NHTC + attention.out_proj.bias / heads).flatten(1, 2)
    return product(attention_NHTP.flatten(1, 2).mT, told_NXC, cells_NPC)


def product(a_NXY: Tensor, b_NYZ: Tensor, plus: Tensor | None = None) -> Tensor:
    """a b, or a b + plus. A processor has faster products for two matrices than for a batch of one."""
    if len(a_NXY) > 1:
        return torch.bmm(a_NXY, b_NYZ) if plus is None else torch.baddbmm(plus, a_NXY, b_NYZ)
    a_XY, b_YZ = a_NXY.squeeze(0), b_NYZ.squeeze(0)  # gradients of a squeeze copy nothing
    one = torch.mm(a_XY, b_YZ) if plus is None else torch.addmm(plus.squeeze(0), a_XY, b_YZ)
    return one.unsqueeze(0)


def split(attention: Attention, x_NTD: Tensor) -> Tensor:
    """x_NTHd, divided by the square root of d as attention scores are."""
    x_NTHd = x_NTD.view(*x_NTD.shape[:2], attention.num_heads, -1)
    return x_NTHd / math.sqrt(x_NTHd.shape[-1])


def by_heads(projection: nn.Linear, heads: int) -> Tensor:
    """weight_HdC: the weight of a projection from C channels, by head."""
    return projection.weight.view(heads, -1, projection.in_features)
