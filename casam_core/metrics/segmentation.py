"""Segmentation scores of one predicted mask against the true one, and their mean within an image.

Masks are numpy bool arrays `pred_HW`, `true_HW` at the image's original resolution. Scores are
fractions in [0, 1], higher is better; the Hausdorff distance is in pixels, lower is better.

Empty masks in every overlap score: 1.0 if both are empty, 0.0 if one is empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

BOUNDARY_RATIO = 0.02
"""Width of the boundary as a share of the image diagonal, in both kinds of Boundary IoU."""


@dataclass(frozen=True)
class InstanceScores:
    """Scores of one instance, or their sum or mean over several (`ImageScores`).

    `hd95` is None if it was not requested.
    """

    iou: float
    dice: float
    biou: float
    biou_official: float
    hd95: float | None


@dataclass(frozen=True)
class ImageScores:
    """Scores of one image: the sum over its instances, their number and their mean.

    The main figure is the mean of `mean` over images; `iou_instance` is the sum of `total.iou` over
    images, divided by the sum of `n_instances`.
    """

    total: InstanceScores
    n_instances: int

    @property
    def mean(self) -> InstanceScores:
        """Mean over the image's instances."""
        n, total = self.n_instances, self.total
        return InstanceScores(
            iou=total.iou / n,
            dice=total.dice / n,
            biou=total.biou / n,
            biou_official=total.biou_official / n,
            hd95=None if total.hd95 is None else total.hd95 / n,
        )


def iou(pred_HW: Mask, true_HW: Mask) -> float:
    """Intersection over union, |P & G| / |P | G|, in [0, 1].

    Raises:
        ValueError: the masks are not two bool arrays of one shape (H, W).
    """
    _check(pred_HW, true_HW)
    return _overlap(pred_HW, true_HW)


def dice(pred_HW: Mask, true_HW: Mask) -> float:
    """Dice coefficient, 2 |P & G| / (|P| + |G|) = 2 IoU / (1 + IoU), in [0, 1].

    Raises:
        ValueError: the masks are not two bool arrays of one shape (H, W).
    """
    return _dice_from_iou(iou(pred_HW, true_HW))


def hd95(pred_HW: Mask, true_HW: Mask) -> float:
    """95 % Hausdorff distance in pixels, in [0, image diagonal]; bitwise the same as MONAI's.

    The larger of the two directed 95th percentiles of the distances between the masks' edges. If one
    mask is empty, it is the image diagonal sqrt(H^2 + W^2); if both are empty, 0.

    Raises:
        ValueError: the masks are not two bool arrays of one shape (H, W).
    """
    _check(pred_HW, true_HW)
    return _hd95(*_crop(pred_HW, true_HW, margin=1), diagonal=math.hypot(*pred_HW.shape))


def score_instance(pred_HW: Mask, true_HW: Mask, *, with_hd95: bool) -> InstanceScores:
    """All scores of one instance; `hd95` is None unless `with_hd95`.

    Raises:
        ValueError: the masks are not two bool arrays of one shape (H, W).
    """
    _check(pred_HW, true_HW)
    radius = _dilation_radius(pred_HW.shape)
    # All scores use one small crop; only the diagonal depends on the whole image.
    pred_hw, true_hw = _crop(pred_HW, true_HW, margin=radius + 1)
    overlap = _overlap(pred_hw, true_hw)
    return InstanceScores(
        iou=overlap,
        dice=_dice_from_iou(overlap),
        biou=_inner_band_iou(pred_hw, true_hw, width=_boundary_width(pred_HW.shape)),
        biou_official=_dilated_contour_iou(pred_hw, true_hw, radius=radius),
        hd95=_hd95(pred_hw, true_hw, diagonal=math.hypot(*pred_HW.shape)) if with_hd95 else None,
    )


def score_image(instances: Sequence[InstanceScores]) -> ImageScores:
    """Sum the instances of one image; the result does not depend on their order.

    Raises:
        ValueError: no instance (such an image has no score; leave it out of the mean), or only some
            instances have hd95.
    """
    if not instances:
        raise ValueError("an image without instances has no score; leave it out of the mean")
    distances = [scores.hd95 for scores in instances if scores.hd95 is not None]
    if distances and len(distances) != len(instances):
        raise ValueError(
            f"hd95 was measured on {len(distances)} of {len(instances)} instances; need all or none"
        )
    return ImageScores(
        total=InstanceScores(
            iou=math.fsum(scores.iou for scores in instances),
            dice=math.fsum(scores.dice for scores in instances),
            biou=math.fsum(scores.biou for scores in instances),
            biou_official=math.fsum(scores.biou_official for scores in instances),
            hd95=math.fsum(distances) if distances else None,
        ),
        n_instances=len(instances),
    )


def _check(pred_HW: Mask, true_HW: Mask) -> None:
    for name, mask in (("predicted", pred_HW), ("true", true_HW)):
        if mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
            raise ValueError(f"the {name} mask must be bool (H, W), found {mask.dtype} {mask.shape}")
    if pred_HW.shape != true_HW.shape:
        raise ValueError(f"the masks must have one shape, found {pred_HW.shape} and {true_HW.shape}")


def _crop(pred_HW: Mask, true_HW: Mask, margin: int) -> tuple[Mask, Mask]:
    """Both masks inside the bounding box of their union, widened by `margin` within the image."""
    rows = np.flatnonzero(pred_HW.any(axis=1) | true_HW.any(axis=1))
    if rows.size == 0:
        return pred_HW[:1, :1], true_HW[:1, :1]
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    cols = np.flatnonzero(pred_HW[top:bottom].any(axis=0) | true_HW[top:bottom].any(axis=0))
    left, right = int(cols[0]), int(cols[-1]) + 1
    # A negative start would wrap around; slicing itself cuts an end beyond the image.
    box = (slice(max(top - margin, 0), bottom + margin), slice(max(left - margin, 0), right + margin))
    return pred_HW[box], true_HW[box]


def _overlap(a_HW: Mask, b_HW: Mask) -> float:
    union = np.count_nonzero(a_HW | b_HW)
    return np.count_nonzero(a_HW & b_HW) / union if union else 1.0


def _dice_from_iou(value: float) -> float:
    return 2.0 * value / (1.0 + value)


def _boundary_width(shape_HW: tuple[int, ...]) -> int:
    return max(1, round(BOUNDARY_RATIO * math.hypot(*shape_HW)))


def _dilation_radius(shape_HW: tuple[int, ...]) -> int:
    """Radius of the authors' odd kernel: side k, or k + 1 where k is even, is 2 (k // 2) + 1."""
    return _boundary_width(shape_HW) // 2


def _inner_band_iou(pred_HW: Mask, true_HW: Mask, *, width: int) -> float:
    """Boundary IoU of Cheng et al. (CVPR 2021), in [0, 1].

    IoU of the inner bands G_d & G and P_d & P: each mask minus its erosion by d pixels, with
    d = round(0.02 x image diagonal), at least 1, in the chessboard distance (a 3x3 square eroding d
    times). The outside of the image counts as background, so a mask that reaches the border of the image
    has a boundary there, as in the reference implementation.
    """
    if not (pred_HW.any() and true_HW.any()):
        return _overlap(pred_HW, true_HW)
    return _overlap(
        pred_HW & ~_erode(pred_HW, width, outside=False),
        true_HW & ~_erode(true_HW, width, outside=False),
    )


def _dilated_contour_iou(pred_HW: Mask, true_HW: Mask, *, radius: int) -> float:
    """The "BIoU" that the CA-SAM authors' code reports, in [0, 1]; not the canonical Boundary IoU.

    Each mask's thin boundary (mask minus its 3x3 erosion) is dilated by a square of odd side
    k = round(0.02 x image diagonal), plus 1 if even; the score is the IoU of the two bands. The
    outside of the image counts as foreground in the erosion: a mask that reaches the border of the image
    has no boundary there.

    A mask that fills the image has no such boundary: two full masks score 1.0. A full mask against an
    empty one scores 0.0 by this module's rule for empty masks (the authors' smoothed ratio gives 1.0).

    Needs crops with a margin of `radius` + 1 for the bands, and for background at each edge of the crop
    inside the image, so that only the outside of the image counts as foreground.
    """
    if not (pred_HW.any() and true_HW.any()):
        return _overlap(pred_HW, true_HW)
    return _overlap(
        _dilate(pred_HW & ~_erode(pred_HW, 1, outside=True), radius),
        _dilate(true_HW & ~_erode(true_HW, 1, outside=True), radius),
    )


def _hd95(pred_HW: Mask, true_HW: Mask, *, diagonal: float) -> float:
    found, present = bool(pred_HW.any()), bool(true_HW.any())
    if not (found and present):
        return diagonal if found or present else 0.0
    return edge_distance(pred_HW, true_HW)


def edge_distance(pred: Mask, true: Mask, spacing: float | Sequence[float] = 1.0) -> float:
    """The larger of the two directed 95th percentiles of the distances between the edges of two masks.

    Args:
        pred, true: of one shape with any number of axes; neither is empty.
        spacing: of pixels along each axis; the distance has its unit.
    """
    # Imported here because most runs do not measure this distance.
    import torch
    from scipy.ndimage import binary_erosion
    from scipy.spatial import KDTree

    edge_ND, other_ND = (np.argwhere(mask & ~binary_erosion(mask)) * spacing for mask in (pred, true))
    directed = (KDTree(other_ND).query(edge_ND)[0], KDTree(edge_ND).query(other_ND)[0])
    return max(float(torch.quantile(torch.from_numpy(distances).float(), 0.95)) for distances in directed)


def _erode(mask_HW: Mask, radius: int, *, outside: bool) -> Mask:
    """Minimum over the square of side 2 radius + 1; pixels beyond the array are `outside`.

    The minimum of a window is that of two overlapping shorter windows. So doubling the width needs only log2
    steps of whole-array ANDs, which is exact and much faster than a filter per pixel.
    """
    width = 2 * radius + 1
    out = np.pad(mask_HW, radius, constant_values=outside)
    reach = 1
    while reach < width:
        step = min(reach, width - reach)
        out = out[:-step] & out[step:]
        out = out[:, :-step] & out[:, step:]
        reach += step
    return out


def _dilate(mask_HW: Mask, radius: int) -> Mask:
    """Maximum over the square of side 2 radius + 1."""
    return ~_erode(~mask_HW, radius, outside=True)
