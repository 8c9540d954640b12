"""Seconds of functions that are compared: in one process, in turns, the median of several calls.

With one thread the clock is the process's processor time, which other work on the machine hardly changes.
With more threads it is wall-clock time, because processor time would be the sum over threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median


def clock(threads: int) -> Callable[[], float]:
    """The function that returns the present time in seconds."""
    return time.process_time if threads == 1 else time.perf_counter


def interleaved(
    sides: Mapping[str, Callable[[], object]], *, repeats: int, threads: int, warm_up: bool = True
) -> dict[str, float]:
    """Median seconds of each side. The sides take turns, so that a slow minute affects all of them.

    warm_up: call each side once before the measurement.
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
