"""`casam bench`: measure on this machine what the documentation quotes."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casam_core.errors import RunError, ScenarioError
from casam_core.files import write_atomic
from scenarios.commands.terminal import needs_folder
from scenarios.printing import console

if TYPE_CHECKING:
    from casam_bench.bench import Benchmark
    from casam_core.config.scenario import Scenario
    from casam_core.model.backbones import Backbone


class CasamEngines:
    """How benchmarks run scenarios and Flower apps (casam_bench.bench.Engines)."""

    def inprocess(self, scenario: Scenario, folder: Path, workers: int = 1) -> None:
        """A complete run in this process, or in several, without output."""
        from scenarios.engines.inprocess import run_inprocess
        from scenarios.engines.workers import grid_with

        logging.getLogger("flwr").setLevel(logging.WARNING)
        with contextlib.redirect_stdout(io.StringIO()):
            run_inprocess(scenario, folder, None, grid_of=grid_with(workers))

    def simulation(self, scenario: Scenario, folder: Path) -> None:
        """The same by a real `flwr run`."""
        from scenarios.engines import Engine
        from scenarios.engines.run import Start, check_engine, run_simulation

        check_engine(Engine.simulation)
        folder.mkdir(parents=True)
        start = Start(Engine.simulation.value, data_root="", ledger_dir="", checkpoint="")
        run_simulation(scenario, folder, start, lambda line: None, resume=False)

    def begin(self, scenario: Scenario, folder: Path, data_root: Path | None) -> None:
        """A run that questions can be asked about, as `casam run` leaves it."""
        from scenarios.ask.replay import begin

        begin(scenario, folder, data_root)

    def ask(self, run: Path, settings: Sequence[str], seconds: float) -> dict[str, Any]:
        """What `casam ask RUN --json` prints with these settings, from a new process."""
        from scenarios.ask.own_process import Asking

        return dict(Asking(run, settings, seconds).answer())

    def changed_run(
        self, run: Path, settings: Sequence[str], folder: Path, draw: int
    ) -> dict[str, dict[str, float]]:
        """The IoU by institution and task that a full run with these settings releases."""
        from scenarios.ask.asking import question
        from scenarios.ask.replay import released_by

        return released_by(question(run, settings), folder, draw)

    def layer_library(
        self, backbone: Backbone, without: Collection[str], say: Callable[[str], None]
    ) -> bytes:
        """The file of a library of low_rank layers, made without the phantoms of these modalities."""
        from casam_core.config.named_parts import LowRankSpec
        from scenarios.engines.public.library_making import library_for

        return library_for(backbone, LowRankSpec(), say, without)

    def flower_app(
        self,
        app: Path,
        settings: Mapping[str, str | int | float | bool],
        nodes: int,
        say: Callable[[str], None],
    ) -> None:
        """Any Flower app by a real `flwr run`. Raises RunError when it failed."""
        from scenarios.engines.flower import run_flower_app

        with tempfile.TemporaryDirectory(prefix="casam-") as home:
            ended = run_flower_app(app, settings, nodes=nodes, home=Path(home), on_line=say)
        if not ended.ok:
            raise RunError(f"the Flower app in {app} failed (Flower says {ended.status})")


def bench(
    name: Annotated[str | None, typer.Argument(help="A benchmark. Default: list all of them.")] = None,
    all_: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Run all benchmarks except those that run by name only: they take hours, or need a card.",
        ),
    ] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Run the fastest benchmarks at their smallest sizes.")
    ] = False,
    json_: Annotated[
        Path | None, typer.Option("--json", help="Write {benchmark: {figure: number}} to this file.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Fail if a ratio is 20 % below the one stored in this file.")
    ] = None,
    new_baseline: Annotated[Path | None, typer.Option(help="Store this run's ratios in this file.")] = None,
    home: Annotated[
        Path | None, typer.Option(help="Folder of stored embeddings. Default: below $CASAM_HOME.")
    ] = None,
    images: Annotated[
        int, typer.Option(min=8, help="Skip rows with more training images per task, to save hours.")
    ] = 256,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 1,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of real datasets, for the benchmarks that need them.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="gpu: write a Chrome trace of a training and its ten heaviest kernels here."),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=0, help="Use the seeds below this number (disasters: default 2000, clicks: 5).")
    ] = 0,
) -> None:
    """Run one benchmark, or several. A ratio compares two sides that took turns in one process.

    For example: casam bench --smoke --json figures.json

    The --json file is written after every benchmark, so that an interrupted call keeps its results. Its key
    `machine` holds the environment and the speed of the machine. gpu keeps its parts beside it, in a folder
    that ends with .parts; with this folder the same call measures only what is missing.
    """
    from casam_bench import BENCHMARKS, MACHINE, SMOKE
    from casam_bench.bench import Figures, Surroundings
    from casam_bench.regression import guard, read_baseline, write_baseline
    from casam_core.files import casam_home

    if name is None and not all_ and not smoke:
        list_benchmarks(BENCHMARKS)
        return
    if name is not None and name not in BENCHMARKS:
        raise ScenarioError(f"benchmark: expected one of {', '.join(BENCHMARKS)}, found {name!r}")
    needs_folder("--json", json_)
    stored = read_baseline(baseline) if baseline is not None else {}
    if unknown := stored.keys() - BENCHMARKS.keys():
        raise ScenarioError(f"--baseline: expected benchmarks of this version, found {sorted(unknown)}")
    screen = console()
    around = Surroundings(
        home=home if home is not None else casam_home() / "bench",
        images=images,
        threads=threads,
        say=lambda line: screen.print(line, highlight=False),
        show=screen.print,
        engines=CasamEngines(),
        smoke=smoke,
        data_root=data_root,
        parts=json_.with_suffix(".parts") if json_ is not None else None,
        trace=trace,
        seeds=seeds,
    )

    def measure(benchmark: str) -> Figures:
        screen.print(f"{benchmark}: {BENCHMARKS[benchmark].description}", highlight=False)
        return BENCHMARKS[benchmark].run(around)

    quick = [known for known, benchmark in BENCHMARKS.items() if not benchmark.by_name]
    wanted = [name] if name is not None else quick if all_ else SMOKE
    figures: dict[str, Figures] = {}

    def keep() -> None:
        if json_ is not None:
            write_atomic(json_, (json.dumps(figures, indent=2) + "\n").encode())

    for each in dict.fromkeys([MACHINE, *wanted]):
        figures[each] = measure(each)
        keep()
    if new_baseline is not None:
        write_baseline(new_baseline, figures)
    try:
        guard(stored, measure, figures, around.say)
    finally:
        keep()


def list_benchmarks(benchmarks: Mapping[str, Benchmark]) -> None:
    """One line each."""
    for name, benchmark in benchmarks.items():
        typer.echo(f"{name:<14} {benchmark.description}{' (by name only)' if benchmark.by_name else ''}")
