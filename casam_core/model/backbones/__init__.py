"""Frozen Segment Anything backbones behind one interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from casam_core.config.named_parts import BACKBONES, BackboneSpec
from casam_core.model.backbones.base import Backbone, Geometry
from casam_core.model.backbones.lite_medsam import SHA256 as LITE_MEDSAM_SHA256
from casam_core.model.backbones.lite_medsam import load_lite_medsam
from casam_core.model.backbones.sam import OFFICIAL_SHA256, load_sam
from casam_core.model.backbones.tiny import GEOMETRY as TINY_GEOMETRY
from casam_core.model.backbones.tiny import load_tiny
from casam_core.model.compute import Compute

SAM_CHANNELS = 256
"""Channels of an embedding of every published SAM and of LiteMedSAM."""


@dataclass(frozen=True)
class BackboneEntry:
    """One backbone: a line of ENTRIES, and its name in casam_core/config/named_parts.py.

    load: (the scenario's section, Compute) -> backbone; it raises CheckpointError.
    channels: of an embedding; the server needs it and has no weights.
    section: its keys in a scenario.
    """

    load: Callable[[BackboneSpec, Compute], Backbone]
    channels: int = SAM_CHANNELS
    section: type[BackboneSpec] = BackboneSpec


ENTRIES: dict[str, BackboneEntry] = {
    "tiny": BackboneEntry(load_tiny, TINY_GEOMETRY.channels),
    "lite_medsam": BackboneEntry(load_lite_medsam),
    "vit_b": BackboneEntry(load_sam),
    "vit_l": BackboneEntry(load_sam),
    "vit_h": BackboneEntry(load_sam),
}


@lru_cache(maxsize=1)
def load_backbone(spec: BackboneSpec, compute: Compute) -> Backbone:
    """The backbone of a scenario, loaded once per process. Raises CheckpointError."""
    return BACKBONES[spec.name].load(spec, compute)


def channels_of(name: str) -> int:
    """Channels of an embedding; this needs no weights."""
    return BACKBONES[name].channels


def released_digests() -> dict[str, str]:
    """SHA-256 by name, for weights that are the same at every site; a bank names its backbone by it."""
    tiny = load_tiny(BackboneSpec(name="tiny"), Compute(device="cpu", threads=1, precision="float32"))
    return {"lite_medsam": LITE_MEDSAM_SHA256, **OFFICIAL_SHA256, "tiny": tiny.digest}


__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneEntry",
    "Geometry",
    "channels_of",
    "load_backbone",
    "released_digests",
]
