"""A Gaussian router with differential privacy: one noisy, clipped mean in the frame of public images.

Only a few numbers depend on private images. In a public frame (mean mu, scale s, K leading directions V of
phantom images), each unit w = (f - mu) / s becomes

    u = clip_C(V^T w),     |u|^2 / C,     min(|w - V V^T w|, D)^2 C / D^2,     together of norm <= sqrt(3) C.

Their sum gets Gaussian noise once. It gives the task's mean inside the K directions and two numbers: the
spread of its images inside and outside these directions. Everything else (the shape of the covariance, the
mean outside the directions) is public. The result has the form of the sufficient statistics of a Gaussian
router, so it is merged, fitted and scored like any other. The threshold needs a separate release
(casam_core.privacy.private_scores).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from casam_core.config.scenario import PrivacySpec
from casam_core.privacy.accounting import Mechanism
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.private_sum import PrivateSum
from casam_core.privacy.units import Units, unit_mean
from casam_core.routing.routers.base import (
    Arrays,
    NoisyStatistics,
    PrivateRouter,
    PublicFeatures,
    Router,
    doubles,
)
from casam_core.seeding import Draws

DIRECTIONS = 32
CLIP_QUANTILE = 0.95
"""C is this quantile of the norms of public images; larger norms are clipped."""
OUTSIDE_ROOM = 1.5
"""D divided by the same quantile of public tasks, each in a frame that was made without it."""
NARROWEST = 0.1
"""The smallest spread, as a share of that of a phantom task; noise could otherwise make it negative."""


@dataclass(frozen=True)
class PublicStatistics:
    """Statistics of the features of public images, in units of `scale_F` around `mean_F`.

    directions_FK: orthonormal. inside_KK: covariance within a task, in these directions. outside_FF:
    covariance of all images, outside these directions. clip, reach: C and D.
    """

    mean_F: NDArray[np.float64]
    scale_F: NDArray[np.float64]
    directions_FK: NDArray[np.float64]
    inside_KK: NDArray[np.float64]
    outside_FF: NDArray[np.float64]
    clip: float
    reach: float


def public_statistics(tasks: Sequence[NDArray[np.float64]]) -> PublicStatistics:
    """The frame from the features f_NF of public tasks: at least two tasks of at least two images.

    Both covariances are shrunk by half towards diagonal ones. A few public images have no variance in most
    directions of the feature space; there, an image of another kind would be extremely unlikely.
    """
    mean_F, scale_F, V_FK = axes(tasks)
    whitened = [(f_NF - mean_F) / scale_F for f_NF in tasks]
    w_NF = np.concatenate(whitened)
    inside_KK = np.mean([np.cov((task_NF @ V_FK).T, bias=True) for task_NF in whitened], axis=0)
    rest_NF = w_NF - w_NF @ V_FK @ V_FK.T
    outside_FF = rest_NF.T @ rest_NF / len(rest_NF)
    free_FF = np.eye(len(mean_F)) - V_FK @ V_FK.T
    flat_FF = free_FF * np.trace(outside_FF) / np.trace(free_FF)
    rest_of_strangers = []
    for number, f_NF in enumerate(tasks):
        mean, scale, V = axes([*tasks[:number], *tasks[number + 1 :]])
        stranger_NF = (f_NF - mean) / scale
        rest_of_strangers += list(np.linalg.norm(stranger_NF - stranger_NF @ V @ V.T, axis=1))
    return PublicStatistics(
        mean_F,
        scale_F,
        V_FK,
        (inside_KK + np.diag(np.diag(inside_KK))) / 2,
        (outside_FF + flat_FF) / 2,
        clip=float(np.quantile(np.linalg.norm(w_NF @ V_FK, axis=1), CLIP_QUANTILE)),
        reach=OUTSIDE_ROOM * float(np.quantile(rest_of_strangers, CLIP_QUANTILE)),
    )


def axes(
    tasks: Sequence[NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(mean_F, scale_F, leading directions_FK) of all images together."""
    everything_NF = np.concatenate(tasks)
    mean_F, scale_F = everything_NF.mean(0), np.maximum(everything_NF.std(0), 1e-9)
    w_NF = (everything_NF - mean_F) / scale_F
    values, vectors_FF = np.linalg.eigh(w_NF.T @ w_NF)
    kept = min(DIRECTIONS, len(mean_F) // 2)
    return mean_F, scale_F, vectors_FF[:, np.argsort(values)[::-1][:kept]]


def describe_privately(
    f_NF: NDArray[np.float64],
    units: Units,
    frame: PublicStatistics,
    noise_multiplier: float,
    noise: NoiseSource,
) -> Arrays:
    """Noisy sufficient statistics {count, sum_F, outer_FF} of a Gaussian, at the cost of one mechanism.

    f_NF: features of the images; a group counts as the mean of its images. noise_multiplier: standard
    deviation of the noise, in units of what one unit can change.
    """
    clip, V_FK = frame.clip, frame.directions_FK
    total = PrivateSum(math.sqrt(3) * clip, noise_multiplier)
    rows = (bounded_row(unit_mean(f_NF, unit), frame) for unit in units)
    noisy = total.release(rows, V_FK.shape[1] + 2, noise) / units.count
    # The code below reads nothing private.
    mean_K, uncertainty = noisy[:-2], (noise_multiplier * total.norm / units.count) ** 2
    inside = noisy[-2] * clip - (np.square(mean_K).sum() - len(mean_K) * uncertainty)
    outside = noisy[-1] / clip * frame.reach**2
    covariance_FF = (
        V_FK @ (scaled(frame.inside_KK, inside) + uncertainty * np.eye(len(mean_K))) @ V_FK.T
        + scaled(frame.outside_FF, outside)
    ) * np.outer(frame.scale_F, frame.scale_F)
    mean_F = frame.mean_F + frame.scale_F * (V_FK @ mean_K)
    return {
        "count": np.array([float(units.images)]),
        "sum_F": units.images * mean_F,
        "outer_FF": units.images * (covariance_FF + np.outer(mean_F, mean_F)),
    }


def bounded_row(f_F: NDArray[np.float64], frame: PublicStatistics) -> NDArray[np.float64]:
    """The row that a unit adds to the sum: (u, |u|^2 / C, outside); its L2 norm is at most sqrt(3) C.

    It takes one unit at a time: in a product of matrices, other units could change its last bits.
    """
    clip, V_FK = frame.clip, frame.directions_FK
    w_F = (f_F - frame.mean_F) / frame.scale_F
    w_F = w_F if np.isfinite(w_F).all() else np.zeros_like(w_F)
    u_K = w_F @ V_FK
    rest = min(float(np.linalg.norm(w_F - V_FK @ u_K)) / frame.reach, 1.0)
    u_K = u_K * min(1.0, clip / max(float(np.linalg.norm(u_K)), 1e-12))
    return np.array([*u_K, np.square(u_K).sum() / clip, rest**2 * clip])


def scaled(shape: NDArray[np.float64], trace: float) -> NDArray[np.float64]:
    """A public covariance scaled to this trace, but not below NARROWEST of its own trace."""
    usual = float(np.trace(shape))
    return shape * (max(trace, NARROWEST * usual) / usual)


def noisy_gaussian(router: Router, privacy: PrivacySpec, public: PublicFeatures) -> NoisyStatistics:
    """See `PrivateRouter.prepare`."""
    frame = public_statistics(public())

    def statistics(
        f_NF: Tensor, units: Units, *, noise_multiplier: float, draws: Draws, noise: NoiseSource
    ) -> Arrays:
        return describe_privately(f_NF.double().numpy(), units, frame, noise_multiplier, noise)

    return statistics


PRIVATE = PrivateRouter(
    prepare=noisy_gaussian,
    mechanism=lambda privacy, noise_multiplier, units: Mechanism(noise_multiplier),
    lowest_score=lambda router, state: router.score(doubles(state, "mean_F"), state),
)
"""The mean itself has the lowest score."""
