"""How long every request took, and how much device memory: one line per request, in the institution's folder.

These figures depend on the number of images and on other work of the machine, so they never leave.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
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
