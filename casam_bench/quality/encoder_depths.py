"""Features of several depths of LiteMedSAM's encoder: moments of what each of its stages hands on.

Early stages see texture and contrast, late ones content; the product's router sees the last one only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from casam_bench.quality.phantom_features import Description
from casam_core.model.backbones import Backbone
from casam_core.routing.features import moments_pool

DEPTHS = ("stem", "stage 1", "stage 2", "stage 3", "stage 4", "embedding")
"""The patch embedding (64 channels), the four stages (128, 160, 320, 320), the neck (256)."""


def stages(encoder: nn.Module) -> list[nn.Module]:
    """Modules of a TinyViT encoder whose outputs are DEPTHS, first to last."""
    return [encoder.patch_embed, *encoder.layers, encoder.neck]  # type: ignore[list-item, misc]


@contextmanager
def listening(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """What the modules return while the context lasts, in the order they run."""
    heard: list[Tensor] = []
    handles = [module.register_forward_hook(lambda _, __, out: heard.append(out)) for module in modules]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def moments(out: Tensor) -> NDArray[np.float32]:
    """f_2C from a stage's B1 x N x C tokens or 1 x C x H' x W' map."""
    z_BCHW = out if out.ndim == 4 else out.transpose(1, 2)[..., None]
    pooled: NDArray[np.float32] = moments_pool(z_BCHW.float())[0].cpu().numpy()
    return pooled


def describe_depths(backbone: Backbone, image_HW3: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Moments at every depth, from one pass of the encoder; the embedding rounded as the store rounds it."""
    with listening(stages(backbone.image_encoder)) as heard, torch.no_grad():
        backbone.encode([image_HW3])
    heard[-1] = heard[-1].half()
    return dict(zip(DEPTHS, map(moments, heard), strict=True))


ENCODER_DEPTHS = Description("depths", DEPTHS, describe_depths)
