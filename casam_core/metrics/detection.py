"""Scores of instances that were found without a prompt, against the true ones.

true_HW: labels, 0 for background. Instances do not overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ENOUGH = 0.5
"""The IoU from which a mask is a hit."""


@dataclass(frozen=True)
class Matched:
    """One image. scores_N: of its masks, descending. hits_N: whether a mask is the first that hits its
    instance. iou_M: of each true instance, by number; 0 for those that no mask hits."""

    scores_N: NDArray[np.float64]
    hits_N: NDArray[np.bool_]
    iou_M: NDArray[np.float64]


def matched(
    masks_NHW: NDArray[np.bool_], scores_N: NDArray[np.floating], true_HW: NDArray[np.int32]
) -> tuple[Matched, dict[int, int]]:
    """The matches of one image as COCO makes them, and the mask's index of each hit instance.

    The surest mask chooses first: of the instances that are left, the one with the largest IoU, if it is at
    least ENOUGH.
    """
    numbers_M, sizes_M = np.unique(true_HW[true_HW > 0], return_counts=True)
    order = np.argsort(-np.asarray(scores_N, np.float64), kind="stable")
    iou_M, hits, of = np.zeros(len(numbers_M)), [], {}
    free_M = np.ones(len(numbers_M), bool)
    for i in order:
        overlap_M = np.bincount(true_HW[masks_NHW[i]], minlength=int(numbers_M.max(initial=0)) + 1)[numbers_M]
        each_M = overlap_M / (masks_NHW[i].sum() + sizes_M - overlap_M) * free_M
        best = int(np.argmax(each_M)) if len(numbers_M) else 0
        hits.append(bool(len(numbers_M)) and bool(each_M[best] >= ENOUGH))
        if hits[-1]:
            free_M[best], iou_M[best] = False, each_M[best]
            of[int(numbers_M[best])] = int(i)
    return Matched(np.asarray(scores_N, np.float64)[order], np.array(hits, bool), iou_M), of
