"""Metrics with noise: means of test images and counts of routes, each stage once (docs/privacy.md).

Per image IoU and Dice (0 to 1) and a one for the route that was taken: an L2 norm of at most sqrt(3). The
images of a unit are added, so the sensitivity is that times the images of the largest unit, which is public
as counts of images are. All else that exact metrics hold (boundaries, intervals, margins, how much was
decoded) does not leave.
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
    """Noisy results of every task held here; paid for once per stage.

    canary: what client/evaluation/canary.py says.
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
        Payload({**request.job.config(), "bank": request.bank, "candidate": request.candidate}),
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
    """Sums with noise, then brought back into their ranges.

    names: every route there is, so that which ones are named says nothing.
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
