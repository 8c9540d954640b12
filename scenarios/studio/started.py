"""Runs that this studio started: `casam run` in a process of its own, as from a terminal.

The studio asks a process to stop as Ctrl-C does, so that the run can be continued. When the studio ends, it
stops the runs that it started.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from casam_core.config.library import resolve_scenario
from casam_core.errors import RunInputError
from scenarios.ask.own_process import COMMAND
from scenarios.engines import Engine
from scenarios.engines.order import choose_folder

STEP = re.compile(r"(?P<who>\S+): (?P<what>.+?) (?P<done>\d+)/(?P<total>\d+)$")
"""A line of `casam run` outside a terminal (scenarios/engines/live.py)."""

SECONDS_TO_STOP = 20.0


@dataclass(frozen=True)
class Step:
    """What an institution does now: `done` of `total` steps of `what`."""

    what: str
    done: int
    total: int


@dataclass
class Started:
    """One process. lines: the last lines that it printed. steps: by institution."""

    folder: Path
    title: str
    process: subprocess.Popen[str]
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=30))
    steps: dict[str, Step] = field(default_factory=dict)
    stopping: bool = False

    @property
    def working(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    @property
    def status(self) -> str:
        """The state in one or two words."""
        if self.working:
            return "stopping" if self.stopping else "working"
        return {0: "completed", 130: "stopped"}.get(self.process.returncode, "failed")

    def read(self) -> None:
        """Follow the output until the process ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := STEP.match(line.strip()):
                self.steps[found["who"]] = Step(found["what"], int(found["done"]), int(found["total"]))
            elif line.strip():
                self.lines.append(line.rstrip())

    def stop(self) -> None:
        """As Ctrl-C in a terminal: the run ends in order and can be continued."""
        self.stopping = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGINT)


class Starter:
    """Starts, continues and stops runs. folder: where new runs are put; None if no given folder can
    take them.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._started: dict[Path, Started] = {}
        self._lock = threading.Lock()

    def all(self) -> list[Started]:
        """Every process of this studio, the last one first."""
        return list(reversed(self._started.values()))

    def of(self, folder: Path) -> Started | None:
        """The process that writes, or wrote last, into this run folder."""
        return self._started.get(folder)

    def start(
        self, scenario: str, changes: list[str], engine: Engine, name: str, data_root: Path | None
    ) -> Started:
        """Start a scenario: a name of the library or a file. Raises CasamError before anything is written."""
        if self.folder is None:
            raise RunInputError(
                "expected a folder for new runs, found only run folders; start: casam studio FOLDER"
            )
        resolved = resolve_scenario(scenario, changes)
        folder = choose_folder(
            resolved, self.folder / (name or f"{resolved.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        )
        if folder.parent != self.folder:
            raise RunInputError(f"name: expected a folder name, found {name!r}")
        given = [f"--set={change}" for change in changes]
        given += [f"--data-root={data_root}"] if data_root else []
        return self._begin(
            folder, resolved.name, "run", scenario, f"--engine={engine.value}", f"--out={folder}", *given
        )

    def resume(self, folder: Path) -> Started:
        """Continue an interrupted run. Raises RunInputError if this studio's process still works on it."""
        return self._begin(folder, folder.name, "run", f"--resume={folder}")

    def _begin(self, folder: Path, title: str, *arguments: str) -> Started:
        with self._lock:
            if (before := self.of(folder)) is not None and before.working:
                raise RunInputError(f"{folder.name}: expected a run that does not work, found a working one")
            process = subprocess.Popen(
                [*COMMAND, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C in the studio's terminal is passed on once, by `stop_all`
            )
            started = Started(folder, title, process)
            self._started.pop(folder, None)
            self._started[folder] = started
        threading.Thread(target=started.read, daemon=True).start()
        return started

    def stop_all(self) -> None:
        """Stop every process, and wait; one that does not end in time is ended."""
        working = [started for started in self._started.values() if started.working]
        for started in working:
            started.stop()
        end = time.monotonic() + SECONDS_TO_STOP
        for started in working:
            try:
                started.process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(started.process.pid, signal.SIGKILL)
