"""`casam run`: resolve and check a scenario, run it with one engine, show the results."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from casam_core.config.scenario import Scenario
from casam_core.config.toml import read_scenario
from casam_core.errors import RunError, RunInputError
from casam_core.files import casam_home, write_new
from casam_core.model.backbones import load_backbone
from casam_core.protocol.fingerprint import ROOT
from scenarios.engines import Engine
from scenarios.engines.flower import FlowerRun, run_flower_app
from scenarios.engines.inprocess import run_inprocess
from scenarios.engines.live import LineWriter, View, live_view, logged
from scenarios.engines.order import RunOrder, choose_folder, data_folder, folder_in_use, nothing_to_resume
from scenarios.engines.preflight import preflight
from scenarios.engines.public.frame_making import with_frame
from scenarios.engines.public.library_making import with_library
from scenarios.engines.workers import grid_with
from scenarios.report.bank_card import write_card
from server.run.run_folder import RunFolder
from server.run.summary_schema import Summary, read_summary

RAY_ADDRESS = "CASAM_RAY_ADDRESS"
"""Environment variable with the HOST:PORT of a Ray cluster to simulate on; Ray's own variable is ignored."""

SPLITS = {"test": "test", "val": "validation"}


@dataclass(frozen=True)
class Start:
    """An engine's settings, stored in the run folder as order.json, so that the run can be resumed.

    They are facts of this machine, not of the scenario. checkpoint: the backbone's file, absolute.
    workers: processes of the in-process engine.
    """

    engine: str
    data_root: str
    ledger_dir: str
    checkpoint: str
    workers: int = 1


def run_scenario(scenario: Scenario, order: RunOrder, console: Console) -> Path:
    """Run the scenario and return the run folder. Raises CasamError; then no summary.json exists."""
    check_engine(order.engine)
    data_root = data_folder(order.data_root)
    ledgers = order.ledgers.expanduser().resolve() if order.ledgers else None
    scenario, folder = prepare(scenario, data_root, order.out, console, checked=order.checked)
    start = Start(
        order.engine.value,
        data_root=str(data_root or ""),
        ledger_dir=str(ledgers or ""),
        checkpoint=scenario.backbone.checkpoint or "",
        workers=order.workers,
    )
    try:
        write_new(folder / "order.json", (json.dumps(asdict(start), indent=2) + "\n").encode())
    except FileExistsError as error:  # another run took the folder while this one read its data
        raise folder_in_use(folder) from error
    run_engine(scenario, folder, start, console)
    write_card(folder)
    return folder


def check_engine(engine: str) -> None:
    """Raise RunInputError if the packages of the engine are not installed."""
    if engine == Engine.simulation and importlib.util.find_spec("ray") is None:
        raise RunInputError(
            "the simulation engine needs Ray, which is not installed; run: pip install 'casam[simulation]', "
            "or use --engine inprocess"
        )


def prepare(
    scenario: Scenario, data_root: Path | None, out: Path | None, console: Console, *, checked: bool = False
) -> tuple[Scenario, Path]:
    """Read all data, unless they are `checked`, print the cost and make the run folder. Raises CasamError.

    Returns:
        The scenario with an absolute checkpoint path and its public files, and the new folder: `out`, or one
        in runs/.
    """
    scenario = with_absolute_checkpoint(scenario, data_root)
    folder = choose_folder(scenario, out)
    if not checked:
        with console.status("checking data") as status:
            cost = preflight(scenario, data_root, lambda name: status.update(f"checking data: {name}"))
        for line in (f"{scenario.name}: {cost}", *(f"hint: {advice}" for advice in cost.advice)):
            console.print(line, highlight=False, soft_wrap=True)
    with console.status("making the public files of the backbone"):
        scenario = with_library(with_frame(scenario))
    folder.mkdir(parents=True, exist_ok=True)
    return scenario, folder


def resume_run(folder: Path, console: Console) -> Path:
    """Continue an interrupted run with the settings of its start. Raises CasamError."""
    folder = folder.expanduser().resolve()
    try:
        start = Start(**json.loads((folder / "order.json").read_text()))
        scenario = read_scenario(folder / "scenario.json")
        check_engine(Engine(start.engine))
    except (OSError, ValueError, TypeError) as error:
        raise nothing_to_resume(folder) from error
    RunFolder(folder, scenario).close()  # refuses what no engine can continue, before one starts
    backbone = scenario.backbone.model_copy(update={"checkpoint": start.checkpoint or None})
    run_engine(scenario.model_copy(update={"backbone": backbone}), folder, start, console, resume=True)
    write_card(folder)
    return folder


def run_engine(
    scenario: Scenario, folder: Path, start: Start, console: Console, *, resume: bool = False
) -> None:
    """Let the chosen engine run the scenario into `folder`."""
    with live_view(console) as show:
        if start.engine == Engine.inprocess:
            # Our own lines name the institutions that trained; Flower's strategies would repeat it.
            logging.getLogger("flwr").setLevel(logging.WARNING)
            try:
                with contextlib.redirect_stdout(LineWriter(show)):
                    data_root = Path(start.data_root) if start.data_root else None
                    ledgers = Path(start.ledger_dir) if start.ledger_dir else None
                    grid_of = grid_with(start.workers)
                    run_inprocess(scenario, folder, data_root, ledgers, resume=resume, grid_of=grid_of)
            except RunError as error:
                raise RunError(f"the run failed: {error}; details in {own_logs(folder)}") from error
        else:
            run_simulation(scenario, folder, start, show, resume=resume)


def with_absolute_checkpoint(scenario: Scenario, data_root: Path | None) -> Scenario:
    """A relative checkpoint starts from --data-root, else here; Flower's processes run in other folders."""
    if scenario.backbone.checkpoint is None:
        return scenario
    path = (data_root or Path.cwd()) / Path(scenario.backbone.checkpoint).expanduser()
    backbone = scenario.backbone.model_copy(update={"checkpoint": str(path)})
    return scenario.model_copy(update={"backbone": backbone})


def run_simulation(scenario: Scenario, folder: Path, start: Start, show: View, *, resume: bool) -> None:
    """A real `flwr run` on this machine, one SuperNode per institution. Raises RunError if it failed."""
    settings = settings_of(scenario, folder) | {
        "resume": resume,
        "data-root": start.data_root,
        "ledger-dir": start.ledger_dir,
        "checkpoint": start.checkpoint,
    }
    show("casam | server | starts Flower and its workers; the first answer takes about half a minute")
    # The workers load their own copies; this process no longer needs its backbone.
    load_backbone.cache_clear()
    with (
        logged(show, folder / "flower.log") as on_line,
        tempfile.TemporaryDirectory(prefix="casam-") as home,
    ):
        run = run_flower_app(
            ROOT,
            settings,
            nodes=len(scenario.institutions),
            cpus_per_node=min(scenario.compute.threads, os.cpu_count() or 1),
            home=Path(home),
            on_line=on_line,
            ray_address=os.environ.get(RAY_ADDRESS),
            cards=cards_for(scenario.compute.device),
        )
    check_completed(run, folder, f"{folder / 'flower.log'} and in {own_logs(folder)}")


def cards_for(device: str) -> int:
    """CUDA cards that the workers of a simulation may share; 0 if the scenario names one, or none.

    Parts of a card (MIG) are used as they are: the driver shows a process one of them.
    """
    if device not in ("auto", "cuda") or "MIG" in os.environ.get("CUDA_VISIBLE_DEVICES", ""):
        return 0
    return torch.cuda.device_count()


def settings_of(scenario: Scenario, folder: Path) -> dict[str, str | int | float | bool]:
    """Flower's run config for this scenario and run folder."""
    return {"scenario": scenario.canonical_json(), "out": str(folder.parent), "run": folder.name}


def check_completed(run: FlowerRun, folder: Path, details: str, result: str = "summary.json") -> None:
    """Raise RunError with the reason if the run did not complete.

    details: the files that say more. result: the file that a completed run has written.
    """
    if not run.ok or not (folder / result).exists():
        raise RunError(f"{why_failed(folder, run.status)}; details in {details}")


def own_logs(folder: Path) -> str:
    """The log files in which a simulation's institutions wrote why they gave no result."""
    sites, nodes = folder / "institutions" / "*" / "private" / "site.log", casam_home() / "node-*.log"
    return f"the institutions' own logs ({sites}, {nodes})"


def why_failed(folder: Path, status: str) -> str:
    """The reason that the server recorded since it started; without one, Flower's status."""
    events = folder / "events.jsonl"
    lines = events.read_text().splitlines() if events.exists() else []
    for line in reversed(lines):
        with contextlib.suppress(json.JSONDecodeError):  # a line torn by a crash
            event = json.loads(line)
            if event["event"] == "failed":
                return f"the run failed: {event['reason']}"
            if event["event"] == "start":  # an earlier reason is not that of the resumed run
                break
    return f"the run failed (Flower says {status})"


def show_results(folder: Path, console: Console) -> None:
    """Print the matrix, the headline figures and, as the last line, the run folder."""
    summary = read_summary(folder)
    tasks = summary.tasks
    table = Table(title=f"{summary.scenario}: IoU on {SPLITS[summary.evaluated_on]} images")
    table.add_column("after stage")
    for task in tasks:
        table.add_column(task, justify="right")
    table.add_row("frozen SAM", *(cell(summary.zero_shot["iou"].get(task)) for task in tasks))
    for number, row in enumerate(summary.matrix["iou"], 1):
        table.add_row(f"{number} {tasks[number - 1]}", *map(cell, row))
    console.print(table)
    console.print(headline(summary), highlight=False, soft_wrap=True)
    console.print(f"For a report as a web page: casam report {folder}", highlight=False, soft_wrap=True)
    console.print(f"Run folder: {folder}", highlight=False, soft_wrap=True)


def headline(summary: Summary) -> str:
    """One line: quality, forgetting, routing."""
    return (
        f"Last IoU {cell(summary.last_iou)}   average IoU {cell(summary.avg_iou)}   "
        f"forgetting {cell(summary.ff_iou, digits=2)} points   "
        f"routing accuracy {cell(summary.routing.accuracy)}   "
        f"sent to frozen SAM by mistake {cell(summary.routing.false_unknown_rate)}"
    )


def cell(value: float | None, digits: int = 3) -> str:
    """A figure, or a dash if there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
