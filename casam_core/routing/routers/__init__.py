"""Routers recognise the task of a new image from frozen features."""

from __future__ import annotations

from collections.abc import Callable

from casam_core.config.scenario import RouterSpec
from casam_core.errors import ScenarioError
from casam_core.routing.routers.base import Arrays, Router
from casam_core.routing.routers.gaussian import GaussianRouter
from casam_core.routing.routers.nearest_mean import NearestMeanRouter
from casam_core.routing.routers.vae import VaeRouter

ROUTERS: dict[str, Callable[[RouterSpec], Router]] = {
    "gaussian": GaussianRouter,
    "nearest_mean": NearestMeanRouter,
    "vae": VaeRouter,
}


def build_router(spec: RouterSpec) -> Router:
    """The router a scenario names. Raises ScenarioError listing the known ones."""
    if spec.kind not in ROUTERS:
        raise ScenarioError(f"router.kind: expected one of {', '.join(ROUTERS)}, found {spec.kind!r}")
    return ROUTERS[spec.kind](spec)


__all__ = ["ROUTERS", "Arrays", "Router", "build_router"]
