"""How many requests are under way at once, and how often the SuperLink is asked for their answers."""

from __future__ import annotations

import sys

POLL_SECONDS, POLL_SHARE, LONGEST_POLL_SECONDS = 0.02, 0.05, 1.0
"""A SuperLink is asked less and less often: a pause is this share of what was waited before, within bounds.
So waiting takes at most so much longer than it had to."""

PER_CORE, FEWEST = 4, 24
"""Requests of a simulation under way: enough that no core waits for the next one, which takes a tenth of a
second to get there."""


def at_once() -> int | None:
    """Requests under way in a simulation; None in deployment, where every institution is to begin at once.

    Flower's simulation engine looks, ten times a second and for every node, at every message that is under
    way (InMemoryLinkState.get_message_ins): with a thousand institutions asked at once that is all one core
    does. It has Ray running in this process; the SuperLink's deployment engine has not.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    return max(FEWEST, PER_CORE * int(ray.cluster_resources().get("CPU", 1)))


def pause(waited: float, unsent: bool) -> float:
    """Seconds until the next look, after `waited` seconds. unsent: answers make room for other requests."""
    return POLL_SECONDS if unsent else min(max(POLL_SECONDS, POLL_SHARE * waited), LONGEST_POLL_SECONDS)
