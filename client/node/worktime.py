"""How long every request took: one line per request, in the institution's own folder.

These times depend on the number of images and on other work of the machine, so they never leave.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from casam_core.files import append_record, read_records
from casam_core.protocol.audit import now
from casam_core.protocol.payload import Job

FILE = "work.jsonl"
"""In the institution's private folder of a run."""


@dataclass(frozen=True)
class Work:
    """One answered request. seconds: from its arrival to its answer. processor_seconds: of all threads of the
    process in this time."""

    time: str
    kind: str
    stage: int
    task: str
    seconds: float
    processor_seconds: float


class Stopwatch:
    """Measures time from its construction on."""

    def __init__(self) -> None:
        self._wall, self._processor = time.monotonic(), time.process_time()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds so far."""
        return time.monotonic() - self._wall

    def work(self, kind: str, job: Job) -> Work:
        """The times of one request so far."""
        processor = time.process_time() - self._processor
        return Work(now(), kind, job.stage, job.task, self.seconds, processor)


def note(work: Work, private: Path) -> None:
    """Append a line. An error while writing is ignored, so that the answer is still sent."""
    with contextlib.suppress(OSError):
        append_record(private / FILE, asdict(work))


def noted(private: Path) -> list[Work]:
    """Every line so far; empty before the first request."""
    return [Work(**record) for record, _ in read_records(private / FILE)]
