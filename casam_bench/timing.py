"""Seconds of things that are compared: in one process, in turns, the median of several.

With one thread the clock is the process's own processor time, which other work on the machine hardly
moves; with more it is the wall's, as processor time would add the threads up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median


def clock(threads: int) -> Callable[[], float]:
    """What tells the seconds."""
    return time.process_time if threads == 1 else time.perf_counter


def interleaved(
    sides: Mapping[str, Callable[[], object]], *, repeats: int, threads: int, warm_up: bool = True
) -> dict[str, float]:
    """Median seconds of each side. They take turns, so that a slow minute slows them all.

    warm_up: call each once before anything is counted.
    """
    now = clock(threads)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    if warm_up:
        for run in sides.values():
            run()
    for _ in range(repeats):
        for name, run in sides.items():
            begun = now()
            run()
            seconds[name].append(now() - begun)
    return {name: median(taken) for name, taken in seconds.items()}
