"""The square input frame of a backbone, and the way back to the pixels of the image.

H, W: original size. S: side of the frame. As in Segment Anything, an image is scaled so that its longer side
is S, and padded with zeros at the right and bottom.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from casam_core.model.compute import to_device


@dataclass(frozen=True)
class Frame:
    """Geometry of one image inside a frame of side `side`."""

    height: int
    width: int
    side: int

    @property
    def scale(self) -> float:
        """Frame pixels per image pixel."""
        return self.side / max(self.height, self.width)

    @property
    def inner(self) -> tuple[int, int]:
        """(height, width) of the image inside the frame, before padding."""
        return max(1, int(self.height * self.scale + 0.5)), max(1, int(self.width * self.scale + 0.5))

    def resize_image(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The image at its inner size (bilinear, antialiased), without padding."""
        height, width = self.inner
        picture = Image.fromarray(image_HW3).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(picture)

    def resize_labels(self, labels_HW: NDArray[np.int32]) -> NDArray[np.int32]:
        """labels_SS: nearest neighbour, padded with background. Very small instances may vanish."""
        height, width = self.inner
        picture = Image.fromarray(labels_HW, mode="I").resize((width, height), Image.Resampling.NEAREST)
        labels_SS = np.zeros((self.side, self.side), np.int32)
        labels_SS[:height, :width] = np.asarray(picture, dtype=np.int32)
        return labels_SS

    def to_frame(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scale xy coordinates (any array whose last axis alternates x and y) into the frame."""
        height, width = self.inner
        pairs = points.reshape(*points.shape[:-1], -1, 2) * np.array(
            [width / self.width, height / self.height], np.float32
        )
        return pairs.reshape(points.shape).astype(np.float32)

    def boxes_to_image(self, boxes_N4: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(boxes_N4 in pixels of the image, cut at its edges; inside_N: which have a part in it)."""
        height, width = self.inner
        shrunk = np.array([width / self.width, height / self.height] * 2, np.float32)
        last = np.array([self.width - 1, self.height - 1] * 2, np.float32)
        image_N4 = boxes_N4 / shrunk
        inside_N: NDArray[np.bool_] = np.logical_and.reduce(
            (image_N4[:, :2] <= last[:2]) & (image_N4[:, 2:] >= 0), axis=1
        )
        return np.clip(image_N4, 0, last).astype(np.float32), inside_N

    def restore(self, logits_Nhw: Tensor) -> Tensor:
        """logits_NHW at the image's resolution, from the decoder's low-resolution logits."""
        height, width = self.inner
        in_frame = resampled(logits_Nhw.float(), (self.side, self.side))
        return resampled(in_frame[:, :height, :width], (self.height, self.width))


def resampled(x_Nhw: Tensor, size: tuple[int, int]) -> Tensor:
    """x_NHW of another size, bilinear. Gradients flow.

    An accelerator gets two products with matrices: torch's own operation adds gradients in an order that
    varies, or takes many times as long.
    """
    if x_Nhw.device.type == "cpu":
        return F.interpolate(x_Nhw[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return resampled_by_products(x_Nhw, size)


def resampled_by_products(x_Nhw: Tensor, size: tuple[int, int]) -> Tensor:
    """`resampled`, as an accelerator does it."""
    down_Hh, across_Ww = (
        to_device(bilinear(old, new), x_Nhw.device) for old, new in zip(x_Nhw.shape[1:], size, strict=True)
    )
    return down_Hh @ x_Nhw @ across_Ww.T


@lru_cache(256)
def bilinear(old: int, new: int) -> Tensor:
    """weight: new x old, which resamples one axis."""
    each_1oo = torch.eye(old)[None]
    return F.interpolate(each_1oo, new, mode="linear", align_corners=False)[0].T.contiguous()


def frame_of(image: NDArray[np.uint8] | NDArray[np.int32], side: int) -> Frame:
    """The frame of side `side` for an image_HW3 or its labels_HW."""
    return Frame(height=image.shape[0], width=image.shape[1], side=side)


def pad_to_square(x_3hw: Tensor, side: int) -> Tensor:
    """x_3SS: zeros at the right and bottom."""
    return torch.nn.functional.pad(x_3hw, (0, side - x_3hw.shape[2], 0, side - x_3hw.shape[1]))
