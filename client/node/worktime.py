"""How long every request took here: a line each in the institution's own folder, for its own eyes.

Seconds tell of how many images there are and of what else the machine does, so they never leave.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from casam_core.protocol.audit import now
from casam_core.protocol.payload import Job

FILE = "work.jsonl"
"""In the institution's private folder of a run."""


@dataclass(frozen=True)
class Work:
    """One request, answered. seconds: from its arrival to the answer that leaves. processor_seconds: of all
    threads of the process meanwhile; what is missing to `seconds` was waiting, for disks or for a core."""

    time: str
    kind: str
    stage: int
    task: str
    seconds: float
    processor_seconds: float


class Stopwatch:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._wall, self._processor = time.monotonic(), time.process_time()

    @property
    def seconds(self) -> float:
        """On the wall so far."""
        return time.monotonic() - self._wall

    def work(self, kind: str, job: Job) -> Work:
        """What was done for one request since."""
        processor = time.process_time() - self._processor
        return Work(now(), kind, job.stage, job.task, self.seconds, processor)


def note(work: Work, private: Path) -> None:
    """Append a line. An answer never fails for the want of it."""
    with contextlib.suppress(OSError), (private / FILE).open("a") as file:
        file.write(json.dumps(asdict(work)) + "\n")


def noted(private: Path) -> list[Work]:
    """Every line so far; none where nothing was asked."""
    file = private / FILE
    if not file.exists():
        return []
    return [Work(**json.loads(line)) for line in file.read_text().splitlines()]
