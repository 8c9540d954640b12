"""Metrics with noise: means over test images and counts of routes, once per stage (docs/privacy.md).

Each image contributes its IoU, its Dice (both 0 to 1) and a one for its route: the contribution bound is an
L2 norm of sqrt(3). The images of a unit add up, so the sensitivity is sqrt(3) times the number of images of
the largest unit. That number is public, as all image counts are. The other exact metrics (boundaries,
intervals, margins, number of decodes) do not leave.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from casam_core.privacy.accounting import Mechanism
from casam_core.privacy.noise import NoiseSource
from casam_core.protocol.messages import EvaluateReply, EvaluateRequest, TaskResult
from casam_core.protocol.payload import Payload
from casam_core.routing.decision import IDENTITY
from client.dp.paid_release import release_once, units_held
from client.dp.plan import metrics_noise
from client.evaluation.evaluator import Measured
from client.evaluation.own_entries import KnownEntries
from client.institution import Institution

IMAGE_NORM = math.sqrt(3)


def evaluate_privately(
    institution: Institution, request: EvaluateRequest, known: KnownEntries, canary: bool | None
) -> EvaluateReply:
    """Noisy results of every task held here; the budget pays once per stage.

    canary: the answer of client/evaluation/canary.py. Raises RefusalError (budget-spent, delta-too-large).
    """
    scenario, policy = institution.scenario, institution.site.policy
    noise_multiplier = metrics_noise(scenario, policy)
    tasks = sorted(scenario.institution(institution.name).data)
    split = scenario.evaluation.split
    units = {task: units_held(institution, task, split) for task in tasks}

    def compute(noise: NoiseSource) -> Payload:
        names = [*known.tasks, IDENTITY]
        results = {
            task: noisy_result(measured, names, max(map(len, units[task])), noise_multiplier, noise)
            for task, measured in institution.measured(known).items()
        }
        return EvaluateReply(results, decodes=None, canary=canary).to_payload()

    released = release_once(
        institution,
        request.job,
        "evaluate",
        Payload({**request.job.config(), "bank": request.bank, "candidates": " ".join(request.candidates)}),
        split=split,
        mechanisms={task: Mechanism(noise_multiplier) for task in tasks},
        units={task: len(units[task]) for task in tasks},
        compute=compute,
    )
    return EvaluateReply.of(released)


def noisy_result(
    measured: Measured,
    names: Sequence[str],
    largest_unit: int,
    noise_multiplier: float,
    noise: NoiseSource,
) -> TaskResult:
    """Sums with Gaussian noise, clipped to their valid ranges.

    Args:
        names: all possible routes; noise is added to every count, so the presence of a route reveals nothing.
        largest_unit: number of images of the largest unit.
    """
    images = len(measured.images)
    routes = Counter(measured.routes)
    sums = np.array(
        [
            sum(image.mean.iou for image in measured.images),
            sum(image.mean.dice for image in measured.images),
            *(routes[name] for name in names),
        ],
        np.float64,
    )
    deviation = noise_multiplier * IMAGE_NORM * largest_unit
    noisy = sums + deviation * noise.normal(len(sums))
    iou, dice = np.clip(noisy[:2] / images, 0, 1)
    counts = np.clip(np.rint(noisy[2:]), 0, images).astype(int)
    return TaskResult(
        images=images,
        instances=None,
        iou=float(iou),
        dice=float(dice),
        biou=None,
        biou_official=None,
        iou_instance=None,
        hd95=None,
        routes={name: int(count) for name, count in zip(names, counts, strict=True) if count},
    )
