"""The canary: does a new entry claim validation images of tasks that are held here?

A router that calls every image its own (by malice or by mistake) would send other tasks' images to its layer.
Whoever holds those tasks notices, and says one word: pass or fail. The word is a release (policy.canaries,
docs/privacy.md): where metrics are noisy, it comes from a count with noise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from casam_core.privacy.accounting import Mechanism
from casam_core.privacy.noise import NoiseSource
from casam_core.protocol.messages import EvaluateRequest
from casam_core.protocol.outcomes import RefusalError
from casam_core.protocol.payload import Payload
from client.dp.paid_release import release_once, units_held
from client.dp.plan import metrics_noise
from client.evaluation.own_entries import KnownEntries
from client.evaluation.results import Results
from client.institution import Institution

MIN_IMAGES = 2
"""Images that a failing entry must claim of one task: a single one may be an honest mistake."""

NOISE_SIGMAS = 2.0
"""Standard deviations of its own noise by which a noisy count must pass the limit: honest entries of private
institutions would else fail by chance."""


def canary(institution: Institution, request: EvaluateRequest, known: KnownEntries) -> bool | None:
    """Whether the candidate fails; None where nothing is said.

    Nothing is said by who holds no images of older tasks, whose policy does not let it, or who measures on
    the validation images themselves (evaluation.split), which would be asked twice.
    """
    scenario, policy = institution.scenario, institution.site.policy
    share = scenario.admission.canary_share
    if share is None or scenario.evaluation.split == "val":
        return None
    images = images_at_stake(institution, request.candidate, known)
    if not images or not may_say(institution, request):
        return None
    if policy.metrics == "noisy":
        with contextlib.suppress(RefusalError):  # budget-spent, delta-too-large
            return noisy_canary(institution, request, known, images, share)
        return None
    claimed = claimed_by(institution, request.candidate, known, images)
    return any(claimed[task] > share * images[task] and claimed[task] >= MIN_IMAGES for task in images)


def images_at_stake(institution: Institution, candidate: str, known: KnownEntries) -> dict[str, int]:
    """Validation images by older task held here, where there are enough and a router can choose the task."""
    if candidate not in known.tasks:
        return {}
    held = institution.scenario.institution(institution.name).data
    counts = {
        task: institution.task(task).holding.val
        for task in known.tasks
        if task in held and task != candidate and known[task].threshold is not None
    }
    return {task: images for task, images in counts.items() if images >= MIN_IMAGES}


def may_say(institution: Institution, request: EvaluateRequest) -> bool:
    """Whether the policy allows one more answer in this stage; the same question again costs nothing."""
    asked = Results(institution.site.private / "canaries.jsonl")
    stage = f"stage {request.job.stage}"
    question = f"{request.bank} {request.candidate}"
    if asked.get(stage, question) is None:
        if len(asked.of(stage)) >= institution.site.policy.canaries:
            return False
        asked.put(stage, question, True)
    return True


def claimed_by(
    institution: Institution, candidate: str, known: KnownEntries, images: Mapping[str, int]
) -> dict[str, int]:
    """By older task, how many of its validation images the candidate would take. Never leaves."""
    evaluator = institution.evaluator()
    counts = {}
    for task in images:
        data, samples = institution.encoded(task, "val")
        routes = [evaluator.route(sample, data, known) for sample in samples]
        counts[task] = sum(route.task == candidate for route in routes)
    return counts


def noisy_canary(
    institution: Institution,
    request: EvaluateRequest,
    known: KnownEntries,
    images: Mapping[str, int],
    share: float,
) -> bool:
    """The same from counts with Gaussian noise, paid from the budget of metrics on the validation images.

    A unit's images change a count by as many as it has. With few images the noise hides every theft: then the
    canary passes, and says nothing.
    """
    noise_multiplier = metrics_noise(institution.scenario, institution.site.policy)
    units = {task: units_held(institution, task, "val") for task in images}

    def compute(noise: NoiseSource) -> Payload:
        failed = False
        for task, count in claimed_by(institution, request.candidate, known, images).items():
            deviation = noise_multiplier * max(map(len, units[task]))
            noisy = count + deviation * float(noise.normal(1)[0])
            failed |= noisy > share * images[task] + NOISE_SIGMAS * deviation
        return Payload({}, {}, {"canary": {"failed": float(failed)}})

    released = release_once(
        institution,
        request.job,
        "canary",
        Payload({**request.job.config(), "bank": request.bank, "candidate": request.candidate}),
        split="val",
        mechanisms={task: Mechanism(noise_multiplier) for task in images},
        units={task: len(units[task]) for task in images},
        compute=compute,
    )
    return bool(released.metrics["canary"]["failed"])
