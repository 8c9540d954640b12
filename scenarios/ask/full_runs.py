"""Full runs that answers are compared with: the same question, and institutions that remember nothing."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from casam_core.config.scenario import Scenario
from casam_core.files import write_atomic
from client.client_app import MADE_AS
from client.institution import Institution
from scenarios.ask.asking import Question
from scenarios.ask.replay import heard_run
from scenarios.engines import Engine
from scenarios.engines.public.frame_making import with_frame
from scenarios.engines.public.library_making import with_library
from scenarios.engines.run import Start


def begin(scenario: Scenario, folder: Path, data_root: Path | None) -> None:
    """A finished run, silently, with the files of `casam run`. Raises CasamError."""
    heard_run(with_library(with_frame(scenario)), folder, data_root)
    start = Start(Engine.inprocess.value, str(data_root or ""), ledger_dir="", checkpoint="")
    write_atomic(folder / "order.json", json.dumps(asdict(start)).encode())


def released_by(asked: Question, folder: Path, draw: int) -> dict[str, dict[str, float]]:
    """By institution and task, the IoU that leaves after the last stage of the changed scenario's run.

    Args:
        folder: of the run; it does not exist yet.
        draw: of the noise; 0 is the one of `casam run`.

    Raises:
        CasamError: with which the run ends.
    """

    class Fresh(Institution):
        pass

    Fresh.draw = draw
    token = MADE_AS.set(Fresh)
    try:
        found = heard_run(asked.new, folder, asked.data_root)
    finally:
        MADE_AS.reset(token)
    last = len(found.summary.tasks)
    return {
        name: {task: result.iou for task, result in results.items()}
        for name, results in found.results.items()
        if found.stages[name] == last
    }
