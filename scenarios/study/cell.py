"""One cell of a study as a separate process, so that a crash of one run does not affect the others.

`python -m scenarios.study.cell` reads its order as one line of JSON from its standard input and runs it.
The input stays open. When it closes, the process that ordered the cell has ended, and this one ends too.
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
from scenarios.engines.order import RunOrder
from scenarios.engines.run import run_scenario

ABANDONED = 75


@dataclass(frozen=True)
class CellOrder:
    """The order for a cell's process.

    scenario: as JSON, with its checkpoint. folder: the run folder, absolute. log: file for the run's output.
    code: fingerprint of the code that gave the order.
    """

    name: str
    scenario: str
    engine: str
    data_root: str | None
    folder: str
    log: str
    code: str


@dataclass(frozen=True)
class CellEnd:
    """The end of a cell. reason: why it failed, in one line; empty for a finished run."""

    name: str
    reason: str
    seconds: float


class Cells(Protocol):
    """A place where cells run."""

    def run(self, order: CellOrder) -> CellEnd:
        """Run a cell and wait for its end; called from several threads at once."""

    def stop(self) -> None:
        """End the running cells."""


class LocalCells:
    """Runs each cell as a process on this machine."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()

    def run(self, order: CellOrder) -> CellEnd:
        """Run a cell; its failure is returned, not raised."""
        if not Path(order.folder).parent.is_dir():
            reason = f"{order.folder} does not exist on this machine; share the study's folder"
            return CellEnd(order.name, reason, 0.0)
        start = time.monotonic()
        with Path(order.log).open("w") as log, self._process(log) as process:
            self._running.add(process)
            assert process.stdin is not None  # it is a pipe
            with contextlib.suppress(BrokenPipeError):  # it ended before it read; see its exit status
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
    """The last line that the cell printed, and the signal if one killed it."""
    lines = log.read_text(errors="replace").strip().splitlines()
    said = lines[-1].removeprefix("error: ") if lines else "nothing printed"
    return said if status > 0 else f"ended by signal {-status}; last line: {said}"


def main() -> None:
    """Run the cell ordered on standard input. Exit status: 0 the run completed, 1 it failed."""
    order = CellOrder(**json.loads(sys.stdin.readline()))
    threading.Thread(target=end_when_abandoned, daemon=True).start()
    try:
        execute(order)
    except CasamError as error:
        print(f"error: {error}", flush=True)
        sys.exit(1)


def execute(order: CellOrder) -> None:
    """Run the order in this process. Raises CasamError."""
    if (code := code_fingerprint()) != order.code:
        raise RunError(f"code: the study runs {order.code}, this machine runs {code}; update one of them")
    scenario = Scenario.model_validate_json(order.scenario)
    data_root = Path(order.data_root) if order.data_root else None
    run = RunOrder(Engine(order.engine), data_root, Path(order.folder))
    run_scenario(scenario, run, console())


def end_when_abandoned() -> None:
    """End this process when the input closes, which happens when the sender of the order ends."""
    sys.stdin.read()
    os._exit(ABANDONED)


if __name__ == "__main__":
    main()
