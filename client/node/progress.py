"""Progress of work at an institution: one flushed line now and then, counts only.

The lines go to the site's own output. In a simulation that is the terminal of the one person who
plays all institutions; `casam run` draws its bars from them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS_BETWEEN_LINES = 2.0


def progress_line(institution: str, what: str, done: int, total: int) -> str:
    """`casam | site-a | encode nuclei | 12/40`"""
    return f"casam | {institution} | {what} | {done}/{total}"


def reporter(institution: str, what: str) -> Callable[[int, int], None]:
    """A callback (done, total) that prints at most every two seconds, and the last step."""
    last = time.monotonic()
    printed = False

    def report(done: int, total: int) -> None:
        nonlocal last, printed
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or (printed and done == total):
            print(progress_line(institution, what, done, total), flush=True)
            last, printed = now, True

    return report
