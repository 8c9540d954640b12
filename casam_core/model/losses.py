"""The training losses of an Alignment Layer: focal + Dice + squared error of SAM's own IoU estimate.

`alignment_loss` takes Dice and IoU of each instance; `official_loss` takes them over the whole batch, as the
public code of CA-SAM does (`training.objective`). logits_Nhw, target_Nhw (0 or 1): masks at the decoder's
resolution. iou_N: the decoder's estimate of the IoU.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

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


def official_loss(logits_Nhw: Tensor, iou_N: Tensor, target_NHW: Tensor) -> Tensor:
    """The loss of the public code of CA-SAM, with its constants (utils.FocalDiceloss_IoULoss).

    It differs from `alignment_loss` in four ways: the focal loss has weight 1; Dice and IoU are those of all
    masks together; the gradient flows through the IoU target, too; masks are compared at the size of the
    target, to which the logits are enlarged.

    target_NHW: 0 or 1, at the size of the backbone's input.
    """
    enlarged = F.interpolate(logits_Nhw[:, None], target_NHW.shape[1:], mode="bilinear", align_corners=False)
    probability_NHW = torch.sigmoid(enlarged[:, 0])
    missed_NHW = 1 - probability_NHW
    found = FOCAL_ALPHA * target_NHW * missed_NHW**FOCAL_GAMMA * torch.log(probability_NHW + 1e-12)
    avoided = (1 - FOCAL_ALPHA) * (1 - target_NHW) * probability_NHW**FOCAL_GAMMA
    focal = -(found + avoided * torch.log(missed_NHW + 1e-12)).mean()
    overlap = (probability_NHW * target_NHW).sum()
    total = probability_NHW.sum() + target_NHW.sum()
    dice = 1 - (2 * overlap + 1) / (total + 1)
    iou = (overlap + 1e-7) / (total - overlap + 1e-7)
    return focal + dice + ((iou - iou_N) ** 2).mean()
