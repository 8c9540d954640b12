"""The base class of all forms of the Alignment Layer."""

from __future__ import annotations

from typing import ClassVar

from segment_anything.modeling import MaskDecoder
from torch import nn

from casam_core.model.forms.finder import Finder


class AlignmentLayer(nn.Module):
    """Maps z_BCHW to z_BCHW between SAM's frozen encoder and decoder; only its parameters are trained.

    Two forms for comparison change SAM itself: for one, the input is the preprocessed pixels x_B3SS
    (`sees_pixels`); the other has its own mask decoder (`own_decoder`).
    """

    sees_pixels: ClassVar[bool] = False

    finder: Finder | None
    """Beside the layer, and trained in the same steps (`alignment.finder`)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_module("finder", None)

    def own_decoder(self) -> MaskDecoder | None:
        """The mask decoder to use instead of the backbone's; None for the backbone's."""
        return None
