"""Form `low_rank_decoder`: `low_rank`, and updates of rank 1 in the attention of SAM's mask decoder."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.transformer import Attention, TwoWayTransformer
from torch import Tensor, nn

from casam_core.model.forms.affine import LowRankLayer

Module = TypeVar("Module", bound=nn.Module)


class LowRankDecoderLayer(LowRankLayer):
    """z + B A z + b in front of a decoder with W + u v in its attention (LoRA, Hu et al. 2021, of rank 1).

    At first every v_1D is random at a fixed scale and every u_E1 is zero, so it starts as frozen SAM. The
    decoder itself is no part of the layer: at C = 256 and rank 8 there are 16,128 parameters, with the names
    of their arrays 77 KB per reply and an entry of 40 KB. Every Segment Anything has the same shapes.
    """

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__(channels, rank)
        down, up = {}, {}
        for name, (outputs, inputs) in attention_shapes(channels).items():
            down[name] = nn.Parameter(torch.randn(1, inputs) / inputs**0.5)
            up[name] = nn.Parameter(torch.zeros(outputs, 1))
        self.decoder_down, self.decoder_up = nn.ParameterDict(down), nn.ParameterDict(up)

    def decoder(self, frozen: MaskDecoder) -> MaskDecoder:
        changed = {
            name: torch.addmm(projection.weight, self.decoder_up[name], self.decoder_down[name])
            for name, projection in attention_projections(frozen.transformer)
        }
        return with_weights(frozen, {f"transformer/{name}": weight for name, weight in changed.items()})


def attention_projections(transformer: TwoWayTransformer) -> Iterator[tuple[str, nn.Linear]]:
    """(`layers/0/self_attn/q_proj`, projection) of every attention of SAM's two-way transformer."""
    for name, attention in transformer.named_modules():
        if isinstance(attention, Attention):
            for part, projection in attention.named_children():
                assert isinstance(projection, nn.Linear)  # queries, keys, values, output
                yield f"{name}.{part}".replace(".", "/"), projection


def attention_shapes(channels: int) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of these projections by name; heads and the MLP's width do not change them."""
    with torch.device("meta"):
        shaped = TwoWayTransformer(depth=2, embedding_dim=channels, num_heads=1, mlp_dim=1)
    return {name: (p.out_features, p.in_features) for name, p in attention_projections(shaped)}


def with_weights(module: Module, weights: Mapping[str, Tensor], prefix: str = "") -> Module:
    """A module that shares all of `module` but some weights. weights: by the name of their module; plain
    tensors, so that gradients flow into what they were made of. prefix: of these names inside `module`."""
    own = copy.copy(module)
    own._modules = {
        name: child if child is None else with_weights(child, weights, f"{prefix}{name}/")
        for name, child in module._modules.items()
    }
    if (weight := weights.get(prefix.removesuffix("/"))) is not None:
        own._parameters = {name: value for name, value in module._parameters.items() if name != "weight"}
        own.weight = weight
    return own
