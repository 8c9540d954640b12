"""From institutions' results to one row of the matrix: weighted by images, in a fixed order."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from casam_core.metrics.intervals import Statistics
from casam_core.protocol.messages import EvaluateReply, TaskResult
from casam_core.routing.unknown import total

FIGURES = ("iou", "dice", "biou", "biou_official", "hd95", "iou_instance")


@dataclass(frozen=True)
class StageScores:
    """One evaluation of everybody. All by task.

    figures[name][task]: mean over all holders' test images (iou_instance: over instances); None where
        a holder did not answer, for a mean over the others would be another figure.
    worst_iou[task]: the lowest institution's IoU. routes[task][route]: images. margins[task]: how unknown
        its images look, over holders. statistics[institution][task]: as the institution computed them.
    canary[institution]: whether the stage's new entry claims too many of its images; None: it says nothing.
    """

    figures: dict[str, dict[str, float | None]]
    worst_iou: dict[str, float | None]
    routes: dict[str, dict[str, int]]
    decodes: int
    margins: dict[str, NDArray[np.int64]]
    statistics: dict[str, dict[str, Statistics]]
    canary: dict[str, bool | None] = field(default_factory=dict)

    @property
    def iou(self) -> dict[str, float | None]:
        """IoU by task."""
        return self.figures["iou"]

    def figure(self, name: str, task: str) -> float | None:
        """One cell."""
        return self.figures[name].get(task)


def combine(replies: Mapping[str, EvaluateReply], holders: Mapping[str, Collection[str]]) -> StageScores:
    """Merge the institutions' replies; `holders` are the institutions that hold each task's test images."""
    by_task = {
        task: [
            replies[name].results[task] for name in names if name in replies and task in replies[name].results
        ]
        for task, names in holders.items()
    }
    whole = {task: results for task, results in by_task.items() if len(results) == len(holders[task])}
    return StageScores(
        figures={name: {task: weighted(whole.get(task, []), name) for task in by_task} for name in FIGURES},
        worst_iou={task: min((r.iou for r in whole.get(task, [])), default=None) for task in by_task},
        routes={task: count_routes(results) for task, results in by_task.items()},
        decodes=sum(reply.decodes or 0 for reply in replies.values()),
        margins={
            task: total(reply.margins[task] for reply in replies.values() if task in reply.margins)
            for task in by_task
        },
        statistics={
            name: {task: r.statistics for task, r in reply.results.items() if r.statistics is not None}
            for name, reply in replies.items()
        },
        canary={name: reply.canary for name, reply in replies.items()},
    )


def weighted(results: list[TaskResult], name: str) -> float | None:
    """Mean over holders weighted by images, for iou_instance by instances; None without a value."""
    weights = [result.instances if name == "iou_instance" else result.images for result in results]
    values = [getattr(result, name) for result in results]
    known = [(w, v) for w, v in zip(weights, values, strict=True) if w is not None and v is not None]
    # A mean over some of the holders would be another figure; an empty HD95 counts by itself.
    if not sum(w for w, _ in known) or (name != "hd95" and len(known) < len(values)):
        return None
    return float(sum(w * v for w, v in known) / sum(w for w, _ in known))


def count_routes(results: list[TaskResult]) -> dict[str, int]:
    """Images by route, over holders."""
    counts: dict[str, int] = {}
    for result in results:
        for route, images in result.routes.items():
            counts[route] = counts.get(route, 0) + images
    return dict(sorted(counts.items()))
