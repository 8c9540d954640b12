"""Metrics with noise: means over test images and counts of routes, once per stage (docs/privacy.md).

Each image contributes its IoU, its Dice (both 0 to 1) and a one for its route: an L2 norm of at most sqrt(3).
The images of a unit add up, so the sensitivity is sqrt(3) times the largest number of images of a unit that
count, which is a number of the policy. The other exact metrics (boundaries, intervals, margins, number of
decodes) do not leave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from casam_core.privacy.accounting import Mechanism
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.private_sum import PrivateSum
from casam_core.privacy.units import Unit, Units
from casam_core.protocol.messages import EvaluateReply, EvaluateRequest, TaskResult, question_of
from casam_core.protocol.payload import Payload
from casam_core.routing.decision import IDENTITY
from client.dp.paid_release import release_once, stage_label
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
    tasks = sorted(institution.site.tasks)
    split = scenario.evaluation.split
    units = {task: institution.units(task, split) for task in tasks}
    total = PrivateSum(IMAGE_NORM * policy.budget.contribution, noise_multiplier)

    def compute(noise: NoiseSource) -> Payload:
        names = [*known.tasks, IDENTITY]
        results = {
            task: noisy_result(measured, names, units[task], total, noise)
            for task, measured in institution.measured(known).items()
        }
        return EvaluateReply(results, decodes=None, canary=canary).to_payload()

    released = release_once(
        institution,
        request.job,
        "evaluate",
        question_of(request),
        split=split,
        mechanisms={task: {"evaluate": Mechanism(noise_multiplier)} for task in tasks},
        units=units,
        compute=compute,
        made_with=stage_label(request.job.stage),
    )
    return EvaluateReply.of(released)


def noisy_result(
    measured: Measured, names: Sequence[str], units: Units, total: PrivateSum, noise: NoiseSource
) -> TaskResult:
    """Noisy sums, scaled from the images that count to all images, and clipped to their valid ranges.

    names: all possible routes; noise is added to every count, so the presence of a route reveals nothing.
    """
    place = {name: number for number, name in enumerate(names, 2)}

    def row_of(unit: Unit) -> NDArray[np.float64]:
        row = np.zeros(2 + len(names))
        for i in unit.images:
            mean = measured.images[i].mean
            row[:2] += np.nan_to_num(np.clip([mean.iou, mean.dice], 0, 1))
            row[place[measured.routes[i]]] += 1
        return row

    means = total.release(map(row_of, units), 2 + len(names), noise) / units.counted
    iou, dice = np.clip(means[:2], 0, 1)
    counts = np.clip(np.rint(means[2:] * units.images), 0, units.images).astype(int)
    return TaskResult(
        images=units.images,
        instances=None,
        iou=float(iou),
        dice=float(dice),
        biou=None,
        biou_official=None,
        iou_instance=None,
        hd95=None,
        routes={name: int(count) for name, count in zip(names, counts, strict=True) if count},
    )
