"""An institution's work: how far it is, and what every request took.

Lines of progress go to the site's own output, with counts only; `casam run` draws its bars from them. How
long a request took, and how much device memory, is one line in the institution's folder. These figures depend
on the number of images and on other work of the machine, so they never leave.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from casam_core.files import append_record, read_records
from casam_core.model.compute import forget_peak, peak_bytes
from casam_core.protocol.audit import now
from casam_core.protocol.payload import Job

FILE = "work.jsonl"
"""In the institution's private folder of a run."""


@dataclass(frozen=True)
class Work:
    """One answered request. seconds: from its arrival to its answer. processor_seconds: of all threads of the
    process in this time. device_mib: the most memory of an accelerator that the process held, its backbone
    included. halved: work that did not fit into it at once (casam_core.model.compute.Halved)."""

    time: str
    kind: str
    stage: int
    task: str
    seconds: float
    processor_seconds: float
    device_mib: float = 0.0
    halved: Sequence[str] = ()


class Stopwatch:
    """Measures time from its construction on."""

    def __init__(self) -> None:
        self._wall, self._processor = time.monotonic(), time.process_time()
        forget_peak()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds so far."""
        return time.monotonic() - self._wall

    def work(self, kind: str, job: Job, halved: Sequence[str] = ()) -> Work:
        """What one request took so far."""
        processor, mib = time.process_time() - self._processor, peak_bytes() / 2**20
        return Work(now(), kind, job.stage, job.task, self.seconds, processor, mib, list(halved))


def note(work: Work, private: Path) -> None:
    """Append a line. An error while writing is ignored, so that the answer is still sent."""
    with contextlib.suppress(OSError):
        append_record(private / FILE, asdict(work))


def noted(private: Path) -> list[Work]:
    """Every line so far; empty before the first request."""
    return [Work(**record) for record, _ in read_records(private / FILE)]


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
        present = time.monotonic()
        if present - last >= SECONDS_BETWEEN_LINES or (printed and done == total):
            print(progress_line(institution, what, done, total), flush=True)
            last, printed = present, True

    return report
