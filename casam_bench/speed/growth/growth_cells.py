"""How cost grows: 9 to 10,000 institutions in a run, 1 to 10,000 tasks in a bank.

Every size is a cell: a process of its own that measures, and a file that keeps what it found, so an
interrupted call goes on. Cells depend on the code; a changed product measures anew. Seconds are
those of the processor, because other work on the machine stretches the wall's.

An institution of the run has one small image on the tiny backbone, so the figures are what the protocol,
the server and the institutions' files cost. The bank's entries are copies of one entry under other names.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from time import process_time

from casam_bench.bench import Engines, Figures, Surroundings, csv_of, table_of
from casam_bench.speed.evaluate import INSTITUTION, TRAIN, Side, name_of
from casam_bench.speed.evaluate import scenario_of as scenario_of_stages
from casam_bench.speed.growth.growth_model import Point, models_of
from casam_bench.speed.memory import anonymous, peak_of
from casam_bench.speed.scale import scenario_of
from casam_bench.synthetic import coloured_task, fresh_store, tiny
from casam_core.bank.bank import SCHEMA, Bank
from casam_core.bank.entries import make_entry
from casam_core.bank.entry_file import digest_of
from casam_core.config.scenario import Scenario
from casam_core.errors import RunError
from casam_core.files import make_folder, write_atomic, write_new
from casam_core.model.forms import build_layer, weights_of
from casam_core.protocol.fingerprint import code_fingerprint
from casam_core.routing.routers import build_router
from casam_core.routing.threshold import learn_alone
from client.evaluation.own_entries import KnownEntries

INSTITUTIONS = (9, 30, 100, 300, 1000, 3000, 10_000)
TASKS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
SMOKE = 30
SAMPLE_SECONDS = 0.1

Cell = dict[str, float]
"""Figures by quantity."""


def run(around: Surroundings) -> Figures:
    """Figures QUANTITY_N of every cell, and worst_QUANTITY: the largest error of the model (growth_model.py)
    at a size that it was not fitted to, as a share. All points are in growth.csv in the folder of cells."""
    home = (around.parts or around.home) / "growth" / code_fingerprint()
    work: dict[str, Callable[[int], Callable[[Path], Cell]]] = {
        "institutions": lambda count: partial(cell_of_institutions, around.engines, count),
        "tasks": lambda count: partial(cell_of_tasks, count),
    }
    points = []
    for over, sizes in (("institutions", INSTITUTIONS), ("tasks", TASKS)):
        for count in sizes:
            if around.smoke and count > SMOKE:
                continue
            around.say(f"growth: {count} {over}")
            found = kept(home / f"{over}-{count}.json", work[over](count))
            points += [Point(over, quantity, count, value) for quantity, value in found.items()]
    write_atomic(home / "growth.csv", csv_of(Point, points).encode())
    table = table_of(
        "cost = base + each x n", ("quantity", "over", "base", "each", "worst, held out"), left=2
    )
    figures: Figures = {f"{point.quantity}_{point.size}": point.value for point in points}
    for model in models_of(points):
        figures[f"worst_{model.quantity}"] = model.worst
        cells = (f"{model.base:.3g}", f"{model.each:.3g}", f"{model.worst:.0%}")
        table.add_row(model.quantity, model.over, *cells)
    around.show(table)
    around.say(f"growth: all points are in {home / 'growth.csv'}")
    return figures


def kept(file: Path, measure: Callable[[Path], Cell]) -> Cell:
    """The cell in `file`; it is measured in a new process if there is none. Raises RunError."""
    if not file.exists():
        with tempfile.TemporaryDirectory(prefix="casam-bench-") as folder:
            found = in_a_process(measure, Path(folder))
        make_folder(file.parent)
        write_atomic(file, json.dumps(found, indent=2).encode())
    cell: Cell = json.loads(file.read_text())
    return cell


def in_a_process(measure: Callable[[Path], Cell], folder: Path) -> Cell:
    """What `measure` finds in a process that has measured nothing yet. Raises RunError if it fails."""
    start = multiprocessing.get_context("spawn")
    ours, theirs = start.Pipe(duplex=False)
    process = start.Process(target=answer, args=(measure, folder, theirs))
    process.start()
    theirs.close()
    try:
        found: Cell = ours.recv()
    except EOFError as error:
        raise RunError(f"growth: the measuring process ended without figures ({measure})") from error
    finally:
        process.join()
    return found


def answer(measure: Callable[[Path], Cell], folder: Path, pipe: Connection) -> None:
    """The work of the new process."""
    pipe.send(measure(folder))


def cell_of_institutions(engines: Engines, count: int, folder: Path) -> Cell:
    """run_seconds: of the whole run in one process. run_mib: peak of its anonymous memory."""
    scenario = scenario_of(count, stages=1)
    with peak_of(anonymous, SAMPLE_SECONDS) as peak:
        begun = process_time()
        engines.inprocess(scenario, folder / "run")
        seconds = process_time() - begun
    return {"run_seconds": seconds, "run_mib": max(peak[0], anonymous()) / 2**20}


def cell_of_tasks(count: int, folder: Path) -> Cell:
    """One institution with one test image and a bank of `count` entries.

    open_ms: open the bank and read all heads, the first time in a process. score_ms: route and segment an
    image that no entry has scored. stage_ms: the same once more, as at a stage that changes nothing for it.
    task_mib: anonymous memory after all of it.
    """
    scenario, backbone = scenario_of_stages(1), tiny(1)
    data = coloured_task(0, train=TRAIN, test=1, store=fresh_store(folder))
    make_bank(scenario, count, folder / "bank")
    data.features(data.split.test, backbone, scenario.router.features)  # encodes it
    begun = process_time()
    known = KnownEntries(Bank.open(folder / "bank"))
    opened = process_time()
    side = Side(scenario, backbone, folder / "side")
    side.evaluate([data], known)
    scored = process_time()
    side.evaluate([data], KnownEntries(Bank.open(folder / "bank")))
    again = process_time()
    return {
        "open_ms": 1e3 * (opened - begun),
        "score_ms": 1e3 * (scored - opened),
        "stage_ms": 1e3 * (again - scored),
        "task_mib": anonymous() / 2**20,
    }


def make_bank(scenario: Scenario, count: int, folder: Path) -> None:
    """A bank of `count` entries that differ in their names.

    Bank.add writes the manifest for each of them, as a stream of stages does; here it is written once.
    """
    backbone = tiny(1)
    data = coloured_task(0, train=TRAIN, test=1, store=fresh_store(folder.with_name("made")))
    f_NF = data.features(data.split.train, backbone, scenario.router.features)
    state, threshold = learn_alone(build_router(scenario.router), f_NF, scenario.router, 1)
    layer = weights_of(build_layer(scenario.alignment, backbone.geometry.channels, 1))
    make_folder(folder / "entries")
    listed = []
    for number in range(count):
        entry = make_entry(
            scenario,
            backbone.digest,
            task=name_of(number),
            stage=number + 1,
            layer=layer,
            improved=True,
            holders=(INSTITUTION,),
            images=TRAIN,
            router=state,
            threshold=threshold,
        )
        content = entry.to_bytes()
        listed.append({"task": entry.task, "sha256": digest_of(content)})
        write_new(folder / "entries" / f"{digest_of(content)}.entry", content)
    write_new(folder / "manifest.json", json.dumps({"schema": SCHEMA, "entries": listed}).encode())
