"""The default router: a task is one mean in a fixed public frame; a score is a log distance to it.

With u_K the place of an image in the frame (casam_core.routing.public_frames), of a length of at most 1:

    state:  mean_K = mean of u over the task's images,   noise = variance of the noise on each of its numbers
    score = 1/2 log( mean over K of (u - mean)^2 / (WIDER scatter) )

scatter_K is the public scatter inside a task. So a state has no covariance of its own, and it cannot tell
single images apart. One image changes the sum of u by at most 1: with differential privacy, this sum gets
noise once, and `noise` says how much. What noise adds to a distance is known in expectation and is taken off
again (`log_distances`). A score is relative to the public scatter. Therefore one constant threshold fits all
tasks, with noise and without, and no threshold is released.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casam_core.config.named_parts import PublicFrameSpec, RouterSpec
from casam_core.config.scenario import PrivacySpec
from casam_core.errors import ScenarioError
from casam_core.privacy.accounting import Mechanism
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.private_sum import PrivateSum
from casam_core.privacy.units import Units, unit_mean
from casam_core.protocol.limits import ArraySpec
from casam_core.routing.public_frames import FRAMES, PublicFrame, axes_of
from casam_core.routing.routers.base import (
    Arrays,
    NoisyStatistics,
    PrivateRouter,
    PublicFeatures,
    RouterSchema,
    added,
    doubles,
)
from casam_core.seeding import Draws

WIDER = 3.0
"""Real images of a task scatter more than phantoms of one modality."""
MOST_NOISE = 1.0
"""The largest `noise` that a score uses. A unit vector has mean squares of 1 / K, so a mean with more noise
says nothing; without this limit, a state that claims much noise would be near to every image."""
CAUTION = 0.5
"""How many standard deviations of its noise are added to a noisy distance. 0.5 keeps the share of unknown
images that are found what it is without noise, on phantoms whose modality the frame has not seen."""
LOWEST = 1e-12
"""The least distance: the logarithm of zero is infinite."""


NO_FRAME = (
    "router.frame: expected the SHA-256 of a frame, because casam ships none for this backbone; `casam run` "
    "makes it, `casam scenarios frame FILE` makes it for a deployment, or choose another router.kind"
)


def frame_named(router: RouterSpec) -> str:
    """The digest of the router's public frame; "" for a router without one.

    Raises ScenarioError if the frame is not known yet.
    """
    if not isinstance(router, PublicFrameSpec):
        return ""
    if router.frame is None:
        raise ScenarioError(NO_FRAME)
    return router.frame


class PublicFrameRouter:
    """See the docstring of the module. frames: a folder of frames, besides those that casam ships."""

    additive: ClassVar[bool] = True

    def __init__(self, spec: PublicFrameSpec, frames: Path | None = None) -> None:
        self.spec, self.frames = spec, frames

    @cached_property
    def frame(self) -> PublicFrame:
        """The frame. Raises ScenarioError without its digest, and BankError if it is not here."""
        return FRAMES.get(frame_named(self.spec), self.frames)

    def sufficient_statistics(self, f_NF: Tensor, seed: int) -> Arrays:
        sum_K = np.sum([self.frame.place(f_F) for f_F in f_NF.double().numpy()], axis=0)
        return {"count": np.array([float(len(f_NF))]), "sum_K": sum_K, "noise": np.zeros(1)}

    def merge(self, statistics: Sequence[Arrays]) -> Arrays:
        return added(statistics)

    def fit(self, statistics: Arrays) -> Arrays:
        count = statistics["count"][0]
        return {
            "mean_K": (statistics["sum_K"] / count).astype(np.float32),
            "noise": np.clip(statistics["noise"] / count**2, 0, MOST_NOISE).astype(np.float32),
        }

    def schema(self, width: int) -> RouterSchema:
        axes = axes_of(width)
        return RouterSchema(
            state={
                "mean_K": ArraySpec(np.float32, (axes,)),
                "noise": ArraySpec(np.float32, (1,), least=0.0),
            },
            statistics={
                "count": ArraySpec(np.float64, (1,)),
                "sum_K": ArraySpec(np.float64, (axes,)),
                "noise": ArraySpec(np.float64, (1,), least=0.0),
            },
        )

    def score(self, f_F: Tensor, state: Arrays) -> float:
        u_K = self.frame.place(f_F.double().numpy())
        mean_TK = np.asarray(state["mean_K"], np.float64)[None]
        noise_T = np.asarray(state["noise"], np.float64)
        return float(log_distances(u_K, mean_TK, noise_T, self.frame.scatter_K)[0])


def log_distances(
    u_K: NDArray[np.float64],
    mean_TK: NDArray[np.float64],
    noise_T: NDArray[np.float64],
    scatter_K: NDArray[np.float32],
) -> NDArray[np.float64]:
    """score_T of an image under T states. Every score has the same bits as if T were 1.

    With w = 1 / (WIDER scatter + noise), the distance d = mean over K of w (u - mean)^2 of an image at
    distance e without noise is expected at

        E d = e * kept + added,   kept = mean of w WIDER scatter,   added = mean of w noise,

    and for an image at e = 1 it spreads by `spread`. The score is the logarithm of the e that solves this,
    CAUTION spreads further off. A smooth bound, of the width of the noise, keeps e above zero, so no state
    comes nearer to an image than its noise allows. Without noise e is d, bit for bit.
    """
    noise_T1 = np.clip(noise_T, 0, MOST_NOISE).astype(np.float64)[:, None]
    own_K = WIDER * scatter_K.astype(np.float64)
    weight_TK = 1 / (own_K + noise_T1)
    distance_T = (np.square(u_K - mean_TK) / (own_K + noise_T1)).mean(1)
    kept_T, added_T = (weight_TK * own_K).mean(1), (weight_TK * noise_T1).mean(1)
    variance_T = (np.square(weight_TK) * (2 * noise_T1**2 + 4 * noise_T1 * own_K)).mean(1) / len(own_K)
    spread_T = np.sqrt(variance_T) / kept_T
    debiased_T = (distance_T - added_T) / kept_T + CAUTION * spread_T
    positive_T = (debiased_T + np.hypot(debiased_T, spread_T)) / 2
    score_T: NDArray[np.float64] = 0.5 * np.log(np.where(noise_T1[:, 0] > 0, positive_T, distance_T) + LOWEST)
    return score_T


def noisy_mean(router: PublicFrameRouter, privacy: PrivacySpec, public: PublicFeatures) -> NoisyStatistics:
    """See `PrivateRouter.prepare`. It needs no public features: the frame contains what is public."""

    def statistics(
        f_NF: Tensor, units: Units, *, noise_multiplier: float, draws: Draws, noise: NoiseSource
    ) -> Arrays:
        # A group counts as the mean of its images.
        rows = (router.frame.place(unit_mean(f_NF.double().numpy(), unit)) for unit in units)
        total = PrivateSum(norm=1.0, noise_multiplier=noise_multiplier)
        mean_K = total.release(rows, len(router.frame.scatter_K), noise) / units.count
        return {
            "count": np.array([float(units.images)]),
            "sum_K": units.images * mean_K,
            "noise": np.array([(units.images * noise_multiplier / units.count) ** 2]),
        }

    return statistics


PRIVATE = PrivateRouter(
    prepare=noisy_mean,
    mechanism=lambda privacy, noise_multiplier, units: Mechanism(noise_multiplier),
    lowest_score=lambda router, state: 0.5 * math.log(LOWEST),
)


def read_by_place(router: PublicFrameRouter, f_NF: Tensor, state: Arrays) -> tuple[Tensor, Tensor]:
    """ReadOut: the state reveals only the mean: of all features at this place, the one nearest to the frame's
    own mean."""
    frame = router.frame
    back_KF = torch.from_numpy(np.linalg.pinv(frame.axes_FK.astype(np.float64)))
    mean_F = torch.from_numpy(frame.mean_F.astype(np.float64)) + doubles(state, "mean_K") @ back_KF
    return mean_F, mean_F.expand_as(f_NF)
