"""A clock that moves only when somebody sleeps, and the events that are due until then."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from time import strftime


class HangError(BaseException):
    """The run is longer than any run may take. Nothing in the product may catch it."""


class Clock:
    """It takes the place of the module `time`. now: seconds since the start of the world."""

    def __init__(self, limit: float) -> None:
        """limit: the moment at which a run hangs."""
        self.now, self.limit = 0.0, limit
        self.wall = 1_790_000_000.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, moment: float, event: Callable[[], None]) -> None:
        """Call `event` at a moment, after all that are due at the same moment already."""
        self._count += 1
        heapq.heappush(self._events, (max(moment, self.now), self._count, event))

    def sleep(self, seconds: float) -> None:
        """Let time pass, and everything happen that is due."""
        end = self.now + max(seconds, 1e-4)
        while self._events and self._events[0][0] <= end:
            moment, _, event = heapq.heappop(self._events)
            self.now = max(self.now, moment)
            event()
        self.now = max(self.now, end)
        if self.now > self.limit:
            raise HangError(f"no end after {self.now:.0f} s")

    def monotonic(self) -> float:
        """Seconds that no jump changes."""
        return self.now

    perf_counter = process_time = monotonic

    def time(self) -> float:
        """The time of day, which may jump."""
        return self.wall + self.now

    strftime = staticmethod(strftime)
