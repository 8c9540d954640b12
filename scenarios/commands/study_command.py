"""`casam study`, `casam compare`: run all combinations and compare. `casam ask`: predict one change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from casam_core.errors import RunError, RunInputError, ScenarioError, StudyError
from scenarios.commands.terminal import DataRoot, Json, OfScenario, at_ctrl_c, print_json
from scenarios.engines import Engine
from scenarios.printing import console, say

if TYPE_CHECKING:
    from rich.console import Console

    from scenarios.study.cell import Cells
    from scenarios.study.grid import Setting
    from scenarios.study.study import Cell, Plan, Study

OfAllRuns = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key in all runs.")
]


def study(
    name: Annotated[
        str,
        typer.Argument(metavar="STUDY", help="A name that `casam studies` lists, or a path to a .toml file."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the study; finished runs in it are kept. Default: studies/<name>."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at the same time. Default: as many as the cores allow.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Base folder of the scenarios' relative data paths.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds separated by commas, instead of the study's.")
    ] = None,
    set_: OfAllRuns = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="AXIS=LABEL,...", help="Run this part of the study only; may be repeated."),
    ] = None,
    engine: Annotated[Engine, typer.Option(help="As for `casam run`.")] = Engine.inprocess,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on this existing Ray cluster, e.g. auto.")
    ] = None,
    here: Annotated[
        bool, typer.Option(help="Run one after the other in this process; this saves the start of each run.")
    ] = False,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Print the runs and their cost, then exit.")
    ] = False,
) -> None:
    """Run every combination of a study and compare the results. A second call runs only what is missing.

    For example: casam study shared-task --plan

    Writes results.csv and .parquet, summary.md and plots into its folder. A failed run does not stop the
    others. Exit status: 0 all runs finished, 1 some failed, 2 bad input (and no file was written).
    """
    from scenarios.engines.order import data_folder
    from scenarios.study.study import plan_study, study_path

    root, path = data_folder(data_root), study_path(name)
    plan = plan_study(path, with_data=root is not None, overrides=set_ or (), seeds=parse_seeds(seeds))
    say(console(), f"{plan.study.name}: {len(plan.cells)} runs; starts")
    carry_out(
        plan,
        path.name,
        out or Path("studies") / plan.study.name,
        Options(root, engine, jobs, ray, plan_only, tuple(only or ()), here),
    )


def ask(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="Folder of a finished run of `casam run`; or a scenario, for its newest run in --runs.",
        ),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="What would be different; may be given several times."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds that the answer may take.")] = 30.0,
    draws: Annotated[int, typer.Option(min=1, help="Largest number of draws of the noise.")] = 5,
    runs: Annotated[Path, typer.Option(help="Folder where casam looks for runs of a scenario.")] = Path(
        "runs"
    ),
    json_: Json = False,
) -> None:
    """Say within seconds what another policy would give: who gains or loses, epsilon, what is not known.

    For example: casam ask mixed-policy --set institutions.heart-centre.policy.budget.epsilon=3

    It replays the run with what this machine computed before, so it needs the private files of a simulation.
    Exit status: 0 answered, 1 no answer in time, 2 bad input.
    """
    from scenarios.ask.which_run import run_of

    folder, screen = run_of(run, runs), console(stderr=True)  # before the slow imports
    from scenarios.ask.asking import question

    asked = question(folder, set_ or ())
    with screen.status("replaying"):
        from scenarios.ask.answering import answer
        from scenarios.ask.answers import answer_lines

        found = answer(asked, seconds=seconds, draws=draws)
    if json_:
        print_json(found.as_json())
        return
    for line in answer_lines(found):
        typer.echo(line)


def compare(
    scenario: OfScenario,
    out: Annotated[Path, typer.Option(help="Folder of the comparison; finished runs in it are kept.")],
    methods: Annotated[str, typer.Option(help="all, or method names separated by commas.")] = "all",
    seeds: Annotated[str, typer.Option(help="Seeds separated by commas.")] = "0",
    data_root: DataRoot = None,
    set_: OfAllRuns = None,
    engine: Annotated[Engine, typer.Option(help="As for `casam run`.")] = Engine.inprocess,
    tune: Annotated[
        str | None,
        typer.Option(
            help="Learning-rate factors, e.g. 0.3,1,3. Each method uses the one that is best on validation "
            "images."
        ),
    ] = None,
) -> None:
    """Compare methods on a scenario: run it with every method and every seed.

    For example: casam compare quickstart --methods casam,sequential --seeds 0,1 --out comparison

    Runs take turns, so that their seconds of learning can be compared. All methods get the scenario's
    training budget and, with --tune, the same tries under the first seed, judged on validation images only.
    """
    from casam_core.config.library import resolve_scenario
    from scenarios.engines.order import data_folder
    from scenarios.study.study import plan_of

    root, changes = data_folder(data_root), set_ or ()
    name = resolve_scenario(scenario, changes).name
    study = comparison_of(name, scenario, methods, parse_seeds(seeds) or [0], parse_factors(tune))
    plan = plan_of(study, Path("casam compare"), with_data=root is not None, overrides=changes)
    carry_out(plan, scenario, out, Options(root, engine, jobs=1))


def comparison_of(
    name: str, scenario: str, methods: str, seeds: Sequence[int], factors: Sequence[float]
) -> Study:
    """A study that compares every method with the first one.

    Raises ScenarioError for an unknown method, StudyError for a method or seed that stands twice.

    Args:
        name: The scenario's name.
        scenario: The scenario's name or path, as on the command line.
        methods: `all`, or names separated by commas.
        seeds: Every method runs under each seed.
        factors: Multiples of the learning rate to choose from; if empty, each method uses its default rate.
    """
    from casam_core.methods import METHODS, method_of
    from scenarios.study.study import Comparison, study_of

    names = list(METHODS) if methods == "all" else [name.strip() for name in methods.split(",")]
    for method in names:
        method_of(method)
    first = Comparison(
        axis="method", baseline=names[0], question=f"How do other methods compare with {names[0]}?"
    )
    return study_of(
        {
            "name": f"compare-{name}"[:48],
            "description": f"The scenario {name} under {len(names)} methods.",
            "scenario": scenario,
            "axes": {"method": names},
            "seeds": list(seeds),
            "tune": list(factors),
            "comparisons": [first] if len(names) > 1 else [],
        },
        "casam compare",
    )


@dataclass(frozen=True)
class Options:
    """How the runs of a study are made. data_root: absolute. only: the part to run (`chosen`). here: in
    this process."""

    data_root: Path | None
    engine: Engine
    jobs: int | None = None
    ray: str | None = None
    plan_only: bool = False
    only: tuple[str, ...] = ()
    here: bool = False


@at_ctrl_c(lambda: "stopped; finished runs are kept, and the same command runs what is missing")
def carry_out(plan: Plan, source: str, out: Path, options: Options) -> None:
    """Run the missing cells of a study, then write and show the results.

    Args:
        plan: The study.
        source: The file or scenario that it was read from.
        out: The study's folder.
        options: How its runs are made.

    Raises:
        RunError: Some runs failed.
    """
    from scenarios.study.differences import check_axes
    from scenarios.study.frames import run_rows
    from scenarios.study.grid import Setting, claim
    from scenarios.study.outcome import write_csv, write_results
    from scenarios.study.study import chosen
    from scenarios.study.tuning import needed, trials, tuned

    check_axes(plan.study)
    screen = console()
    setting = Setting(out.expanduser().resolve(), options.data_root, options.engine)
    for what in plan.left_out:
        say(screen, f"skipped: {what}, which needs --data-root")
    if plan.study.tune:
        if not options.plan_only:
            claim(setting, plan, source)
        tried, folder = trials(plan), setting.folder / "tuning"
        cells = needed(tried, chosen(plan, options.only))
        reasons = run_missing(cells, tried, source, replace(setting, folder=folder), options, screen)
        if not options.plan_only:
            found = run_rows(tried, folder / "runs", reasons)
            write_csv(folder / "results.csv", found)
            run = found[found["status"] != "missing"].astype(object)
            known = run.where(run.notna(), None)
            plan = tuned(plan, tried, dict(zip(known["cell"], known["last_iou"], strict=True)))
    reasons = run_missing(chosen(plan, options.only), plan, source, setting, options, screen)
    if options.plan_only:
        return
    show(write_results(setting.folder, plan, reasons), screen)
    say(screen, f"Study folder: {setting.folder}")
    if reasons:
        raise RunError(
            f"{len(reasons)} of {len(plan.cells)} runs failed: {', '.join(reasons)}; their logs are in "
            f"{setting.folder / 'logs'}; call again to retry them"
        )


def run_missing(
    cells: Sequence[Cell], plan: Plan, source: str, setting: Setting, options: Options, screen: Console
) -> dict[str, str]:
    """Run those of the plan's cells that are not finished. Returns the reason of each failure, by cell."""
    from scenarios.study.grid import claim, finished, run_cells
    from scenarios.study.view import cells_view

    done = {cell.name for cell in plan.cells if finished(setting, cell)}  # all of them are in the tables
    left = [cell for cell in cells if cell.name not in done]
    say(screen, f"{plan.study.name}: {len(cells)} runs, {len(cells) - len(left)} of them finished")
    if not left:
        if not options.plan_only:
            claim(setting, plan, source)
        return {}
    where, at_a_time = places(options, left)
    try:
        announce(left, options.data_root, at_a_time, screen)
        if options.plan_only:
            return {}
        claim(setting, plan, source)
        with cells_view(screen, len(left)) as (started, ended):
            return run_cells(setting, left, at_a_time, where, started, ended)
    finally:
        where.stop()


def parse_factors(text: str | None) -> list[float]:
    """Parse `0.3,1,3`; None gives an empty list. Raises ScenarioError."""
    if text is None:
        return []
    try:
        factors = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ScenarioError(f"--tune: expected factors like 0.3,1,3, found {text!r}") from error
    if not all(0 < factor < float("inf") for factor in factors):
        raise ScenarioError(f"--tune: expected factors above 0, found {text!r}")
    return factors


def parse_seeds(text: str | None) -> list[int] | None:
    """Parse `0,1,2`. Raises StudyError."""
    try:
        return None if text is None else [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise StudyError(f"--seeds: expected whole numbers like 0,1,2, found {text!r}") from error


def places(options: Options, left: list[Cell]) -> tuple[Cells, int]:
    """Where cells run, and how many at the same time. Raises RunError if no cluster answers."""
    from scenarios.study.cell import CellsHere, LocalCells
    from scenarios.study.grid import cores

    if options.here:
        if options.ray is not None or (options.jobs or 1) > 1:
            raise RunInputError(
                "--here: expected one run at a time on this machine; leave out --ray and --jobs"
            )
        return CellsHere(), 1
    threads = max(cell.scenario.compute.threads for cell in left)
    where: Cells
    if options.ray is None:
        where, cpus = LocalCells(), cores()
    else:
        from scenarios.study.ray_cells import RayCells

        cluster = RayCells(options.ray, threads)
        where, cpus = cluster, cluster.cpus
    return where, min(options.jobs or max(1, cpus // threads), len(left))


def announce(left: list[Cell], data_root: Path | None, at_a_time: int, screen: Console) -> None:
    """Check all data, then print the planned runs and the expected minutes. Raises CasamError."""
    from scenarios.study.grid import costs, estimate
    from scenarios.study.pace import Pace, measure_pace

    with screen.status("checking data") as status:
        found = costs(left, data_root, lambda name: status.update(f"checking data: {name}"))
    for cell in left:
        say(screen, f"  {cell.name}: {found[cell.name]}")
    paces: dict[str, Pace] = {}

    def pace(cell: Cell) -> Pace:
        scenario = cell.scenario
        alike = (scenario.backbone, scenario.compute, scenario.training.instances, scenario.evaluation)
        if (key := repr(alike)) not in paces:
            paces[key] = measure_pace(scenario)
        return paces[key]

    with screen.status("measuring the pace of this machine"):
        minutes = estimate([(found[cell.name], pace(cell)) for cell in left], at_a_time)
    say(
        screen,
        f"about {max(1.0, minutes):.0f} minutes with {at_a_time} at the same time, measured on this machine "
        "just now; less if images are encoded already",
    )


def show(text: str, screen: Console) -> None:
    """Print the summary: rendered Markdown on a terminal, the plain text elsewhere."""
    from rich.markdown import Markdown

    if screen.is_terminal:
        screen.print(Markdown(text))
    else:
        say(screen, text)
