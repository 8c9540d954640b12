"""Score many states in one pass, for a bank of hundreds of entries.

For a router in a public frame, the states are one small array, and the scores have the same bits as one by
one. For a Gaussian router, to score entries one by one takes ten small operations per entry; here it is one
matrix product for all, limited only by memory speed. The product is in float32, and its last bits depend on
the number of entries. So it only preselects: it also gives an error bound, and the router itself scores all
entries that may have the lowest score. The nearest entry and its score are therefore bitwise the same as
without this module (docs/performance.md).

With x = f - mean, D the diagonal, V the directions and L L^T = I + V D^-1 V^T (Cholesky):

    x^T Sigma^-1 x = x^T D^-1 x - |W x|^2,   W_KF = L^-1 V D^-1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casam_core.routing.routers.base import Arrays, Router
from casam_core.routing.routers.gaussian import GaussianRouter
from casam_core.routing.routers.public_frame import PublicFrameRouter, log_distances

SINGLE, SLACK = 2.0**-24, 1e-9
"""Unit roundoff of float32, and a generous bound of the relative error of float64 in a score's terms."""


class Stack(Protocol):
    """Many states of one router."""

    def contenders(self, f_F: Tensor) -> list[int]:
        """Indices of all states that may have the lowest score, and of those with a score of NaN."""


def stack_of(router: Router, states: Sequence[Arrays]) -> Stack | None:
    """The states together; None for a router whose entries are scored one by one."""
    if isinstance(router, PublicFrameRouter):
        return PublicFrameStack(router, states)
    return GaussianStack(states) if isinstance(router, GaussianRouter) else None


class PublicFrameStack:
    """T states of one public frame; immutable."""

    def __init__(self, router: PublicFrameRouter, states: Sequence[Arrays]) -> None:
        self.frame = router.frame
        self.mean_TK = np.stack([np.asarray(state["mean_K"], np.float64) for state in states])
        self.noise_T = np.concatenate([np.asarray(state["noise"], np.float64) for state in states])

    def contenders(self, f_F: Tensor) -> list[int]:
        u_K = self.frame.place(f_F.double().numpy())
        score_T = log_distances(u_K, self.mean_TK, self.noise_T, self.frame.scatter_K)
        return [int(t) for t in np.flatnonzero(~(score_T > np.fmin.reduce(score_T)))]


class GaussianStack:
    """T states of F features and at most K directions each; immutable."""

    def __init__(self, states: Sequence[Arrays]) -> None:
        means_TF = torch.stack([torch.from_numpy(np.asarray(state["mean_F"])).double() for state in states])
        # Features are large compared with their differences: the common centre is subtracted in float64.
        self.centre_F = means_TF.nanmean(0)
        diagonal_TF = torch.stack(
            [torch.from_numpy(np.asarray(state["diagonal_F"])).double() for state in states]
        )
        tasks, features = means_TF.shape
        self.directions = max(len(state["directions_KF"]) for state in states)
        product_FTK = torch.zeros(features, tasks, self.directions)
        self.offset_TK = torch.zeros(tasks, self.directions, dtype=torch.float64)
        self.constant_T = diagonal_TF.log().sum(1)
        self.norm_T = torch.zeros(tasks, dtype=torch.float64)
        shifted_TF = means_TF - self.centre_F
        for t, state in enumerate(states):
            directions_KF = torch.from_numpy(np.asarray(state["directions_KF"])).double()
            kept = len(directions_KF)
            if not kept:
                continue
            scaled_KF = directions_KF / diagonal_TF[t]
            lower_KK, _ = torch.linalg.cholesky_ex(torch.eye(kept).double() + scaled_KF @ directions_KF.T)
            whitened_KF = torch.linalg.solve_triangular(lower_KK, scaled_KF, upper=False)
            product_FTK[:, t, :kept] = whitened_KF.T.float()
            self.offset_TK[t, :kept] = whitened_KF @ shifted_TF[t]
            self.constant_T[t] += 2 * lower_KK.diagonal().log().sum()
            self.norm_T[t] = torch.linalg.matrix_norm(whitened_KF)
        self.product_FX = product_FTK.flatten(1)
        self.inverse_FT = (1 / diagonal_TF).T.contiguous()
        self.linear_FT = (shifted_TF / diagonal_TF).T.contiguous()
        self.square_T = (shifted_TF.square() / diagonal_TF).sum(1)

    def score(self, f_F: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(score_T, error_T): error_T bounds the difference from the router's own scores.

        A score is NaN if the state is invalid.
        """
        x_F = f_F.double() - self.centre_F
        width = len(x_F)
        square_T = x_F.square() @ self.inverse_FT
        distance_T = square_T - 2 * (x_F @ self.linear_FT) + self.square_T
        projected_TK = (x_F.float() @ self.product_FX).view(self.offset_TK.shape).double() - self.offset_TK
        projected_T = projected_TK.square().sum(1)
        # A sum of F products in float32, its terms rounded before: |error| <= (F + 2) u |W| |x|.
        off_T = (width + 2) * SINGLE * self.norm_T * torch.linalg.vector_norm(x_F)
        error_T = 2 * projected_T.sqrt() * off_T + off_T.square()
        error_T += SLACK * (square_T + self.square_T + self.constant_T.abs())
        score_T = (distance_T - projected_T + self.constant_T) / width
        return score_T.numpy(), (error_T / width).numpy()

    def contenders(self, f_F: Tensor) -> list[int]:
        """Indices of all states that may have the lowest score, and of those with a score of NaN."""
        score_T, error_T = self.score(f_F)
        highest_T = score_T + error_T
        comparable = highest_T[~np.isnan(highest_T)]
        if not len(comparable):
            return list(range(len(score_T)))
        return [int(t) for t in np.flatnonzero(~(score_T - error_T > comparable.min()))]
