"""Nearest-mean router: a task is the mean of its features; a score is the mean squared distance to it.

It is the simplest router, as a baseline for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from torch import Tensor

from casam_core.config.named_parts import RouterSpec
from casam_core.protocol.limits import ArraySpec
from casam_core.routing.routers.base import Arrays, Router, RouterSchema, added, doubles


class NearestMeanRouter:
    """Score = ||f - mean||^2 / F. Statistics are sums, so those of institutions can be added."""

    additive: ClassVar[bool] = True

    def __init__(self, spec: RouterSpec) -> None:
        pass

    def sufficient_statistics(self, f_NF: Tensor, seed: int) -> Arrays:
        return {"count": np.array([float(len(f_NF))]), "sum_F": f_NF.double().sum(0).numpy()}

    def merge(self, statistics: Sequence[Arrays]) -> Arrays:
        return added(statistics)

    def fit(self, statistics: Arrays) -> Arrays:
        return {"mean_F": (statistics["sum_F"] / statistics["count"][0]).astype(np.float32)}

    def schema(self, width: int) -> RouterSchema:
        return RouterSchema(
            state={"mean_F": ArraySpec(np.float32, (width,))},
            statistics={"count": ArraySpec(np.float64, (1,)), "sum_F": ArraySpec(np.float64, (width,))},
        )

    def score(self, f_F: Tensor, state: Arrays) -> float:
        return float(np.square(f_F.double().numpy() - state["mean_F"]).mean())


def read_by_mean(router: Router, f_NF: Tensor, state: Arrays) -> tuple[Tensor, Tensor]:
    """ReadOut: the state reveals only the mean."""
    mean_F = doubles(state, "mean_F")
    return mean_F, mean_F.expand_as(f_NF)
