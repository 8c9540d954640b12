"""One cell of a study: as a separate process, so that a crash does not affect the others, or in this one.

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
from casam_core.config.site_file import simulated_task
from casam_core.errors import CasamError, RunError
from casam_core.methods import METHODS
from casam_core.model.backbones import load_backbone
from casam_core.model.compute import resolve_compute
from casam_core.model.embeddings import EmbeddingStore
from casam_core.protocol.fingerprint import code_fingerprint
from client.data.splits import simulated_key
from client.data.task_data import open_task
from client.site import simulated_store
from scenarios.ask.remembering import scores_shared
from scenarios.engines import Engine
from scenarios.engines.order import RunOrder
from scenarios.engines.run import run_scenario
from scenarios.printing import console

ABANDONED = 75


@dataclass(frozen=True)
class CellOrder:
    """The order for a cell's process.

    scenario: as JSON, with its checkpoint. folder: the run folder, absolute. log: file for the run's output.
    code: fingerprint of the code that gave the order. scores: folder of scores that runs share.
    """

    name: str
    scenario: str
    engine: str
    data_root: str | None
    folder: str
    log: str
    code: str
    scores: str


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


class CellsHere:
    """Runs each cell in this process, one at a time: no start of a process, no second copy of the backbone.

    A crash ends the study's command; the finished runs stay.
    """

    def run(self, order: CellOrder) -> CellEnd:
        """Run a cell; its failure is returned, not raised."""
        start, reason = time.monotonic(), ""
        with Path(order.log).open("w") as log, contextlib.redirect_stdout(log):
            try:
                execute(order)
            except CasamError as error:
                reason = str(error)
                print(f"error: {reason}")
        return CellEnd(order.name, reason, time.monotonic() - start)

    def stop(self) -> None:
        """Nothing: the run under way ends by itself."""


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
    run = RunOrder(Engine(order.engine), data_root, Path(order.folder), checked=True)
    encode(scenario, data_root)
    with scores_shared(Path(order.scores), scenario):
        run_scenario(scenario, run, console())


def encode(scenario: Scenario, data_root: Path | None) -> None:
    """Encode the images that a run learns from, so that its seconds of learning hold no encoding.

    Else the first run of a seed would pay for all methods. Raises DataError.
    """
    if not METHODS[scenario.method].learns:
        return
    backbone = load_backbone(scenario.backbone, resolve_compute(scenario.compute))
    for site in scenario.institutions:
        store = EmbeddingStore(simulated_store(site.name))
        for task, spec in site.data.items():
            if task not in scenario.stream:
                continue
            data = open_task(
                simulated_task(spec, scenario.seed),
                task=task,
                institution=site.name,
                data_root=data_root,
                store=store,
                key=simulated_key(scenario.seed, site.name),
                policy=site.policy,
            )
            for part in ("train", "val"):
                data.encode(data.split.part(part), backbone, lambda done, total: None)


def end_when_abandoned() -> None:
    """End this process when the input closes, which happens when the sender of the order ends."""
    sys.stdin.read()
    os._exit(ABANDONED)


if __name__ == "__main__":
    main()
