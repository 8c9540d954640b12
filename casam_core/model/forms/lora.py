"""Form `lora`, for comparison: low-rank updates of the image encoder's attention (Hu et al. 2021), by peft.

Every training step and every prediction runs the whole encoder; the other forms use cached embeddings. With a
fast `compute.encoder` it is folded, too, so that a comparison at equal seconds is fair.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from casam_core.errors import ScenarioError
from casam_core.model.backbones import Backbone
from casam_core.model.backbones.fast_encoder import folded
from casam_core.model.forms.base import AlignmentLayer

TARGETS = ["qkv"]
"""The name of the attention's projection in segment-anything's ViT and in TinyViT."""


class LoraLayer(AlignmentLayer):
    """The image encoder with W + B A in its attention. A_RD is random and B zero: it starts as frozen SAM.

    Only A and B are parameters of this module; the other weights are shared with the backbone.
    """

    sees_pixels = True
    encoder: nn.Module

    def __init__(self, backbone: Backbone, rank: int) -> None:
        super().__init__()
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ScenarioError(
                "alignment.form: lora needs the package peft, found none; pip install 'casam[lora]'"
            ) from error
        shared = {id(weight): weight for weight in backbone.image_encoder.state_dict(keep_vars=True).values()}
        encoder = copy.deepcopy(backbone.image_encoder, memo=dict(shared))
        self.memory_format = torch.contiguous_format
        if backbone.compute.encoder != "plain":
            encoder, self.memory_format = folded(encoder), torch.channels_last
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS), encoder)
        # A plain attribute, not a submodule: frozen weights must not be saved, sent or set to training mode.
        object.__setattr__(self, "encoder", encoder.eval())
        self.updates = nn.ParameterDict(
            {
                name.replace(".", "/"): value.requires_grad_(True)
                for name, value in encoder.named_parameters()
                if "lora_" in name
            }
        )

    def forward(self, x_B3SS: Tensor) -> Tensor:
        z_BCHW: Tensor = self.encoder(x_B3SS.contiguous(memory_format=self.memory_format))
        return z_BCHW
