"""The base class of all forms of the Alignment Layer."""

from __future__ import annotations

from typing import ClassVar

from segment_anything.modeling import MaskDecoder
from torch import nn

from casam_core.model.forms.finder import Finder


class AlignmentLayer(nn.Module):
    """Maps z_BCHW to z_BCHW between SAM's frozen encoder and decoder; only its parameters are trained.

    Two forms for comparison replace a part of SAM: for one, the input is the preprocessed pixels x_B3SS
    (`sees_pixels`); the other brings a whole mask decoder.
    """

    sees_pixels: ClassVar[bool] = False

    finder: Finder | None
    """Beside the layer, and trained in the same steps (`alignment.finder`)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_module("finder", None)

    def decoder(self, frozen: MaskDecoder) -> MaskDecoder:
        """The decoder of what the layer makes. frozen: SAM's own, which most forms use as it is."""
        return frozen
