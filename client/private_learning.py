"""What an institution learns and says with noise, where its policy asks for it (docs/privacy.md)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from casam_core.alignment import build_layer, learning_rate_of, set_weights, weights_of
from casam_core.embeddings import EmbeddingStore
from casam_core.messages import (
    AlignReply,
    AlignRequest,
    CalibrateReply,
    CalibrateRequest,
    RouterReply,
    RouterRequest,
)
from casam_core.methods import alignment_of, method_of
from casam_core.payload import Job, Payload
from casam_core.privacy.dp_training import (
    PRIVATE_FORMS,
    round_mechanism,
    train_privately,
    unit_means,
    units_of,
)
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.private_router import describe_privately, features_like, router_mechanism
from casam_core.routers import Arrays
from casam_core.seeding import derive_seed, numpy_generator
from casam_core.threshold import choose_threshold, held_out_scores, score_histogram
from casam_core.training import Example
from client.institution import Institution
from client.private_plan import learning_noise
from client.private_release import release_once
from client.progress import reporter
from client.public_features import public_frame_of
from client.refusals import NoiseNotPossibleError


def align_privately(institution: Institution, request: AlignRequest) -> AlignReply:
    """One private round on this institution's images of the job's own task.

    Nothing but the layer leaves: no loss, no early stop, and not whether it beats frozen SAM.
    Raises NoiseNotPossibleError for methods and forms that need more than that, BudgetSpentError.
    """
    job, scenario, backbone = request.job, institution.scenario, institution.backbone
    method, spec = method_of(scenario.method), alignment_of(scenario, job.task)
    if method.weighs or method.penalty or request.pooled or request.trains_on != (job.task,):
        raise NoiseNotPossibleError(f"method {scenario.method!r} releases more than a noisy layer")
    if spec.form not in PRIVATE_FORMS:
        raise NoiseNotPossibleError(f"form {spec.form!r}: expected one of {', '.join(PRIVATE_FORMS)}")
    data, samples = institution.encoded(job.task, "train")
    units = units_of([s.group or s.id for s in samples], institution.site.policy.budget.unit)
    noise_multiplier = learning_noise(scenario, institution.site.policy)

    def compute(noise: NoiseSource) -> Payload:
        layer = build_layer(spec, backbone.geometry.channels, institution.layer_seed(job), backbone)
        if request.layer is not None:
            set_weights(layer, request.layer)

        def example(i: int) -> Example:
            return data.example(samples[i], backbone, layer.sees_pixels)

        train_privately(
            layer,
            backbone,
            example,
            units,
            scenario.training,
            scenario.privacy,
            noise_multiplier=noise_multiplier,
            learning_rate=scenario.privacy.learning_rate or learning_rate_of(spec),
            rng=numpy_generator(scenario.seed, institution.name, job.stage, job.round, "align"),
            noise=noise,
            progress=reporter(institution.name, f"train {job.task} privately"),
        )
        return AlignReply(weights_of(layer), len(samples)).to_payload()

    released = release_once(
        institution,
        job,
        "align",
        # Learning anew asks the same: what was released for it is sent again and costs nothing.
        replace(request, again=False).to_payload(),
        split="train",
        mechanisms={job.task: round_mechanism(scenario.privacy, noise_multiplier)},
        units={job.task: len(units)},
        compute=compute,
    )
    return AlignReply.of(released)


def describe_privately_with_others(institution: Institution, request: RouterRequest) -> RouterReply:
    """Noisy summaries: the same one for all images and for every fold, as it holds no image out."""
    summary, images = private_summary(institution, request.job)
    return RouterReply(summary, images, folds=[summary] * institution.scenario.router.folds)


def describe_privately_alone(institution: Institution, request: RouterRequest) -> RouterReply:
    """The finished noisy router; the threshold is that of features drawn from it."""
    summary, images = private_summary(institution, request.job)
    state, spec = institution.router.finish(summary), institution.scenario.router
    drawn_NF = features_like(summary, SYNTHETIC, seed_of(institution, request.job))
    scores_N = np.array([institution.router.score(f_F, state) for f_F in drawn_NF])
    return RouterReply(state, images, threshold=choose_threshold(scores_N, spec))


SYNTHETIC = 512
"""Drawn features behind a threshold of a task that is held alone."""


def calibrate_privately(institution: Institution, request: CalibrateRequest) -> CalibrateReply:
    """Scores of drawn features under the merged routers: as many as there are images, for their weight."""
    summary, images = private_summary(institution, request.job)
    drawn_NF = features_like(summary, images, seed_of(institution, request.job))
    folds = institution.scenario.router.folds
    return CalibrateReply(
        score_histogram(held_out_scores(institution.router, drawn_NF, request.folds, folds))
    )


def private_summary(institution: Institution, job: Job) -> tuple[Arrays, int]:
    """(noisy sufficient statistics, number of images); paid for once per run and task.

    Raises NoiseNotPossibleError for routers other than the Gaussian.
    """
    scenario, policy = institution.scenario, institution.site.policy
    if scenario.router.kind != "gaussian":
        raise NoiseNotPossibleError(f"router.kind {scenario.router.kind!r}: only gaussian can be noisy")
    data, samples = institution.encoded(job.task, "train")
    units = units_of([s.group or s.id for s in samples], policy.budget.unit)
    noise_multiplier = scenario.privacy.router_ratio * learning_noise(scenario, policy)

    def compute(noise: NoiseSource) -> Payload:
        f_NF = data.features(samples, institution.backbone, scenario.router.features).double().numpy()
        frame = public_frame_of(
            institution.backbone, scenario.router.features, EmbeddingStore(institution.site.public)
        )
        f_UF = unit_means(f_NF, units)
        summary = describe_privately(f_UF, len(samples), frame, noise_multiplier, noise)
        return Payload({}, {"summary": summary})

    released = release_once(
        institution,
        job,
        "router",
        Payload({"task": job.task, "stage": job.stage}),
        split="train",
        mechanisms={job.task: router_mechanism(noise_multiplier)},
        units={job.task: len(units)},
        compute=compute,
    )
    return released.arrays["summary"], len(samples)


def seed_of(institution: Institution, job: Job) -> int:
    """For drawing features: what is drawn from is public by then."""
    return derive_seed(institution.scenario.seed, institution.name, job.stage, "drawn", job.task)
