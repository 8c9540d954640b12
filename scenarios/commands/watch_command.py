"""`casam watch`: a run while it runs, in another terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from casam_core.errors import RunError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from scenarios.engines.watch import Events, RunView

POLL_SECONDS = 0.5
MOST_ROWS = 40
"""Institutions that fit a screen; those with something to say come first."""


def watch(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run folder. Default: the newest below runs/.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show how it stands and end.")] = False,
    silence: Annotated[
        float | None,
        typer.Option(min=1, help="Give up after so many seconds without an event. Default: never."),
    ] = None,
) -> None:
    """Show a run's institutions and stages until it ends: state, IoU, epsilon, bytes, faults, time left.

    Drawn on a terminal, plain lines elsewhere. Exits 0 when the run completed, 1 when it failed.
    """
    from scenarios.commands.terminal import console
    from scenarios.engines.watch import Events, RunView

    folder = (run or newest(Path("runs"))).expanduser().resolve()
    if not folder.is_dir():
        raise RunError(f"{folder}: expected a run folder, found none; `casam run` prints where it lies")
    if (folder / "study.json").exists():
        raise RunError(f"{folder} is a study; watch one of its runs: {folder / 'runs'}")
    screen, view, events = console(), RunView(), Events(folder / "events.jsonl")
    if once:
        for event in events.new():
            view.take(event)
        screen.print(drawn(view, folder.name, time.time()))
    elif screen.is_terminal:
        follow_drawn(view, events, folder.name, screen, silence)
    else:
        follow_plainly(view, events, screen, silence)
    if view.status == "failed":
        raise RunError(f"the run failed: {view.reason}")


def newest(runs: Path) -> Path:
    """The run that began last. Raises RunError where there is none."""
    found = sorted(runs.glob("*/events.jsonl"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise RunError(f"no run below {runs.resolve()}; name a run folder: casam watch RUN")
    return found[-1].parent


def follow_plainly(view: RunView, events: Events, screen: Console, silence: float | None) -> None:
    """One line per event that is worth one."""
    begun = time.time()
    while view.status == "running":
        for event in events.new():
            if (line := view.take(event)) is not None:
                after = float(event["time"]) - (view.started or 0)
                screen.print(f"{after:8.1f} s  {line}", highlight=False, soft_wrap=True, markup=False)
        if view.status == "running":
            give_up(view, begun, silence)
            time.sleep(POLL_SECONDS)


def follow_drawn(view: RunView, events: Events, name: str, screen: Console, silence: float | None) -> None:
    """One table that changes."""
    from rich.live import Live

    begun = time.time()
    with Live(drawn(view, name, begun), console=screen, refresh_per_second=4) as live:
        while view.status == "running":
            for event in events.new():
                view.take(event)
            live.update(drawn(view, name, time.time()))
            if view.status == "running":
                give_up(view, begun, silence)
                time.sleep(POLL_SECONDS)


def give_up(view: RunView, begun: float, silence: float | None) -> None:
    """Raise RunError after `silence` seconds without an event."""
    quiet = time.time() - max(view.last or begun, begun)
    if silence is not None and quiet > silence:
        raise RunError(f"no event for {quiet:.0f} s: the run was ended from outside, or works on; look at it")


def drawn(view: RunView, name: str, now: float) -> Table:
    """Institutions x stages as it stands."""
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
    """One line: how far, how long, how much longer."""
    if view.started is None:
        return f"{name}: waiting for its first event"
    if view.status != "running":
        return f"{name}: {view.status} after {clock((view.last or now) - view.started)}"
    left = view.seconds_left(now)
    rest = "time left not known yet" if left is None else f"about {clock(left)} left"
    quiet = now - (view.last or now)
    return f"{name}: stage {view.stage} of {len(view.stream)}, {clock(now - view.started)} so far, {rest}" + (
        f", no event for {clock(quiet)}" if quiet > 60 else ""
    )


def clock(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
