"""`casam report`, `casam card`, `casam export`, `casam studio` and `casam watch`: show finished and running
runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casam_core.errors import RunError, RunInputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from scenarios.engines.watch import Events, RunView


FULL_UP_TO = 6

OfRuns = Annotated[
    list[Path],
    typer.Argument(metavar="RUN_OR_STUDY...", help="Run folders, or folders of studies and comparisons."),
]


def report(
    runs: OfRuns,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write. Default: report.html in the folder, or here for several folders."),
    ] = None,
    full: Annotated[
        bool | None,
        typer.Option(
            "--full/--brief",
            help="full: a part for each run. brief: only the comparison. Default: full up to "
            f"{FULL_UP_TO} runs.",
        ),
    ] = None,
) -> None:
    """Write one self-contained HTML page: figures, charts, privacy ledger, timeline, how to reproduce.

    For example: casam report runs/quickstart-a runs/quickstart-b --out both.html

    Several runs appear side by side with their differences. The page works offline and loads nothing. It
    uses only the server's files of a run folder.
    """
    from scenarios.printing import console
    from scenarios.report.reading import read_all

    target = (out or (runs[0] if len(runs) == 1 else Path()) / "report.html").expanduser()
    if target.suffix != ".html":
        raise RunInputError(f"--out: expected a file that ends in .html, found {target}")
    screen = console()
    with screen.status("reading") as status:
        found = read_all(runs, lambda done, total: status.update(f"reading run {done} of {total}"))
        from scenarios.report.page import page  # with the library of charts: only once there is a run

        whole = len(found.runs) <= FULL_UP_TO if full is None else full
        html = page(found, full=whole, progress=lambda what: status.update(f"drawing: {what}"))
    write_page(target, html)
    if len(found.runs) > 1 and not whole:
        screen.print(f"The comparison of {len(found.runs)} runs; --full adds a part for every run.")
    if found.skipped:
        screen.print(f"Skipped, not finished: {', '.join(found.skipped)}", highlight=False, soft_wrap=True)
    screen.print(f"Report: {target.resolve()}", highlight=False, soft_wrap=True)


def write_page(target: Path, text: str) -> None:
    """Write the file that --out names. Raises RunInputError if that cannot be done."""
    from casam_core.files import write_atomic

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, text.encode())
    except OSError as error:
        raise RunInputError(f"--out: {target} cannot be written: {error.strerror}; choose another") from error


def card(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write. Default: card.md in the run's folder.")
    ] = None,
) -> None:
    """Write the card of a run's bank: content, policies, figures, limits, licences, how to make it again.

    For example: casam card RUN

    `casam run` writes the card by itself. A run of a deployment gets it by this command. It uses only the
    server's files of the run folder.
    """
    from scenarios.report.bank_card import FILE
    from scenarios.report.bank_card import card as text_of

    target = (out or run / FILE).expanduser()
    write_page(target, text_of(run))
    typer.echo(f"Card: {target.resolve()}")


def export(
    runs: OfRuns,
    to: Annotated[str, typer.Option(help="tensorboard or mlflow.")],
    out: Annotated[Path, typer.Option(help="Folder of the tool's files; later calls can add runs to it.")],
) -> None:
    r"""Export IoU by task, and epsilon and bytes by institution, over the stages to TensorBoard or MLflow.

    For example: casam export RUN --to tensorboard --out curves

    Needs an extra: pip install 'casam\[tensorboard]' or 'casam\[mlflow]'. Reads only the server's files.
    """
    from casam_core.errors import ExportError
    from scenarios.export import SINKS
    from scenarios.export.curves import curves_of
    from scenarios.printing import console
    from scenarios.report.reading import read_all

    if to not in SINKS:
        raise ExportError(f"--to: expected one of {', '.join(SINKS)}, found {to!r}")
    out = out.expanduser()
    screen = console()
    with screen.status("reading") as status:
        found = read_all(runs, lambda done, total: status.update(f"reading run {done} of {total}"))
        try:
            for done, run in enumerate(found.runs, 1):
                status.update(f"writing run {done} of {len(found.runs)}")
                SINKS[to](curves_of(run), out)
        except OSError as error:
            raise ExportError(f"--out: {out} cannot be written: {error.strerror}; choose another") from error
    if found.skipped:
        screen.print(f"Skipped, not finished: {', '.join(found.skipped)}", highlight=False, soft_wrap=True)
    count = f"{len(found.runs)} run{'s' if len(found.runs) != 1 else ''}"
    screen.print(f"{count} for {to}: {out.resolve()}", highlight=False, soft_wrap=True)


def studio(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FOLDERS]...", help="Folders with runs, studies, banks and images. Default: runs/."
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
) -> None:
    """Serve a web page for this machine only: start and follow runs, look at results, try a bank on an image.

    For example: casam studio runs

    The page listens on 127.0.0.1, asks no other machine, and opens nothing outside the folders. New runs
    are put into the first folder. Ctrl-C ends the page and stops the runs that it started; they can be
    continued.
    """
    from scenarios.commands.terminal import at_ctrl_c
    from scenarios.printing import console, say
    from scenarios.studio.serve import has_window, serve

    given = folders or [Path("runs")]
    if not folders:
        given[0].mkdir(exist_ok=True)
    screen = console()

    def ready(address: str, file: Path) -> None:
        say(screen, f"Studio: {address}")
        say(screen, "Only this machine can open it. Ctrl-C ends it and stops the runs that it started.")
        if browser and has_window():
            import webbrowser

            webbrowser.open(file.as_uri())

    with at_ctrl_c(lambda: "stopped; runs that were working can be continued with: casam run --resume RUN"):
        serve(given, port, ready)


POLL_SECONDS = 0.5
MOST_ROWS = 40
"""Rows that fit a screen; institutions with refusals or faults come first."""


def watch(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run folder. Default: the newest below runs/.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show the present state and exit.")] = False,
    silence: Annotated[
        float | None,
        typer.Option(min=1, help="Give up after this many seconds without an event. Default: never."),
    ] = None,
    json_: Annotated[
        bool,
        typer.Option("--json", help="Print every event as a line of JSON; with --once the state as JSON."),
    ] = False,
) -> None:
    """Show a run's institutions and stages until it ends: state, IoU, epsilon, bytes, faults, time left.

    Draws a table on a terminal and prints plain lines elsewhere. Exit status: 0 the run completed, 1 it
    failed.

    For example: casam watch runs/quickstart
    """
    from scenarios.commands.terminal import print_json
    from scenarios.engines.watch import Events, RunView
    from scenarios.printing import console

    folder = (run or newest(Path("runs"))).expanduser().resolve()
    if not folder.is_dir():
        raise RunInputError(f"{folder}: expected a run folder, found none; `casam run` prints its path")
    if (folder / "study.json").exists():
        raise RunInputError(f"{folder} is a study; watch one of its runs: {folder / 'runs'}")
    screen, view, events = console(), RunView(), Events(folder / "events.jsonl")
    if once:
        for event in events.new():
            view.take(event)
        if json_:
            print_json(state_of(view))
        else:
            screen.print(drawn(view, folder.name, time.time()))
    elif json_:
        follow_as_json(view, events, silence)
    elif screen.is_terminal:
        follow_drawn(view, events, folder.name, screen, silence)
    else:
        follow_plainly(view, events, screen, silence)
    if view.status == "failed":
        raise RunError(f"the run failed: {view.reason}")


def state_of(view: RunView) -> dict[str, object]:
    """The present state, for --json. seconds_left is null while it is not known."""
    from dataclasses import asdict

    return asdict(view) | {"seconds_left": view.seconds_left(time.time())}


def newest(runs: Path) -> Path:
    """The run that began last. Raises RunError if there is none."""
    found = sorted(runs.glob("*/events.jsonl"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise RunInputError(f"no run found in {runs.resolve()}; name a run folder: casam watch RUN")
    return found[-1].parent


def followed(
    view: RunView, events: Events, silence: float | None
) -> Iterator[Iterator[tuple[dict[str, Any], str | None]]]:
    """The new events at every look, until the run ends, each with its line for a person or None. The view
    takes an event when the caller comes to it."""
    begun = time.time()
    while view.status == "running":
        yield ((event, view.take(event)) for event in events.new())
        if view.status == "running":
            give_up(view, begun, silence)
            time.sleep(POLL_SECONDS)


def follow_as_json(view: RunView, events: Events, silence: float | None) -> None:
    """One line of JSON for each event, as the run folder's events.jsonl holds it."""
    for new in followed(view, events, silence):
        for event, _ in new:
            typer.echo(json.dumps(event))


def follow_plainly(view: RunView, events: Events, screen: Console, silence: float | None) -> None:
    """One line for each event that a person should see."""
    for new in followed(view, events, silence):
        for event, line in new:
            if line is not None:
                after = float(event["time"]) - (view.started or 0)
                screen.print(f"{after:8.1f} s  {line}", highlight=False, soft_wrap=True)


def follow_drawn(view: RunView, events: Events, name: str, screen: Console, silence: float | None) -> None:
    """One table that is updated in place."""
    from rich.live import Live

    with Live(drawn(view, name, time.time()), console=screen, refresh_per_second=4) as live:
        for new in followed(view, events, silence):
            for _ in new:
                pass
            live.update(drawn(view, name, time.time()))


def give_up(view: RunView, begun: float, silence: float | None) -> None:
    """Raise RunError after `silence` seconds without an event."""
    quiet = time.time() - max(view.last or begun, begun)
    if silence is not None and quiet > silence:
        raise RunError(f"no event for {quiet:.0f} s: the run is slow or was killed; check its processes")


def drawn(view: RunView, name: str, now: float) -> Table:
    """The present state of institutions x stages."""
    from rich.table import Table
    from rich.text import Text

    from casam_core.protocol.payload import EPSILON_METRICS, EPSILON_TRAIN

    colours = {"done": "green", "refused": "yellow", "fault": "red"}
    table = Table(title=title(view, name, now), caption=view.reason or None)
    table.add_column("institution")
    for number, task in enumerate(("frozen", *view.stream)):
        table.add_column(f"{number} {task}")
    for column in ("IoU", "epsilon", "sent", "received", "refused", "faults"):
        table.add_column(column, justify="right")
    sites = sorted(view.sites.items(), key=lambda item: -(item[1].faults + item[1].refusals))
    for site, seen in sites[:MOST_ROWS]:
        states = [seen.states.get(stage, "") for stage in range(len(view.stream) + 1)]
        spent = [seen.epsilon[key] for key in (EPSILON_TRAIN, EPSILON_METRICS) if key in seen.epsilon]
        table.add_row(
            site,
            *(Text(state, style=colours.get(state, "cyan")) for state in states),
            f"{sum(seen.iou.values()) / len(seen.iou):.3f}" if seen.iou else "-",
            f"{max(spent):.2f}" if spent else "-",
            f"{seen.up:,}",
            f"{seen.down:,}",
            str(seen.refusals or "-"),
            str(seen.faults or "-"),
        )
    if len(sites) > MOST_ROWS:
        table.add_row(f"and {len(sites) - MOST_ROWS} more")
    return table


def title(view: RunView, name: str, now: float) -> str:
    """One line: the stage, the time so far, the time left."""
    from scenarios.report.words import duration

    if view.started is None:
        return f"{name}: waiting for its first event"
    if view.status != "running":
        return f"{name}: {view.status} after {duration((view.last or now) - view.started)}"
    left = view.seconds_left(now)
    rest = "time left not known yet" if left is None else f"about {duration(left)} left"
    quiet = now - (view.last or now)
    spent = duration(now - view.started)
    return f"{name}: stage {view.stage} of {len(view.stream)}, {spent} so far, {rest}" + (
        f", no event for {duration(quiet)}" if quiet > 60 else ""
    )
