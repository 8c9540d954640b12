"""Frozen Segment Anything backbones behind one interface."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from casam_core.config.scenario import BackboneSpec
from casam_core.model.backbones.base import Backbone, Geometry
from casam_core.model.backbones.lite_medsam import SHA256 as LITE_MEDSAM_SHA256
from casam_core.model.backbones.lite_medsam import load_lite_medsam
from casam_core.model.backbones.sam import OFFICIAL_SHA256, load_sam
from casam_core.model.backbones.tiny import GEOMETRY as TINY_GEOMETRY
from casam_core.model.backbones.tiny import load_tiny
from casam_core.model.compute import Compute

BACKBONES: dict[str, Callable[[BackboneSpec, Compute], Backbone]] = {
    "tiny": load_tiny,
    "lite_medsam": load_lite_medsam,
    "vit_b": load_sam,
    "vit_l": load_sam,
    "vit_h": load_sam,
}

SAM_CHANNELS = 256
"""Of every published SAM, and of LiteMedSAM."""


@lru_cache(maxsize=1)
def load_backbone(spec: BackboneSpec, compute: Compute) -> Backbone:
    """The backbone of a scenario, loaded once per process. Raises CheckpointError."""
    return BACKBONES[spec.name](spec, compute)


def channels_of(name: str) -> int:
    """Channels of an embedding, known without the weights."""
    return TINY_GEOMETRY.channels if name == "tiny" else SAM_CHANNELS


def released_digests() -> dict[str, str]:
    """SHA-256 by name, where everyone has the same weights: what a bank calls its backbone."""
    tiny = load_tiny(BackboneSpec(name="tiny"), Compute(device="cpu", threads=1, precision="float32"))
    return {"lite_medsam": LITE_MEDSAM_SHA256, **OFFICIAL_SHA256, "tiny": tiny.digest}


__all__ = ["BACKBONES", "Backbone", "Geometry", "channels_of", "load_backbone", "released_digests"]
