"""The canary: does a new entry claim validation images of older tasks that this institution holds?

A malicious or faulty router can claim every image, and so send other tasks' images to its layer. Holders of
those tasks detect this and answer with pass or fail. The answer is a release (policy.canaries,
docs/privacy.md). Where metrics are noisy, it is computed from a count with noise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping

import numpy as np

from casam_core.files import sync
from casam_core.privacy.accounting import Mechanism
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.private_sum import PrivateSum
from casam_core.protocol.messages import EvaluateRequest, question_of
from casam_core.protocol.outcomes import RefusalError
from casam_core.protocol.payload import Payload, digest_of
from client.dp.paid_release import release_once, stage_label
from client.dp.plan import metrics_noise
from client.evaluation.own_entries import KnownEntries
from client.evaluation.results import Results
from client.institution import Institution

MIN_IMAGES = 2
"""Minimum number of one task's images that a failing entry claims: one image may be an honest mistake."""

NOISE_SIGMAS = 2.0
"""A noisy count must exceed the limit by this many standard deviations of its noise. Otherwise honest entries
of private institutions would fail by chance."""


def canary(institution: Institution, request: EvaluateRequest, known: KnownEntries) -> bool | None:
    """Whether any of the candidates fails: one bit about all; None if this institution gives no answer.

    It gives no answer if it holds too few images of older tasks, if its policy or budget does not allow an
    answer, or if the scenario evaluates on the validation images (evaluation.split): these would then be
    used twice.
    """
    scenario, policy = institution.scenario, institution.site.policy
    share = scenario.admission.canary_share
    if share is None or scenario.evaluation.split == "val":
        return None
    images = images_at_stake(institution, request.candidates, known)
    if not images or not may_say(institution, request):
        return None
    if policy.metrics == "noisy":
        with contextlib.suppress(RefusalError):  # budget-spent, delta-too-large
            return noisy_canary(institution, request, known, images, share)
        return None
    claimed = claimed_by(institution, request.candidates, known, images)
    counts = {task: sum(of_task) for task, of_task in claimed.items()}
    return any(counts[task] > share * images[task] and counts[task] >= MIN_IMAGES for task in images)


def images_at_stake(
    institution: Institution, candidates: Collection[str], known: KnownEntries
) -> dict[str, int]:
    """Validation images by task held here that a candidate of another task could claim, of tasks with enough
    images and with a threshold."""
    new = set(candidates) & set(known.tasks)
    held = institution.site.tasks
    counts = {
        task: institution.task(task).holding.val
        for task in known.tasks
        if task in held and new - {task} and known[task].threshold is not None
    }
    return {task: images for task, images in counts.items() if images >= MIN_IMAGES}


def may_say(institution: Institution, request: EvaluateRequest) -> bool:
    """Whether the policy allows one more answer in this stage; a repeated question does not count again."""
    asked = Results(institution.site.private / "canaries.jsonl")
    stage = f"stage {request.job.stage}"
    # A hash, so that the file names no task of an institution that leaves.
    question = digest_of(question_of(request))
    if asked.get(stage, question) is None:
        if len(asked.of(stage)) >= institution.site.policy.canaries:
            return False
        asked.put(stage, question, True)
        sync(asked.path)  # a power cut must not give another answer
    return True


def claimed_by(
    institution: Institution, candidates: Collection[str], known: KnownEntries, images: Mapping[str, int]
) -> dict[str, list[bool]]:
    """By task, for each of its validation images, whether a candidate of another task claims it. It never
    leaves."""
    evaluator = institution.evaluator()
    counts = {}
    for task in images:
        data, samples = institution.encoded(task, "val")
        others = set(candidates) - {task}
        counts[task] = [evaluator.route(sample, data, known).task in others for sample in samples]
    return counts


def noisy_canary(
    institution: Institution,
    request: EvaluateRequest,
    known: KnownEntries,
    images: Mapping[str, int],
    share: float,
) -> bool:
    """Whether the candidate fails, from counts with Gaussian noise; the metrics budget pays for it.

    One unit changes a count by at most the number of its images that count. With few images the noise hides
    every wrong claim; the canary then passes without evidence.

    images: validation images by older task. share: of a task's images that a candidate may claim. Raises
    RefusalError (budget-spent, delta-too-large).
    """
    policy = institution.site.policy
    total = PrivateSum(policy.budget.contribution, metrics_noise(institution.scenario, policy))
    deviation = total.noise_multiplier * total.norm
    units = {task: institution.units(task, "val") for task in images}

    def compute(noise: NoiseSource) -> Payload:
        failed = False
        for task, claimed in claimed_by(institution, request.candidates, known, images).items():
            rows = (np.array([float(sum(claimed[i] for i in unit.images))]) for unit in units[task])
            noisy = float(total.release(rows, 1, noise)[0])
            failed |= noisy > share * units[task].counted + NOISE_SIGMAS * deviation
        return Payload({}, {}, {"canary": {"failed": float(failed)}})

    released = release_once(
        institution,
        request.job,
        "canary",
        question_of(request),
        split="val",
        mechanisms={task: {"canary": Mechanism(total.noise_multiplier)} for task in images},
        units=units,
        compute=compute,
        made_with=stage_label(request.job.stage),
    )
    return bool(released.metrics["canary"]["failed"])
