"""The base class of all forms of the Alignment Layer."""

from __future__ import annotations

from typing import ClassVar

from segment_anything.modeling import MaskDecoder
from torch import nn


class AlignmentLayer(nn.Module):
    """Maps z_BCHW to z_BCHW between SAM's frozen encoder and decoder; only its parameters are trained.

    Two forms for comparison change SAM itself: for one, the input is the preprocessed pixels x_B3SS
    (`sees_pixels`); the other has its own mask decoder (`own_decoder`).
    """

    sees_pixels: ClassVar[bool] = False

    def own_decoder(self) -> MaskDecoder | None:
        """The mask decoder to use instead of the backbone's; None for the backbone's."""
        return None
