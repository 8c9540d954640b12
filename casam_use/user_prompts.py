"""What a person asks for: boxes and points of several objects, or all that is known of one object.

One object may have a box, points on it, points beside it, and a mask from before. Several objects have a box
or a point each. Negative points and a mask speak of one object, so they need no further word.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from casam_core.errors import PromptError
from casam_core.model.frame import frame_of
from casam_core.model.prompts import Prompts, single_points

SURE = 10.0
"""Logit inside of an earlier mask, and the negative of it outside; about what the decoder gives itself."""


@dataclass(frozen=True)
class UserPrompts:
    """Prompts as they come, in pixels of the image.

    boxes: (N, 4) as x0, y0, x1, y1 of the first and the last pixel. points: (P, 2) as x, y. labels: (P,), 1
    for a point of the object, 0 for a point beside it. mask: (H, W), not 0 where the object was seen before.
    one: all prompts are of one object; labels or a mask say so, too.
    """

    boxes: ArrayLike = ()
    points: ArrayLike = ()
    labels: ArrayLike | None = None
    mask: ArrayLike | None = None
    one: bool = False

    def checked(self, height: int, width: int, *, needed: bool = True) -> list[Prompts]:
        """Prompts that lie in the image, without the mask; at least one if `needed`. Raises PromptError."""
        boxes_N4, points_N2 = (
            _numbers("box x0,y0,x1,y1", self.boxes, 4),
            _numbers("point x,y", self.points, 2),
        )
        for what, rows in (("box", boxes_N4), ("point", points_N2)):
            for row in rows:
                _check_inside(what, row, height, width)
        if self.one or self.labels is not None or self.mask is not None:
            self._check_mask(height, width)
            return [self._one_object(boxes_N4, points_N2)]
        prompts = [Prompts(boxes_N4=boxes_N4)] if len(boxes_N4) else []
        prompts += [single_points(points_N2)] if len(points_N2) else []
        if not prompts and needed:
            raise PromptError(
                "expected at least one box or point, found none; add one, or use a bank with "
                "finders (alignment.finder)"
            )
        return prompts

    def with_mask(self, prompts: list[Prompts], low: int) -> list[Prompts]:
        """The checked prompts with the earlier mask. low: side of the decoder's logits, which it gets."""
        if self.mask is None:
            return prompts
        mask_HW = (np.asarray(self.mask) != 0).astype(np.int32)
        in_frame_hw = frame_of(mask_HW, low).resize_labels(mask_HW) != 0
        logits_1hw = np.where(in_frame_hw, SURE, -SURE).astype(np.float32)[None]
        return [replace(one, masks_Nhw=logits_1hw) for one in prompts]

    def _one_object(self, boxes_N4: NDArray[np.float32], points_P2: NDArray[np.float32]) -> Prompts:
        labels_P = np.ones(len(points_P2), np.int64) if self.labels is None else np.asarray(self.labels)
        if labels_P.shape != (len(points_P2),) or not np.isin(labels_P, (0, 1)).all():
            raise PromptError(
                f"labels: expected 1 (the object) or 0 (not the object) for each of {len(points_P2)} points, "
                f"found {self.labels!r}; correct them"
            )
        if len(boxes_N4) > 1:
            raise PromptError(f"expected at most one box for one object, found {len(boxes_N4)}; keep one")
        if not len(boxes_N4) and not len(points_P2):
            beside = "" if self.mask is None else " beside the earlier mask"
            raise PromptError(f"expected a box or a point of the object{beside}, found none; add one")
        if self.mask is None and not len(boxes_N4) and not labels_P.any():
            raise PromptError(
                f"expected a box, a point of the object or an earlier mask, found {len(points_P2)} negative "
                "points alone; add one"
            )
        return Prompts(
            boxes_N4=boxes_N4 if len(boxes_N4) else None,
            points_NP2=points_P2[None] if len(points_P2) else None,
            labels_NP=labels_P.astype(np.int64)[None] if len(points_P2) else None,
        )

    def _check_mask(self, height: int, width: int) -> None:
        if self.mask is None:
            return
        mask_HW = np.asarray(self.mask)
        if mask_HW.shape != (height, width):
            raise PromptError(
                f"mask: expected {width} x {height} pixels, as the image has, found "
                f"{' x '.join(map(str, mask_HW.shape[::-1]))}; give the mask of this image"
            )
        objects = np.unique(mask_HW[mask_HW != 0])
        if len(objects) != 1:
            raise PromptError(
                f"mask: expected one object (one value beside 0), found {len(objects)}; keep one of them"
            )


def _check_inside(what: str, row: NDArray[np.float32], height: int, width: int) -> None:
    x, y = row[0::2], row[1::2]
    inside = (x >= 0).all() and (y >= 0).all() and (x <= width - 1).all() and (y <= height - 1).all()
    if not inside or x[0] > x[-1] or y[0] > y[-1]:  # NaN is never inside
        order = ", x0 <= x1 and y0 <= y1" if what == "box" else ""
        raise PromptError(
            f"{what} {','.join(f'{value:g}' for value in row)}: expected x in 0..{width - 1} and "
            f"y in 0..{height - 1}{order}; correct it"
        )


def _numbers(what: str, rows: ArrayLike, columns: int) -> NDArray[np.float32]:
    try:
        array = np.asarray(rows, np.float32)
        return array.reshape(0, columns) if array.size == 0 else array.reshape(len(array), columns)
    except (TypeError, ValueError) as error:
        raise PromptError(f"expected a list of {what}, found {rows!r}") from error
