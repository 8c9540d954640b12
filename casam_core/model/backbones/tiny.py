"""A small SAM with random weights: it has the structure of the real model and runs in milliseconds.

It cannot segment. It is for tests, and to measure the cost of everything around the model.
"""

from __future__ import annotations

import hashlib
from functools import partial

from segment_anything.modeling import ImageEncoderViT
from torch import nn

from casam_core.config.named_parts import BackboneSpec
from casam_core.model.backbones.base import Backbone, Geometry
from casam_core.model.backbones.lite_medsam import build_sam_heads
from casam_core.model.backbones.sam import SamBackbone
from casam_core.model.compute import Compute
from casam_core.seeding import initialisers_from

GEOMETRY = Geometry(side=64, channels=32, cells=8)


def load_tiny(spec: BackboneSpec, compute: Compute) -> Backbone:
    """The tiny backbone. Its weights are seeded, so that they are the same everywhere."""
    with initialisers_from(0):
        image_encoder = ImageEncoderViT(
            img_size=GEOMETRY.side,
            patch_size=GEOMETRY.side // GEOMETRY.cells,
            embed_dim=32,
            depth=1,
            num_heads=2,
            mlp_ratio=2,
            out_chans=GEOMETRY.channels,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            window_size=0,
        )
        prompt_encoder, mask_decoder = build_sam_heads(GEOMETRY, mlp_dim=64, heads=2, mask_channels=4)
    digest = hashlib.sha256()
    for module in (image_encoder, prompt_encoder, mask_decoder):
        for key, value in module.state_dict().items():
            digest.update(key.encode() + value.numpy().tobytes())
    return SamBackbone(
        name="tiny",
        digest=digest.hexdigest(),
        geometry=GEOMETRY,
        image_encoder=image_encoder,
        prompt_encoder=prompt_encoder,
        mask_decoder=mask_decoder,
        compute=compute,
    )
