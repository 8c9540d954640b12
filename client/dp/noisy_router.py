"""A task's private router, if the institution's policy asks for noise (docs/privacy.md).

A router's entry in ROUTERS declares how to compute its statistics with noise (`RouterEntry.private`). This
module pays for these statistics and, unless the scenario has one threshold for all tasks, for the two noisy
numbers behind a threshold (casam_core.privacy.private_scores).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from casam_core.config.data_spec import DataSpec
from casam_core.config.scenario import Scenario
from casam_core.model.backbones import Backbone
from casam_core.model.embeddings import EmbeddingStore
from casam_core.privacy.accounting import Mechanism
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.private_scores import describe_scores, scores_like, scores_mechanism
from casam_core.protocol.messages import CalibrateReply, CalibrateRequest, RouterReply, RouterRequest
from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.payload import Job, Payload
from casam_core.routing.features import pool
from casam_core.routing.routers import ROUTERS, Arrays, PrivateRouter
from casam_core.routing.threshold import choose_threshold, fold_scores, held_out_scores, score_histogram
from casam_core.seeding import derive_seed
from client.data.open import open_dataset
from client.data.phantoms import PHANTOMS
from client.dp.paid_release import plan_of, release_once
from client.institution import Institution

SYNTHETIC = 512
"""Number of drawn scores behind the threshold of a task with one holder."""


def router_statistics_privately(institution: Institution, request: RouterRequest) -> RouterReply:
    """Noisy statistics of all images. Every fold gets the same statistics, because no image is held out."""
    task, spec = PrivateTask(institution, request.job), institution.scenario.router
    statistics = task.statistics()
    folds = 0 if spec.constant is not None else spec.folds
    return RouterReply(statistics, task.images, folds=[statistics] * folds)


def fit_router_privately(institution: Institution, request: RouterRequest) -> RouterReply:
    """The router fitted to noisy statistics, and its threshold if each task has its own."""
    task, spec = PrivateTask(institution, request.job), institution.scenario.router
    state = institution.router.fit(task.statistics())
    if spec.constant is not None:
        return RouterReply(state, task.images)
    scores_N = task.drawn_scores([state] * spec.folds, SYNTHETIC)
    return RouterReply(state, task.images, threshold=choose_threshold(scores_N, spec))


def calibrate_privately(institution: Institution, request: CalibrateRequest) -> CalibrateReply:
    """Drawn scores under the merged routers, one per training image, so that each holder has its weight."""
    task = PrivateTask(institution, request.job)
    return CalibrateReply(score_histogram(task.drawn_scores(request.folds, task.images)))


def private_router(scenario: Scenario) -> PrivateRouter:
    """The private version of the scenario's router. Raises RefusalError (noise-not-possible)."""
    kind = scenario.router.kind
    private = ROUTERS[kind].private
    if private is None:
        able = [name for name, entry in ROUTERS.items() if entry.private]
        raise RefusalError(
            Outcome.NOISE_NOT_POSSIBLE, f"router.kind {kind!r}: expected one of {', '.join(able)}"
        )
    return private


class PrivateTask:
    """One task's training images at an institution that releases its router with noise.

    Raises RefusalError: noise-not-possible (the router has no private version) or budget-spent.
    """

    def __init__(self, institution: Institution, job: Job) -> None:
        self.institution, self.job = institution, job
        self.scenario = institution.scenario
        self.private = private_router(self.scenario)
        self.data, self.samples = institution.encoded(job.task, "train")
        self.units = institution.units(job.task, "train")
        self.noise_multiplier = plan_of(institution, job.task).router_noise
        # A plain seed is enough for drawing scores: their distribution is already released.
        self.seed = derive_seed(self.scenario.seed, institution.name, job.stage, "drawn", job.task)

    @property
    def images(self) -> int:
        """The number of images, which is public."""
        return self.units.images

    def statistics(self) -> Arrays:
        """Noisy sufficient statistics in the router's own form, paid for once."""
        privacy = self.scenario.privacy

        def compute(noise: NoiseSource) -> Arrays:
            noisy = self.private.prepare(self.institution.router, privacy, self.public)
            return noisy(
                self.features(),
                self.units,
                noise_multiplier=self.noise_multiplier,
                draws=self.institution.private_draws(self.job, "router"),
                noise=noise,
            )

        cost = self.private.mechanism(privacy, self.noise_multiplier, self.units.count)
        return self.release("router", cost, compute)

    def drawn_scores(self, states: Sequence[Arrays], count: int) -> NDArray[np.float64]:
        """Draw scores that represent the scores of the task's images.

        The paid release describes the images' scores under the institution's own noisy router, relative to
        the lowest score of that router. It is made once per task and does not depend on other holders, which
        may leave. For merged routers the same distances are added to the lowest score of these.

        Args:
            states: router state of each fold.
            count: number of scores to draw.
        """
        router, folds = self.institution.router, self.scenario.router.folds
        own = router.fit(self.statistics())
        own_lowest = self.private.lowest_score(router, own)

        def compute(noise: NoiseSource) -> Arrays:
            own_N = fold_scores(router, self.features(), [own] * folds, folds)
            public_NF = Tensor(np.concatenate(self.public()))
            public_N = held_out_scores(router, public_NF, [own] * folds, folds)
            described = describe_scores(own_N, self.units, public_N, own_lowest, self.noise_multiplier, noise)
            return {"scores": described}

        described = self.release("scores", scores_mechanism(self.noise_multiplier), compute)
        lowest = min(self.private.lowest_score(router, state) for state in states)
        return scores_like(np.asarray(described["scores"]), lowest, count, self.seed)

    def features(self) -> Tensor:
        """f_NF of the private images."""
        return self.data.features(self.samples, self.institution.backbone, self.scenario.router.features)

    def public(self) -> Sequence[NDArray[np.float64]]:
        """f_NF of public images, by modality."""
        kind, folder = self.scenario.router.features, self.institution.site.public
        return public_features_of(self.institution.backbone, kind, folder)

    def release(self, kind: str, mechanism: Mechanism, compute: Callable[[NoiseSource], Arrays]) -> Arrays:
        """The computed arrays, which the budget pays once per run and task."""
        released = release_once(
            self.institution,
            self.job,
            kind,
            Payload({"task": self.job.task, "stage": self.job.stage}),
            split="train",
            mechanisms={self.job.task: {kind: mechanism}},
            units={self.job.task: self.units},
            compute=lambda noise: Payload({}, {"summary": compute(noise)}),
        )
        return released.arrays["summary"]


SEED, IMAGES = 0, 8
"""Fixed, so that all institutions with the same backbone have the same public features."""


@lru_cache(maxsize=4)
def public_features_of(backbone: Backbone, features: str, folder: Path) -> tuple[NDArray[np.float64], ...]:
    """f_NF of every phantom modality. Phantoms are encoded once per store and painted once per process.

    folder: the embedding store.
    """
    tasks, store = [], EmbeddingStore(folder)
    for modality in sorted(PHANTOMS):
        spec = DataSpec(reader="phantom", phantom=modality, images=IMAGES)
        dataset = open_dataset(spec, data_root=None, seed=SEED, institution="public")
        embeddings = [store.embed(dataset.load(s).image_HW3, backbone)[1] for s in dataset.samples]
        tasks.append(np.stack([pool(z_CHW, features).double().numpy() for z_CHW in embeddings]))
    return tuple(tasks)
