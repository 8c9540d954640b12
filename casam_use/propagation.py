"""Carry masks through a scan: boxes or a finder on one slice, then each mask's own box on the next slice.

The scan is routed once, by the slice on which it begins; all slices use the same entry. In each direction an
object ends at the first slice where the decoder is much less sure than at first, or where the mask is wrong
(`goes_on`). These rules were chosen on three phantom volumes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from casam_core.bank.finding import box_of
from casam_use.scan import Scan
from casam_use.segmenter import NoFinderError, Prediction, Segmenter, paint

MOST_DROP = 0.1
"""How far the decoder's own estimate of the IoU may fall below that of the first slice."""
LEAST_OVERLAP = 0.2
"""IoU of a mask with the one in the slice before, below which it is another object."""
MOST_GROWTH = 1.5
"""Area of a mask relative to the one in the slice before; more is a mask that has run out."""
MARGIN = 1
"""Pixels that the next slice's box is wider on each side. Without it an object cannot grow; with more, masks
stay as large as their boxes where the object shrinks."""

LOOKED_AT = 9
"""Slices, at equal distances, among which finders choose where to begin."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class VolumePrediction:
    """labels_DHW: 0 for background, 1..N for the objects that boxes or a finder gave. start, first: the slice
    on which they begin, and what was predicted there.

    reached: by object, its first and last slice; None if the first mask was empty. encoded: number of slices.
    """

    labels_DHW: NDArray[np.int32]
    start: int
    first: Prediction
    reached: tuple[tuple[int, int] | None, ...]
    encoded: int


def segment_volume(
    segmenter: Segmenter,
    scan: Scan,
    start: int | None,
    boxes: Sequence[Box] = (),
    *,
    task: str | None = None,
    progress: Callable[[int], None] = lambda index: None,
) -> VolumePrediction:
    """One object per box, or per instance that the entry's finder finds, from one slice in both directions.

    Args:
        start: index of the slice, from 0; None without boxes: the finders choose one.
        boxes: x0, y0, x1, y1 of the first and last pixel, in the slice.
        task: use this task's entry, or `identity`, instead of the router's choice.
        progress: called with the index of each slice before it is encoded.

    Raises:
        PromptError: a box does not lie in the slice, or there is neither a box nor a finder.
        BankError: the bank has no such task.
    """
    if start is None:
        looked = looked_at(segmenter, scan, task, progress)
        start = max(looked, key=lambda index: surety(looked[index]))
        first, encoded = looked[start], len(equally_spaced(len(scan.slices_DHW)))
    else:
        progress(start)
        first, encoded = segmenter.predict(scan.image(start), boxes, task=task), 1
    labels_DHW = np.zeros(scan.slices_DHW.shape, np.int32)
    labels_DHW[start] = first.labels
    begun = {n: mask_HW for n, mask_HW in enumerate(first.masks_NHW, 1) if mask_HW.any()}
    reached = {n: [start, start] for n in begun}
    for step in (1, -1):
        alive, index = dict(begun), start + step
        while alive and 0 <= index < len(labels_DHW):
            progress(index)
            found = segmenter.predict(
                scan.image(index), [box_around(mask_HW) for mask_HW in alive.values()], task=first.name
            )
            encoded += 1
            candidates = zip(alive.items(), found.masks_NHW, found.iou_N, strict=True)
            alive = {
                n: mask_HW
                for (n, before_HW), mask_HW, iou in candidates
                if iou >= first.iou_N[n - 1] - MOST_DROP and goes_on(before_HW, mask_HW)
            }
            paint(labels_DHW[index], alive, smaller_on_top=first.scores_N is not None)
            for n in alive:
                reached[n] = [min(reached[n][0], index), max(reached[n][1], index)]
            index += step
    numbers = range(1, len(first.masks_NHW) + 1)
    ends = tuple((reached[n][0], reached[n][1]) if n in reached else None for n in numbers)
    return VolumePrediction(labels_DHW, start, first, ends, encoded)


def looked_at(
    segmenter: Segmenter, scan: Scan, task: str | None, progress: Callable[[int], None]
) -> dict[int, Prediction]:
    """What finders find on equally spaced slices, by index.

    A slice whose entry has no finder is left out: an end of the scan may look like another task. Raises
    NoFinderError if there is such a slice and the others have nothing.
    """
    looked: dict[int, Prediction] = {}
    unable: list[NoFinderError] = []
    for index in equally_spaced(len(scan.slices_DHW)):
        progress(index)
        try:
            looked[index] = segmenter.predict(scan.image(index), task=task)
        except NoFinderError as error:
            unable.append(error)
    if unable and not any(map(surety, looked.values())):
        raise unable[0]
    return looked


def equally_spaced(slices: int) -> list[int]:
    """Indices of at most LOOKED_AT slices, with half a distance at both ends."""
    count = min(slices, LOOKED_AT)
    return [int((number + 0.5) * slices / count) for number in range(count)]


def surety(found: Prediction) -> float:
    """How much a finder found on a slice: the sum of its scores."""
    return 0.0 if found.scores_N is None else float(found.scores_N.sum())


def goes_on(before_HW: NDArray[np.bool_], mask_HW: NDArray[np.bool_]) -> bool:
    """Whether `mask_HW` is the object of the slice before: not empty, at its place, not run out."""
    area = int(mask_HW.sum())
    if not area or area > MOST_GROWTH * int(before_HW.sum()):
        return False
    overlap = int((mask_HW & before_HW).sum()) / int((mask_HW | before_HW).sum())
    return overlap >= LEAST_OVERLAP


def box_around(mask_HW: NDArray[np.bool_]) -> Box:
    """The mask's box with MARGIN, inside the slice."""
    x0, y0, x1, y1 = map(float, box_of(mask_HW))
    height, width = mask_HW.shape
    return (
        max(0, x0 - MARGIN),
        max(0, y0 - MARGIN),
        min(width - 1, x1 + MARGIN),
        min(height - 1, y1 + MARGIN),
    )
