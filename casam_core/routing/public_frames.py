"""Frames of reference for routers: axes of the feature space that are made from public images only.

A router that describes a task inside a fixed public frame reveals nothing but the task's own numbers. The
frame itself is a function of public images (phantoms), so it is the same for all institutions and no release.

In a frame, the feature f_F of an image becomes a vector u_K of length 1 or less:

    u = clip_1(axes^T (f - mean))

The axes are the K leading principal directions of the standardised public features. They are partly whitened,
turned so that the public scatter inside a task is diagonal, and scaled so that half of the public images are
longer than 1. So one image changes a sum of vectors by at most 1 (its L2 sensitivity).

A frame is one public file (casam_core.config.public_files): all institutions must use the same bits, so they
accept only the frame whose digest their approved scenario names.
"""

from __future__ import annotations

import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.config.public_files import PublicFiles, packed, unpacked
from casam_core.errors import BankError

AXES = 64
"""Axes of a frame; a narrower feature has half as many as it has values."""
LEAST_SCATTER = 1e-9
"""The smallest scatter on an axis, so that no distance is infinite."""
WIDEST = 8192
"""The largest number of values in a feature, and of axes."""


@dataclass(frozen=True, eq=False)
class PublicFrame:
    """mean_F; axes_FK; scatter_K: the variances of public images of one task along the axes; all float32.

    about: who made it, for people: backbone, features, modalities, images.
    """

    mean_F: NDArray[np.float32]
    axes_FK: NDArray[np.float32]
    scatter_K: NDArray[np.float32]
    about: Mapping[str, Any]

    @cached_property
    def _axes_in_doubles(self) -> NDArray[np.float64]:
        return self.axes_FK.astype(np.float64)

    def place(self, f_F: NDArray[np.float64]) -> NDArray[np.float64]:
        """u_K of one feature; its L2 norm is at most 1. A feature that is not finite becomes zero.

        It takes one feature at a time: in a product of matrices, other images could change its last bits.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            u_K: NDArray[np.float64] = (f_F - self.mean_F) @ self._axes_in_doubles
            length = float(np.linalg.norm(u_K))
        if not math.isfinite(length):
            return np.zeros(len(u_K))
        return u_K / max(length, 1.0)

    def to_bytes(self) -> bytes:
        """The frame's file: JSON, as the Flower bundle takes only text. Equal frames give equal bytes."""
        arrays = {name: packed(getattr(self, name)) for name in FORM}
        content = {"about": dict(self.about), "arrays": arrays}
        return (json.dumps(content, sort_keys=True) + "\n").encode()

    @staticmethod
    def from_bytes(data: bytes) -> PublicFrame:
        """Read a frame. Raises BankError for bytes that are not a frame, or numbers that are out of range."""
        try:
            content = json.loads(data)
            arrays = {name: unpacked(content["arrays"][name], FORM[name]) for name in FORM}
            frame = PublicFrame(about=dict(content["about"]), **arrays)
        except (KeyError, TypeError, ValueError, RecursionError, binascii.Error) as error:
            raise BankError(f"not the file of a frame: {type(error).__name__}: {error}") from error
        width, axes = frame.axes_FK.shape
        if len(frame.mean_F) != width or len(frame.scatter_K) != axes or not 0 < axes <= width <= WIDEST:
            raise BankError(f"not the file of a frame: {width} x {axes} axes do not fit its other arrays")
        if frame.scatter_K.min() < LEAST_SCATTER:
            raise BankError(f"not the file of a frame: expected a scatter from {LEAST_SCATTER:g}")
        return frame


FORM = {"mean_F": 1, "axes_FK": 2, "scatter_K": 1}
"""The arrays of a frame and their numbers of dimensions."""


def axes_of(width: int) -> int:
    """The number K of axes of a frame for features of `width` values."""
    return max(1, min(AXES, width // 2))


FRAMES = PublicFiles("frame", "frames", Path(__file__).with_name("shipped_frames"), PublicFrame.from_bytes)
