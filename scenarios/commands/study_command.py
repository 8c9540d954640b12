"""`casam study`: run the grid, compare, write what came out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from casam_core.errors import RunError, StudyError
from scenarios.engines import Engine

if TYPE_CHECKING:
    from rich.console import Console

    from scenarios.study.cell import Cells
    from scenarios.study.study import Cell


def study(
    name: Annotated[
        str, typer.Argument(metavar="STUDY", help="A name of `casam studies`, or a path to a .toml file.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the study. Default: studies/<name>; called again, it goes on."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time. Default: as many as there are cores for.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder that relative data paths of the scenarios start from.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds separated by commas, in place of the study's.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key in all runs.")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="As for `casam run`.")] = Engine.inprocess,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on this existing Ray cluster, e.g. auto.")
    ] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Print the runs and what they will cost, and end.")
    ] = False,
) -> None:
    """Run every combination of a study and compare them; called again, it does what is missing.

    Writes results.csv and .parquet, summary.md and pictures into its folder. A run that fails stops no other.
    Exits 0 when all runs are finished, 1 when some failed, 2 for bad input (before anything is written).
    """
    from scenarios.commands.screen import console
    from scenarios.engines.run import data_folder
    from scenarios.study.grid import Setting, claim, finished, run_cells
    from scenarios.study.outcome import write_results
    from scenarios.study.study import plan_study, study_path
    from scenarios.study.view import cells_view

    screen = console()
    root, path = data_folder(data_root), study_path(name)
    plan = plan_study(path, with_data=root is not None, overrides=set_ or (), seeds=parse_seeds(seeds))
    setting = Setting((out or Path("studies") / plan.study.name).expanduser().resolve(), root, engine)
    left = [cell for cell in plan.cells if not finished(setting, cell)]
    say(screen, f"{plan.study.name}: {len(plan.cells)} runs, {len(plan.cells) - len(left)} of them finished")
    for what in plan.left_out:
        say(screen, f"left out: {what}, which needs --data-root")
    reasons: dict[str, str] = {}
    if left:
        where, at_a_time = places(ray, jobs, left)
        try:
            announce(left, root, at_a_time, screen)
            if plan_only:
                return
            claim(setting, plan, path)
            with cells_view(screen, len(left)) as (started, ended):
                reasons = run_cells(setting, left, at_a_time, where, started, ended)
        finally:
            where.stop()
    if plan_only:
        return
    claim(setting, plan, path)
    text = write_results(setting.folder, plan, reasons)
    show(text, screen)
    say(screen, f"Study folder: {setting.folder}")
    if reasons:
        raise RunError(
            f"{len(reasons)} of {len(plan.cells)} runs failed: {', '.join(reasons)}; their logs lie in "
            f"{setting.folder / 'logs'}; call again to try them anew"
        )


def parse_seeds(text: str | None) -> list[int] | None:
    """From `0,1,2`. Raises StudyError."""
    try:
        return None if text is None else [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise StudyError(f"--seeds: expected whole numbers like 0,1,2, found {text!r}") from error


def places(ray: str | None, jobs: int | None, left: list[Cell]) -> tuple[Cells, int]:
    """Where cells run, and how many at a time. Raises RunError where no cluster answers."""
    from scenarios.study.cell import LocalCells
    from scenarios.study.grid import cores

    threads = max(cell.scenario.compute.threads for cell in left)
    where: Cells
    if ray is None:
        where, cpus = LocalCells(), cores()
    else:
        from scenarios.study.ray_cells import RayCells

        cluster = RayCells(ray, threads)
        where, cpus = cluster, cluster.cpus
    return where, min(jobs or max(1, cpus // threads), len(left))


def announce(left: list[Cell], data_root: Path | None, at_a_time: int, screen: Console) -> None:
    """Check everything, then say what is to be done and how long that takes. Raises CasamError."""
    from scenarios.engines.pace import Pace, measure_pace
    from scenarios.study.grid import costs, estimate

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
        f"about {max(1.0, minutes):.0f} minutes with {at_a_time} at a time, at this machine's pace of just "
        "now and with every image still to encode",
    )


def show(text: str, screen: Console) -> None:
    """The summary: drawn on a terminal, as it is elsewhere."""
    from rich.markdown import Markdown

    if screen.is_terminal:
        screen.print(Markdown(text))
    else:
        say(screen, text)


def say(screen: Console, line: str) -> None:
    """One line, never cut."""
    screen.print(line, highlight=False, soft_wrap=True, markup=False)
