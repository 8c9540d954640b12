"""What every learned part has in common, whatever it changes."""

from __future__ import annotations

from typing import ClassVar

from segment_anything.modeling import MaskDecoder
from torch import nn


class AlignmentLayer(nn.Module):
    """Maps z_BCHW to z_BCHW between SAM's frozen encoder and decoder; its parameters are what is learned.

    Two forms for comparison change SAM itself and say so here: one sees the preprocessed pixels x_B3SS
    in place of the embedding (`sees_pixels`), the other brings its own mask decoder.
    """

    sees_pixels: ClassVar[bool] = False

    def own_decoder(self) -> MaskDecoder | None:
        """The mask decoder to use in place of the backbone's; None for the backbone's."""
        return None
