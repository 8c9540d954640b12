"""Form `decoder`, for comparison: it fine-tunes SAM's mask decoder; embeddings are unchanged."""

from __future__ import annotations

import copy

from segment_anything.modeling import MaskDecoder
from torch import Tensor

from casam_core.model.backbones import Backbone
from casam_core.model.forms.base import AlignmentLayer


class DecoderLayer(AlignmentLayer):
    """A copy of the backbone's mask decoder; before training it equals frozen SAM."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.mask_decoder = copy.deepcopy(backbone.mask_decoder).requires_grad_(True)

    def decoder(self, frozen: MaskDecoder) -> MaskDecoder:
        return self.mask_decoder

    def forward(self, z_BCHW: Tensor) -> Tensor:
        return z_BCHW
