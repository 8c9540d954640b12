"""A rival of the product's forms that is only measured: the product has no use for it."""

from __future__ import annotations

import copy

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.nn.utils import parametrize

from casam_core.config.named_parts import LowRankSpec
from casam_core.model.backbones import Backbone
from casam_core.model.forms import build_layer
from casam_core.model.forms.base import AlignmentLayer
from casam_core.seeding import initialisers_from

SLOWER = 0.1
"""The update of the decoder's weights is scaled, so that Adam moves them at a tenth of the learning rate."""


class RankOne(nn.Module):
    """W + SLOWER * b a; a is random and b zero, so it starts as W."""

    def __init__(self, weight_OI: Tensor) -> None:
        super().__init__()
        out, inner = weight_OI.shape
        self.down_I = nn.Parameter(torch.randn(inner) / inner**0.5)
        self.up_O = nn.Parameter(torch.zeros(out))

    def forward(self, weight_OI: Tensor) -> Tensor:
        return weight_OI + SLOWER * torch.outer(self.up_O, self.down_I)


class DecoderLoraLayer(AlignmentLayer):
    """low_rank 8, and updates of rank 1 of every projection of the mask decoder's attention."""

    def __init__(self, backbone: Backbone, seed: int) -> None:
        super().__init__()
        self.mixing = build_layer(LowRankSpec(), backbone.geometry.channels, seed)
        decoder, updates = copy.deepcopy(backbone.mask_decoder), []
        with initialisers_from(seed):
            for part in decoder.modules():
                if isinstance(part, Attention):
                    for projection in (part.q_proj, part.k_proj, part.v_proj, part.out_proj):
                        updates.append(RankOne(projection.weight))
                        parametrize.register_parametrization(projection, "weight", updates[-1])
        self.updates = nn.ModuleList(updates)
        # A plain attribute, not a submodule: the frozen weights are not weights of this layer.
        object.__setattr__(self, "decoder", decoder.eval())

    def own_decoder(self) -> MaskDecoder:
        decoder: MaskDecoder = self.__dict__["decoder"]
        return decoder

    def forward(self, z_BCHW: Tensor) -> Tensor:
        aligned_BCHW: Tensor = self.mixing(z_BCHW)
        return aligned_BCHW
