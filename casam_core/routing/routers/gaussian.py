"""Gaussian router: a task is a mean and a covariance; a score is a negative log-likelihood.

The statistics are sums (n, sum f, sum f f^T), so those of institutions can be added exactly. The state stores
the covariance as a diagonal plus a few directions, so that it is small and a score costs O(K F):

    Sigma = (1 - s) S + s diag(S),   S the task's own covariance, s the shrinkage
    stored: mean_F, diagonal_F, directions_KF  with  Sigma ~ diag(diagonal) + directions^T directions

The state has the K leading directions of S. The diagonal contains the rest, so every feature keeps its
variance. Score = (Mahalanobis distance^2 + log det Sigma) / F.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from casam_core.config.named_parts import GaussianSpec
from casam_core.protocol.limits import ArraySpec
from casam_core.routing.routers.base import Arrays, Router, RouterSchema, added, doubles

RELATIVE_FLOOR = 1e-4
"""Smallest variance, as a share of the mean variance, so that a constant feature cannot decide alone."""

LEAST_VARIANCE = 1e-30
"""Smallest variance of a feature in a state from another institution."""


class GaussianRouter:
    """See the docstring of the module."""

    additive: ClassVar[bool] = True

    def __init__(self, spec: GaussianSpec) -> None:
        self.shrinkage = spec.shrinkage
        self.directions = spec.directions

    def sufficient_statistics(self, f_NF: Tensor, seed: int) -> Arrays:
        f = f_NF.double()
        return {
            "count": np.array([float(len(f))]),
            "sum_F": f.sum(0).numpy(),
            "outer_FF": (f.T @ f).numpy(),
        }

    def merge(self, statistics: Sequence[Arrays]) -> Arrays:
        return added(statistics)

    def fit(self, statistics: Arrays) -> Arrays:
        count = float(statistics["count"][0])
        mean_F = torch.from_numpy(statistics["sum_F"]) / count
        covariance_FF = torch.from_numpy(statistics["outer_FF"]) / count - torch.outer(mean_F, mean_F)
        variance_F = covariance_FF.diagonal().clamp(min=0)
        variance_F = variance_F.clamp(min=RELATIVE_FLOOR * max(float(variance_F.mean()), 1e-12))
        kept = int(min(self.directions, max(count - 1, 0), len(mean_F)))
        values, vectors = torch.linalg.eigh((1 - self.shrinkage) * covariance_FF)
        leading_K = values.flip(0)[:kept].clamp(min=0).sqrt()
        directions_KF = leading_K[:, None] * vectors.flip(1)[:, :kept].T
        diagonal_F = torch.maximum(variance_F - directions_KF.square().sum(0), RELATIVE_FLOOR * variance_F)
        return {
            "mean_F": mean_F.float().numpy(),
            "diagonal_F": diagonal_F.float().numpy(),
            "directions_KF": directions_KF.float().contiguous().numpy(),
        }

    def schema(self, width: int) -> RouterSchema:
        # A router of few images has fewer directions. A variance of zero would make scores infinite.
        directions = ArraySpec(np.float32, (min(self.directions, width), width), free=(0,))
        return RouterSchema(
            state={
                "mean_F": ArraySpec(np.float32, (width,)),
                "diagonal_F": ArraySpec(np.float32, (width,), least=LEAST_VARIANCE),
                "directions_KF": directions,
            },
            statistics={
                "count": ArraySpec(np.float64, (1,)),
                "sum_F": ArraySpec(np.float64, (width,)),
                "outer_FF": ArraySpec(np.float64, (width, width)),
            },
        )

    def score(self, f_F: Tensor, state: Arrays) -> float:
        difference_F = f_F.double() - doubles(state, "mean_F")
        return gaussian_score(difference_F, doubles(state, "diagonal_F"), doubles(state, "directions_KF"))


def gaussian_score(difference_F: Tensor, diagonal_F: Tensor, directions_KF: Tensor) -> float:
    """(d^T Sigma^-1 d + log det Sigma) / F by the Woodbury identity and the determinant lemma.

    Sigma = diag(diagonal_F) + directions_KF^T directions_KF; all float64.
    """
    scaled_F = difference_F / diagonal_F
    distance = difference_F @ scaled_F
    log_determinant = diagonal_F.log().sum()
    if len(directions_KF):
        capacity_KK = torch.eye(len(directions_KF)).double() + (directions_KF / diagonal_F) @ directions_KF.T
        lower_KK, failed = torch.linalg.cholesky_ex(capacity_KK)
        if failed:  # no images can produce such a state; routing ignores a score of NaN
            return float("nan")
        projected_K1 = torch.linalg.solve_triangular(
            lower_KK, (directions_KF @ scaled_F)[:, None], upper=False
        )
        distance = distance - projected_K1.square().sum()
        log_determinant = log_determinant + 2 * lower_KK.diagonal().log().sum()
    return float((distance + log_determinant) / len(difference_F))


def read_by_directions(router: Router, f_NF: Tensor, state: Arrays) -> tuple[Tensor, Tensor]:
    """ReadOut: the projection onto the released directions around the released mean."""
    mean_F, directions_KF = doubles(state, "mean_F"), doubles(state, "directions_KF")
    # A direction is stored times its standard deviation; very short ones are only rounding.
    length_K = torch.linalg.vector_norm(directions_KF, dim=1)
    kept_KF = directions_KF[length_K > 1e-6 * length_K.max()] if len(length_K) else directions_KF
    axes_FK, _ = torch.linalg.qr(kept_KF.T)
    return mean_F, mean_F + (f_NF - mean_F) @ axes_FK @ axes_FK.T
