"""Describing a task with noise, where the institution's policy asks for it (docs/privacy.md).

A kind of router that can be private is one class and one line of PRIVATE_ROUTERS: how its noisy summary is
made and paid for, and what the best image imaginable would score. The threshold of every kind is made of two
noisy numbers of the task's own scores (casam_core.privacy.private_scores).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casam_core.privacy.accounting import Mechanism
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.private_router import describe_privately, public_frame, router_mechanism
from casam_core.privacy.private_scores import describe_scores, scores_like, scores_mechanism
from casam_core.privacy.private_vae import train_vae_privately, vae_mechanism
from casam_core.privacy.units import unit_means
from casam_core.protocol.messages import CalibrateReply, CalibrateRequest, RouterReply, RouterRequest
from casam_core.protocol.payload import Job, Payload
from casam_core.routing.routers import Arrays, Router
from casam_core.routing.threshold import choose_threshold, fold_scores, held_out_scores, score_histogram
from casam_core.seeding import derive_seed
from client.dp.paid_release import release_once, units_held
from client.dp.plan import learning_noise
from client.dp.public_features import public_features_of
from client.institution import Institution
from client.release.refusals import NoiseNotPossibleError

SYNTHETIC = 512
"""Drawn scores behind a threshold of a task that is held alone."""


def describe_privately_with_others(institution: Institution, request: RouterRequest) -> RouterReply:
    """Noisy summaries: the same one for all images and for every fold, as it holds no image out."""
    task = PrivateTask(institution, request.job)
    summary = private_router(institution).summary(task)
    return RouterReply(summary, task.images, folds=[summary] * institution.scenario.router.folds)


def describe_privately_alone(institution: Institution, request: RouterRequest) -> RouterReply:
    """The finished noisy router and its threshold."""
    task = PrivateTask(institution, request.job)
    router = private_router(institution)
    state = institution.router.finish(router.summary(task))
    spec = institution.scenario.router
    scores_N = stand_ins(router, task, [state] * spec.folds, SYNTHETIC)
    return RouterReply(state, task.images, threshold=choose_threshold(scores_N, spec))


def calibrate_privately(institution: Institution, request: CalibrateRequest) -> CalibrateReply:
    """Scores under the merged routers: as many as there are images, for their weight."""
    task = PrivateTask(institution, request.job)
    scores_N = stand_ins(private_router(institution), task, request.folds, task.images)
    return CalibrateReply(score_histogram(scores_N))


class PrivateTask:
    """One task's training images at an institution that describes them with noise."""

    def __init__(self, institution: Institution, job: Job) -> None:
        self.institution, self.job = institution, job
        self.scenario = institution.scenario
        self.data, self.samples = institution.encoded(job.task, "train")
        self.units = units_held(institution, job.task, "train")
        self.noise_multiplier = learning_noise(self.scenario, institution.site.policy)
        # For drawing: what is drawn from is public by then.
        self.seed = derive_seed(self.scenario.seed, institution.name, job.stage, "drawn", job.task)

    @property
    def images(self) -> int:
        """How many there are, which is public."""
        return len(self.samples)

    def features(self) -> Tensor:
        """f_NF of the private images."""
        return self.data.features(self.samples, self.institution.backbone, self.scenario.router.features)

    def public(self) -> Sequence[NDArray[np.float64]]:
        """f_NF of public images, by modality."""
        kind, folder = self.scenario.router.features, self.institution.site.public
        return public_features_of(self.institution.backbone, kind, folder)

    def release(self, kind: str, mechanism: Mechanism, compute: Callable[[NoiseSource], Arrays]) -> Arrays:
        """Arrays that are paid for once per run and task."""
        request = Payload({"task": self.job.task, "stage": self.job.stage})
        released = release_once(
            self.institution,
            self.job,
            kind,
            request,
            split="train",
            mechanisms={self.job.task: mechanism},
            units={self.job.task: len(self.units)},
            compute=lambda noise: Payload({}, {"summary": compute(noise)}),
        )
        return released.arrays["summary"]


class PrivateRouter(Protocol):
    """How one kind of router is described privately."""

    def summary(self, task: PrivateTask) -> Arrays:
        """A noisy summary as the router's own, paid for."""

    def floor(self, router: Router, state: Arrays) -> float:
        """No image scores less under this state."""


def stand_ins(
    private: PrivateRouter, task: PrivateTask, states: Sequence[Arrays], count: int
) -> NDArray[np.float64]:
    """`count` of them, for the scores of the task's images under the states of the folds.

    What is paid for is how they score under the institution's own noisy router, above the floor of that one:
    once per task, and free of what other holders have, who may leave. Under merged states the same distances
    are taken, above the floor of these.
    """
    noise_multiplier = task.scenario.privacy.router_ratio * task.noise_multiplier
    router, folds = task.institution.router, task.scenario.router.folds
    own = router.finish(private.summary(task))
    floor = private.floor(router, own)

    def compute(noise: NoiseSource) -> Arrays:
        own_N = fold_scores(router, task.features(), [own] * folds, folds)
        public_N = held_out_scores(router, as_tensor(task.public()), [own] * folds, folds)
        return {"scores": describe_scores(own_N, task.units, public_N, floor, noise_multiplier, noise)}

    described = task.release("scores", scores_mechanism(noise_multiplier), compute)
    lowest = min(private.floor(router, state) for state in states)
    return scores_like(np.asarray(described["scores"]), lowest, count, task.seed)


class PrivateGaussian:
    """One noisy sum (casam_core.privacy.private_router)."""

    def summary(self, task: PrivateTask) -> Arrays:
        noise_multiplier = task.scenario.privacy.router_ratio * task.noise_multiplier

        def compute(noise: NoiseSource) -> Arrays:
            f_UF = unit_means(task.features().double().numpy(), task.units)
            return describe_privately(f_UF, task.images, public_frame(task.public()), noise_multiplier, noise)

        return task.release("router", router_mechanism(noise_multiplier), compute)

    def floor(self, router: Router, state: Arrays) -> float:
        return router.score(torch.from_numpy(state["mean_F"]), state)


class PrivateVae:
    """DP-SGD (casam_core.privacy.private_vae)."""

    def summary(self, task: PrivateTask) -> Arrays:
        privacy = task.scenario.privacy

        def compute(noise: NoiseSource) -> Arrays:
            return train_vae_privately(
                task.features(),
                task.units,
                as_tensor(task.public()),
                task.scenario.router,
                privacy,
                noise_multiplier=task.noise_multiplier,
                seed=task.seed,
                noise=noise,
            )

        return task.release("router", vae_mechanism(privacy, task.noise_multiplier), compute)

    def floor(self, router: Router, state: Arrays) -> float:
        return 0.0


def as_tensor(tasks: Sequence[NDArray[np.float64]]) -> Tensor:
    """Features of several tasks as one f_NF."""
    return Tensor(np.concatenate(tasks))


PRIVATE_ROUTERS: dict[str, PrivateRouter] = {"gaussian": PrivateGaussian(), "vae": PrivateVae()}


def private_router(institution: Institution) -> PrivateRouter:
    """The scenario's kind of router. Raises NoiseNotPossibleError for one that cannot be private."""
    kind = institution.scenario.router.kind
    if kind not in PRIVATE_ROUTERS:
        raise NoiseNotPossibleError(f"router.kind {kind!r}: expected one of {', '.join(PRIVATE_ROUTERS)}")
    return PRIVATE_ROUTERS[kind]
