"""The router's features: the frozen embedding of an image, pooled over its cells.

z_BCHW: frozen embedding; f_BF: pooled feature. It is computed in float32 where the embedding is, one image
at a time, so that a feature does not depend on the other images of a batch. Embeddings from a store are in
the processor's memory, so runs compute their features on the processor whatever the device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from casam_core.errors import ScenarioError


def attention_pool(z_BCHW: Tensor) -> Tensor:
    """f_BC = sum_cells a * z with a = softmax over cells of ||z||_2 / C (CA-SAM, router features)."""
    channels = z_BCHW.shape[1]
    strength_BN = torch.linalg.vector_norm(z_BCHW, dim=1).flatten(1) / channels
    weight_BN = torch.softmax(strength_BN, dim=1)
    return torch.einsum("bn,bcn->bc", weight_BN, z_BCHW.flatten(2))


def moments_pool(z_BCHW: Tensor) -> Tensor:
    """f_BF with F = 2C: mean and (population) standard deviation of every channel over the cells."""
    cells_BCN = z_BCHW.flatten(2)
    return torch.cat([cells_BCN.mean(2), cells_BCN.std(2, correction=0)], dim=1)


FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "attention": attention_pool,
    "moments": moments_pool,
}


@cache
def width_of(kind: str, channels: int) -> int:
    """F, the number of values in a feature of embeddings with C channels. Raises ScenarioError."""
    return len(pool(torch.zeros(channels, 1, 1), kind))


def pool(z_CHW: Tensor, kind: str) -> Tensor:
    """f_F of one embedding, in the processor's memory. Raises ScenarioError for an unknown kind."""
    if kind not in FEATURES:
        raise ScenarioError(f"router.features: expected one of {', '.join(FEATURES)}, found {kind!r}")
    return FEATURES[kind](z_CHW[None].float())[0].cpu()
