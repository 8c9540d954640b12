"""SAM's mask decoder for many prompts on one image.

It has the weights and the mathematics of segment_anything.modeling.MaskDecoder with a single mask per
prompt, in another order. Tests compare the two.

- Prompts are decoded one by one: their cells stay in the processor's cache.
- The attention is folded into the tokens (casam_core.model.backbones.two_way).
- Its two transposed convolutions have kernel 2 and stride 2. Their outputs do not overlap, so each
  is a matrix product per cell, which can be computed in a window of cells alone.
- SAM computes four masks; here only the returned one is computed.

Shapes: N prompts, T tokens each (SAM's five and the prompt's), K = cells^2 cells, C channels,
h x w = 4 cells x 4 cells mask logits, or those of a window.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from casam_core.model.backbones.two_way import attend
from casam_core.model.window import Window

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
    cells_KC, pe_KC = as_rows(z_CHW + dense_1CHW[0]), as_rows(image_pe_1CHW[0])
    logits, iou = [], []
    for sparse_TC, window in zip(sparse_NTC, windows, strict=True):
        tokens_TC = torch.cat([own_TC, sparse_TC])
        answers_2C, told_KC = attend(decoder.transformer, tokens_TC, cells_KC, pe_KC, answers=2)
        iou.append(decoder.iou_prediction_head(answers_2C[IOU_TOKEN])[0])
        mask_D = decoder.output_hypernetworks_mlps[0](answers_2C[MASK_TOKEN])
        rows_hwC = window.of(told_KC.view(cells, cells, -1))
        logits.append(mask_logits(decoder.output_upscaling, rows_hwC, mask_D))
    return logits, torch.stack(iou)


def as_rows(x_CHW: Tensor) -> Tensor:
    """x_KC: a row per cell, one after the other in memory."""
    return x_CHW.flatten(1).T.contiguous()


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
