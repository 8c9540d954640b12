"""Routers recognise the task of a new image from frozen features.

A kind of router is a class, a line of ENTRIES, and its name and keys in casam_core/config/named_parts.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from casam_core.config.named_parts import ROUTERS, GaussianSpec, PublicFrameSpec, RouterSpec, VaeSpec
from casam_core.config.section import known_keys
from casam_core.errors import ScenarioError
from casam_core.routing.routers import (
    gaussian,
    nearest_mean,
    private_gaussian,
    private_vae,
    public_frame,
    vae,
)
from casam_core.routing.routers.base import Arrays, PrivateRouter, Router, RouterEntry

ENTRIES: dict[str, RouterEntry] = {
    "public_frame": RouterEntry(
        build=public_frame.PublicFrameRouter,
        private=public_frame.PRIVATE,
        read_out=public_frame.read_by_place,
        framed=True,
    ),
    "gaussian": RouterEntry(
        build=gaussian.GaussianRouter,
        private=private_gaussian.PRIVATE,
        read_out=gaussian.read_by_directions,
    ),
    "nearest_mean": RouterEntry(
        build=nearest_mean.NearestMeanRouter,
        read_out=nearest_mean.read_by_mean,
    ),
    "vae": RouterEntry(
        build=vae.VaeRouter,
        private=private_vae.PRIVATE,
        read_out=vae.read_by_autoencoder,
    ),
}


def router_entry(kind: str) -> RouterEntry:
    """The kind of router of that name. Raises ScenarioError that lists the known names."""
    if kind not in ROUTERS:
        raise ScenarioError(f"router.kind: expected one of {', '.join(sorted(ROUTERS))}, found {kind!r}")
    return ROUTERS[kind]


def router_spec(kind: str, settings: Mapping[str, Any] | None = None) -> RouterSpec:
    """The section of a kind with the known keys of `settings`. Raises ScenarioError for an unknown kind."""
    return known_keys(router_entry(kind).section, {**(settings or {}), "kind": kind})


def build_router(spec: RouterSpec, frames: Path | None = None) -> Router:
    """The router of a scenario. Raises ScenarioError for an unknown kind.

    frames: a folder of public frames (casam_core.routing.public_frames), besides those that casam ships.
    """
    entry = router_entry(spec.kind)
    return entry.build(spec, frames) if entry.framed else entry.build(spec)


__all__ = [
    "ROUTERS",
    "Arrays",
    "GaussianSpec",
    "PrivateRouter",
    "PublicFrameSpec",
    "Router",
    "RouterEntry",
    "VaeSpec",
    "build_router",
    "router_entry",
    "router_spec",
]
