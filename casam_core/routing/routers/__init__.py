"""Routers recognise the task of a new image from frozen features. A kind of router is one line of ROUTERS."""

from __future__ import annotations

from casam_core.config.scenario import RouterSpec
from casam_core.errors import ScenarioError
from casam_core.routing.routers import gaussian, nearest_mean, private_gaussian, private_vae, vae
from casam_core.routing.routers.base import Arrays, PrivateRouter, Router, RouterEntry

ROUTERS: dict[str, RouterEntry] = {
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


def build_router(spec: RouterSpec) -> Router:
    """The router a scenario names. Raises ScenarioError listing the known ones."""
    if spec.kind not in ROUTERS:
        raise ScenarioError(f"router.kind: expected one of {', '.join(ROUTERS)}, found {spec.kind!r}")
    return ROUTERS[spec.kind].build(spec)


__all__ = ["ROUTERS", "Arrays", "PrivateRouter", "Router", "RouterEntry", "build_router"]
