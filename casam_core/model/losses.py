"""The training losses of an Alignment Layer: focal + Dice + squared error of SAM's own IoU estimate.

`alignment_loss` takes Dice and IoU of each instance; `official_loss` takes them over the whole batch, as the
public code of CA-SAM does (`training.objective`). logits_Nhw, target_Nhw (0 or 1): masks at the decoder's
resolution. iou_N: the decoder's estimate of the IoU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from casam_core.model.compute import to_device
from casam_core.model.frame import resampled

FOCAL_WEIGHT = 20.0
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


def focal_loss(logits_Nhw: Tensor, target_Nhw: Tensor) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017), mean over pixels and instances."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits_Nhw, target_Nhw, reduction="none")
    probability = torch.sigmoid(logits_Nhw)
    p_true = probability * target_Nhw + (1 - probability) * (1 - target_Nhw)
    alpha = FOCAL_ALPHA * target_Nhw + (1 - FOCAL_ALPHA) * (1 - target_Nhw)
    return (alpha * (1 - p_true) ** FOCAL_GAMMA * cross_entropy).mean()


def dice_loss(logits_Nhw: Tensor, target_Nhw: Tensor) -> Tensor:
    """1 - (2 |PT| + 1) / (|P| + |T| + 1) on probabilities, mean over instances."""
    probability = torch.sigmoid(logits_Nhw).flatten(1)
    target = target_Nhw.flatten(1)
    overlap = (probability * target).sum(1)
    return (1 - (2 * overlap + 1) / (probability.sum(1) + target.sum(1) + 1)).mean()


def soft_iou(logits_Nhw: Tensor, target_Nhw: Tensor) -> Tensor:
    """iou_N of probabilities against the target, in [0, 1]."""
    probability = torch.sigmoid(logits_Nhw).flatten(1)
    target = target_Nhw.flatten(1)
    overlap = (probability * target).sum(1)
    return overlap / (probability.sum(1) + target.sum(1) - overlap).clamp(min=1e-6)


def alignment_loss(
    logits_Nhw: Tensor, iou_N: Tensor, target_Nhw: Tensor, pixels: int | None = None
) -> Tensor:
    """The weighted sum of the three losses; no gradient flows through the IoU target.

    pixels: of a whole mask, if logits and targets are those of a window: outside of it both are 0. Only the
    focal loss, a mean over pixels, has to know.
    """
    share = 1.0 if pixels is None else logits_Nhw[0].numel() / pixels
    iou_error = F.mse_loss(iou_N, soft_iou(logits_Nhw, target_Nhw).detach())
    focal = share * focal_loss(logits_Nhw, target_Nhw)
    return FOCAL_WEIGHT * focal + dice_loss(logits_Nhw, target_Nhw) + iou_error


def alignment_loss_together(
    logits: Sequence[Tensor], iou_N: Tensor, targets: Sequence[Tensor], pixels: int
) -> Tensor:
    """The mean of `alignment_loss` over instances of any sizes h x w, in few calls, for an accelerator.

    Smaller masks are filled up; what fills them up counts nowhere.
    """
    logits_NL = pad_sequence([logits_hw.flatten() for logits_hw in logits], batch_first=True)
    target_NL = pad_sequence([target_hw.flatten() for target_hw in targets], batch_first=True)
    sizes_N1 = to_device(torch.tensor([[logits_hw.numel()] for logits_hw in logits]), logits_NL.device)
    inside_NL = torch.arange(logits_NL.shape[1], device=logits_NL.device) < sizes_N1
    probability_NL = torch.sigmoid(logits_NL) * inside_NL
    cross_entropy_NL = F.binary_cross_entropy_with_logits(logits_NL, target_NL, reduction="none")
    p_true_NL = probability_NL * target_NL + (1 - probability_NL) * (1 - target_NL)
    alpha_NL = FOCAL_ALPHA * target_NL + (1 - FOCAL_ALPHA) * (1 - target_NL)
    focal_NL = alpha_NL * (1 - p_true_NL) ** FOCAL_GAMMA * cross_entropy_NL * inside_NL
    overlap_N = (probability_NL * target_NL).sum(1)
    total_N = probability_NL.sum(1) + target_NL.sum(1)
    dice = (1 - (2 * overlap_N + 1) / (total_N + 1)).mean()
    soft_iou_N = (overlap_N / (total_N - overlap_N).clamp(min=1e-6)).detach()
    focal = focal_NL.sum() / (len(logits) * pixels)
    return FOCAL_WEIGHT * focal + dice + F.mse_loss(iou_N, soft_iou_N)


def official_loss(logits_Nhw: Tensor, iou_N: Tensor, target_NHW: Tensor) -> Tensor:
    """The loss of the public code of CA-SAM, with its constants (utils.FocalDiceloss_IoULoss).

    It differs from `alignment_loss` in four ways: the focal loss has weight 1; Dice and IoU are those of all
    masks together; the gradient flows through the IoU target, too; masks are compared at the size of the
    target, to which the logits are enlarged.

    target_NHW: 0 or 1, at the size of the backbone's input.
    """
    probability_NHW = torch.sigmoid(resampled(logits_Nhw, (target_NHW.shape[1], target_NHW.shape[2])))
    missed_NHW = 1 - probability_NHW
    found = FOCAL_ALPHA * target_NHW * missed_NHW**FOCAL_GAMMA * torch.log(probability_NHW + 1e-12)
    avoided = (1 - FOCAL_ALPHA) * (1 - target_NHW) * probability_NHW**FOCAL_GAMMA
    focal = -(found + avoided * torch.log(missed_NHW + 1e-12)).mean()
    overlap = (probability_NHW * target_NHW).sum()
    total = probability_NHW.sum() + target_NHW.sum()
    dice = 1 - (2 * overlap + 1) / (total + 1)
    iou = (overlap + 1e-7) / (total - overlap + 1e-7)
    return focal + dice + ((iou - iou_N) ** 2).mean()
