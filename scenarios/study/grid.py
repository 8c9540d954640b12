"""Run the missing cells of a study, several at the same time if cores allow. Failures are independent.

    DIR/study.json     the study: its cells with labels, seeds and digests
    DIR/runs/CELL/     one run folder per cell
    DIR/logs/CELL.log  the output of its run
    DIR/scores/        what the runs of the in-process engine share: scores of an image under a layer

A cell is finished if its run folder has a summary.json of its scenario. Finished cells do not run again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

from casam_core.errors import RunError, RunInputError
from casam_core.files import lock_file, write_atomic
from casam_core.protocol.fingerprint import code_fingerprint
from scenarios.engines import Engine
from scenarios.engines.preflight import Cost, Known, preflight
from scenarios.engines.run import with_absolute_checkpoint
from scenarios.study.cell import CellEnd, CellOrder, Cells
from scenarios.study.pace import Pace
from scenarios.study.study import Cell, Plan
from server.run.summary_schema import FILE, read_json, read_summary

Said = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """Where and how the cells of a study run. folder, data_root: absolute."""

    folder: Path
    data_root: Path | None
    engine: Engine = Engine.inprocess

    def run_folder(self, cell: Cell) -> Path:
        """The cell's run folder."""
        return self.folder / "runs" / cell.name

    def order(self, cell: Cell) -> CellOrder:
        """The order for the cell's process."""
        scenario = with_absolute_checkpoint(cell.scenario, self.data_root)
        return CellOrder(
            name=cell.name,
            scenario=scenario.model_dump_json(),
            engine=self.engine.value,
            data_root=str(self.data_root) if self.data_root else None,
            folder=str(self.run_folder(cell)),
            log=str(self.folder / "logs" / f"{cell.name}.log"),
            code=code_fingerprint(),
            scores=str(self.folder / "scores"),
        )


def costs(cells: Sequence[Cell], data_root: Path | None, progress: Said) -> dict[str, Cost]:
    """Upper bounds of the work of every cell, by its name. The first cell that needs an image encodes it.

    Reads all data. Raises CasamError if something is missing or broken.
    """
    known: Known = {}
    seen: set[tuple[str, ...]] = set()
    found = {}
    for cell in cells:
        scenario = with_absolute_checkpoint(cell.scenario, data_root)
        before, images = set(known), len(seen)
        cost = preflight(scenario, data_root, progress, known)
        for key in set(known) - before:
            seed, institution, task, *_ = key
            spec = scenario.institution(institution).data[task]
            source = spec.path or f"phantom {spec.phantom} {spec.size} of seed {seed}"
            split = known[key]
            seen |= {(institution, source, sample.id) for sample in (*split.train, *split.val, *split.test)}
        found[cell.name] = replace(cost, encodes=len(seen) - images)
    return found


def estimate(work: Sequence[tuple[Cost, Pace]], jobs: int) -> float:
    """Minutes for all cells together, with `jobs` at the same time."""
    seconds = [pace.seconds(cost) for cost, pace in work]
    return max(sum(seconds) / jobs, *seconds) / 60


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def claim(setting: Setting, plan: Plan, source: str) -> None:
    """Write study.json into the study's folder. source: the file or scenario of the study.

    Raises RunInputError if the folder holds another study, or results of other data or code.
    """
    folder = setting.folder
    about = {
        "schema": 1,
        "study": plan.study.model_dump(mode="json"),
        "source": source,
        "data_root": str(setting.data_root) if setting.data_root else None,
        "code": code_fingerprint(),
        "left_out": list(plan.left_out),
        "cells": [
            {
                "name": cell.name,
                "labels": dict(cell.labels),
                "seed": cell.seed,
                "scenario_digest": cell.scenario.digest(),
                "run": f"runs/{cell.name}",
            }
            for cell in plan.cells
        ],
    }
    file = folder / "study.json"
    if file.exists():
        there = read_json(file)
        for key, what in (("data_root", "data folder"), ("code", "version of the code")):
            if there.get(key) != about[key]:
                raise RunInputError(f"{folder} holds results of another {what}; choose another --out")
        if there["study"]["name"] != plan.study.name:
            raise RunInputError(f"{folder} holds the study {there['study']['name']!r}; choose another --out")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunInputError(f"{folder}: expected a new or empty folder for the study, found files")
    for part in ("runs", "logs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_atomic(file, (json.dumps(about, indent=2) + "\n").encode())


def finished(setting: Setting, cell: Cell) -> bool:
    """Whether the cell's run is complete. Raises RunInputError if its folder holds another scenario's run."""
    folder = setting.run_folder(cell)
    if not (folder / FILE).exists():
        return False
    if read_summary(folder).scenario_digest != cell.scenario.digest():
        raise RunInputError(
            f"{folder} holds a run of another scenario than this study's; remove it or choose another --out"
        )
    return True


def run_cells(
    setting: Setting,
    cells: Sequence[Cell],
    jobs: int,
    where: Cells,
    started: Callable[[Cell], None],
    ended: Callable[[Cell, CellEnd], None],
) -> dict[str, str]:
    """Run `cells`, `jobs` at the same time. Returns the reason of each failure, by the cell's name.

    started, ended: called in this thread when a cell begins or ends. After an exception here (Ctrl-C) no more
    cells begin, and the running ones are ended.
    """
    reasons = {}
    waiting = list(cells)
    running: dict[Future[CellEnd], Cell] = {}
    pool = ThreadPoolExecutor(max_workers=jobs)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running[pool.submit(run_cell, setting, cell, where)] = cell
                started(cell)
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                cell, end = running.pop(future), future.result()
                if end.reason:
                    reasons[cell.name] = end.reason
                ended(cell, end)
    except BaseException:
        where.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return reasons


def run_cell(setting: Setting, cell: Cell, where: Cells) -> CellEnd:
    """Run a cell, unless another process has finished it meanwhile. Its log is the lock.

    Raises RunError if another process runs it now.
    """
    order = setting.order(cell)
    try:
        with lock_file(Path(order.log)):
            if finished(setting, cell):
                return CellEnd(cell.name, "", 0.0)
            # A folder without a summary is the rest of an interrupted run.
            shutil.rmtree(setting.run_folder(cell), ignore_errors=True)
            return where.run(order)
    except BlockingIOError as error:
        raise RunError(f"{order.folder}: another process runs it now; call again later") from error
