"""Progress of work at an institution: lines with counts only, flushed.

The lines go to the site's own output. In a simulation, this is the output of the run; `casam run` draws its
progress bars from them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS_BETWEEN_LINES = 2.0


def progress_line(institution: str, what: str, done: int, total: int) -> str:
    """`casam | site-a | encode nuclei | 12/40`"""
    return f"casam | {institution} | {what} | {done}/{total}"


def reporter(institution: str, what: str) -> Callable[[int, int], None]:
    """A callback (done, total) that prints at most one line in two seconds, and the last one of long work."""
    last = time.monotonic()
    printed = False

    def report(done: int, total: int) -> None:
        nonlocal last, printed
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or (printed and done == total):
            print(progress_line(institution, what, done, total), flush=True)
            last, printed = now, True

    return report
