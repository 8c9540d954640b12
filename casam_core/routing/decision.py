"""The routing decision: the entry to use for an image, or none (frozen SAM)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

IDENTITY = "identity"
"""The route of an unknown image: its embedding goes unchanged to the decoder."""


@dataclass(frozen=True)
class Route:
    """task: the chosen task; None for identity. nearest, score: the lowest score and its task."""

    task: str | None
    nearest: str | None
    score: float | None

    @property
    def name(self) -> str:
        """The task's name, or `identity`."""
        return self.task if self.task is not None else IDENTITY


def decide(tasks: Sequence[str], scores: Sequence[float], thresholds: Sequence[float]) -> Route:
    """Choose the task with the lowest score; above that task's threshold the image is unknown (CA-SAM).

    Of equal scores, the task that was learned first wins. NaN is ignored. Without any valid score, the image
    is unknown.

    >>> decide(["polyp", "nuclei"], scores=[0.4, 0.1], thresholds=[0.5, 0.2]).name
    'nuclei'
    >>> unknown = decide(["polyp", "nuclei"], scores=[0.4, 0.3], thresholds=[0.5, 0.2])
    >>> unknown.name, unknown.nearest
    ('identity', 'nuclei')
    """
    comparable = [i for i in range(len(tasks)) if not math.isnan(scores[i])]
    if not comparable:
        return Route(task=None, nearest=None, score=None)
    best = min(comparable, key=lambda i: scores[i])
    known = scores[best] <= thresholds[best]
    return Route(task=tasks[best] if known else None, nearest=tasks[best], score=scores[best])
