"""Routing metrics: how often the router chose the right entry, or correctly chose none."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from casam_core.routing.decision import IDENTITY


@dataclass(frozen=True)
class RoutingMetrics:
    """Shares of images in [0, 1]; None if there are no images.

    Attributes:
        accuracy: images of seen tasks routed to their own task (identity is an error).
        false_unknown_rate: images of seen tasks routed to identity.
        unseen_unknown_rate: images of unseen tasks routed to identity, which is correct.
        seen_images: the number of images of seen tasks.
        unseen_images: the number of images of unseen tasks.
    """

    accuracy: float | None
    false_unknown_rate: float | None
    unseen_unknown_rate: float | None
    seen_images: int
    unseen_images: int


def routing_metrics(confusion: Mapping[str, Mapping[str, int]], *, seen: Collection[str]) -> RoutingMetrics:
    """Routing metrics of one stage.

    Args:
        confusion: `confusion[true task][route]` = number of images; a route is a seen task or
            `IDENTITY`. Pairs without images may be left out.
        seen: tasks with an entry; all others are unseen.

    Raises:
        ValueError: a task is named `IDENTITY`, a route is a task without an entry, or a count is negative.
    """
    if IDENTITY in confusion or IDENTITY in seen:
        raise ValueError(f"{IDENTITY!r} is the route to the frozen backbone; no task can have that name")
    images = {True: 0, False: 0}
    unknown = {True: 0, False: 0}
    right = 0
    for task, routes in confusion.items():
        for route, count in routes.items():
            if route != IDENTITY and route not in seen:
                raise ValueError(f"images of {task!r} are routed to {route!r}, which has no entry")
            if count < 0:
                raise ValueError(f"{task!r} -> {route!r} must count images, found {count}")
        known = task in seen
        images[known] += sum(routes.values())
        unknown[known] += routes.get(IDENTITY, 0)
        right += routes.get(task, 0)
    return RoutingMetrics(
        accuracy=_share(right, images[True]),
        false_unknown_rate=_share(unknown[True], images[True]),
        unseen_unknown_rate=_share(unknown[False], images[False]),
        seen_images=images[True],
        unseen_images=images[False],
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
