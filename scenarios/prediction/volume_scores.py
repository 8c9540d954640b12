"""How well a volume mask fits the true one: Dice, and a Hausdorff distance in millimetres."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Mask3 = NDArray[np.bool_]
Spacing = tuple[float, float, float]


def dice3(pred_DHW: Mask3, true_DHW: Mask3) -> float:
    """2 |A and B| / (|A| + |B|), in [0, 1]; 1 if both are empty."""
    total = int(pred_DHW.sum()) + int(true_DHW.sum())
    return 2 * int((pred_DHW & true_DHW).sum()) / total if total else 1.0


def hd95_mm(pred_DHW: Mask3, true_DHW: Mask3, spacing: Spacing) -> float:
    """The larger of the two directions' 95th percentile of distances from surface to surface, in mm.

    A surface is the voxels of a mask with a face neighbour outside of it. NaN if a mask is empty.
    """
    if not pred_DHW.any() or not true_DHW.any():
        return math.nan
    from scipy.ndimage import distance_transform_edt

    surfaces = surface_of(pred_DHW), surface_of(true_DHW)
    distances = (distance_transform_edt(~surface, sampling=spacing) for surface in surfaces)
    to_pred, to_true = distances
    return float(max(np.percentile(to_true[surfaces[0]], 95), np.percentile(to_pred[surfaces[1]], 95)))


def surface_of(mask_DHW: Mask3) -> Mask3:
    """Voxels of the mask with a face neighbour outside of it; the edge of the volume is outside."""
    from scipy.ndimage import binary_erosion

    inner: Mask3 = binary_erosion(mask_DHW)
    return mask_DHW & ~inner
