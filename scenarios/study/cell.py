"""One cell of a study, as a process of its own: what breaks one run breaks no other.

`python -m scenarios.study.cell` reads its order as one line of JSON from its standard input and runs it.
The input stays open: when it closes, whoever wanted the cell is gone, and the process ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Protocol

from casam_core.config.scenario import Scenario
from casam_core.errors import CasamError, RunError
from casam_core.protocol.fingerprint import code_fingerprint
from scenarios.commands.terminal import console
from scenarios.engines import Engine
from scenarios.engines.run import RunOrder, run_resolved

ABANDONED = 75


@dataclass(frozen=True)
class CellOrder:
    """What a cell's process must know. scenario: as JSON, with its checkpoint. folder: of the run, absolute.
    log: file for what the run prints. code: fingerprint of the code that ordered it."""

    name: str
    scenario: str
    engine: str
    data_root: str | None
    folder: str
    log: str
    code: str


@dataclass(frozen=True)
class CellEnd:
    """How it ended. reason: why it failed, in one line; empty for a finished run."""

    name: str
    reason: str
    seconds: float


class Cells(Protocol):
    """Where cells run."""

    def run(self, order: CellOrder) -> CellEnd:
        """Run a cell and wait for its end; called from several threads at once."""

    def stop(self) -> None:
        """End the cells under way."""


class LocalCells:
    """Each cell a process on this machine."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()

    def run(self, order: CellOrder) -> CellEnd:
        """Raises nothing that one cell could cause."""
        if not Path(order.folder).parent.is_dir():
            reason = f"{order.folder} is not to be seen from this machine; share the study's folder"
            return CellEnd(order.name, reason, 0.0)
        start = time.monotonic()
        with Path(order.log).open("w") as log, self._process(log) as process:
            self._running.add(process)
            assert process.stdin is not None  # it is a pipe
            with contextlib.suppress(BrokenPipeError):  # it ended before it read; its status says how
                process.stdin.write(json.dumps(asdict(order)) + "\n")
                process.stdin.flush()
            status = process.wait()
            self._running.discard(process)
        seconds = time.monotonic() - start
        return CellEnd(order.name, "" if status == 0 else why(Path(order.log), status), seconds)

    def stop(self) -> None:
        """Ask the processes to end."""
        for process in list(self._running):
            process.terminate()

    @staticmethod
    def _process(log: IO[str]) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "scenarios.study.cell"]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, text=True
        )


def why(log: Path, status: int) -> str:
    """The last line that the cell printed; a process that was killed printed none about it."""
    lines = log.read_text(errors="replace").strip().splitlines()
    said = lines[-1].removeprefix("error: ") if lines else "nothing printed"
    return said if status > 0 else f"ended by signal {-status}; last line: {said}"


def main() -> None:
    """Run the cell that standard input orders; exit status as `casam run`."""
    order = CellOrder(**json.loads(sys.stdin.readline()))
    threading.Thread(target=end_when_abandoned, daemon=True).start()
    try:
        execute(order)
    except CasamError as error:
        print(f"error: {error}", flush=True)
        sys.exit(1)


def execute(order: CellOrder) -> None:
    """Run it in this process. Raises CasamError."""
    if (code := code_fingerprint()) != order.code:
        raise RunError(f"code: the study runs {order.code}, this machine {code}; update one of them")
    scenario = Scenario.model_validate_json(order.scenario)
    data_root = Path(order.data_root) if order.data_root else None
    run = RunOrder(order.name, Engine(order.engine), data_root, Path(order.folder))
    run_resolved(scenario, run, console())


def end_when_abandoned() -> None:
    """The order's sender never writes again; its end closes the input."""
    sys.stdin.read()
    os._exit(ABANDONED)


if __name__ == "__main__":
    main()
