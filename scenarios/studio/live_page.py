"""A run while it works: institutions x stages, steps, seconds left, IoU, epsilon, bytes, faults and
refusals.
"""

from __future__ import annotations

import time
from pathlib import Path

from casam_core.errors import CasamError
from casam_core.protocol.payload import EPSILON_METRICS, EPSILON_TRAIN
from scenarios.engines.live import LINE
from scenarios.engines.watch import FAULT, REFUSED, Events, RunView, SiteView
from scenarios.report.parts import Block, Cell, Code, Notice, Row, Table, Tone
from scenarios.report.words import MISSING, count, duration, fraction, size
from scenarios.studio.shelf import RunItem, written_to
from scenarios.studio.started import Started, Step

MOST_ROWS = 60
TAIL = 64 * 1024
"""Bytes of flower.log that are read for the steps of a run that another terminal started."""

TONES: dict[str, Tone] = {"done": "good", REFUSED: "refused", FAULT: "failed", "": "waited"}


def view_of(folder: Path) -> RunView:
    """What the events of a run folder say; of a damaged file, what stands before the damage."""
    view, events = RunView(), Events(folder / "events.jsonl")
    try:
        for event in events.new():
            view.take(event)
    except CasamError as fault:
        view.reason = str(fault)
    return view


def state_of(run: RunItem, view: RunView, started: Started | None) -> str:
    """working, stopping, stopped, failed or completed."""
    if started is not None and started.working:
        return started.status
    if run.finished:
        return "completed"
    if written_to(run.path):
        return "working"
    return "failed" if view.status == "failed" or (started and started.status == "failed") else "stopped"


def sentence(view: RunView, state: str, now: float) -> str:
    """One line: the stage, the time so far, the time left."""
    if view.started is None:
        return f"{state}: no event yet"
    if state != "working":
        why = f": {view.reason}" if view.reason else ""
        return f"{state} after {duration((view.last or now) - view.started)}{why}"
    left = view.seconds_left(now)
    if left is None:
        rest = "the time left is known after the first stage"
    else:
        rest = f"about {duration(left)} left" if left >= 1 else "longer than the mean of the earlier stages"
    return f"working: stage {view.stage} of {len(view.stream)}, {duration(now - view.started)} so far, {rest}"


def live_blocks(run: RunItem, started: Started | None) -> tuple[str, str, list[Block]]:
    """(state, sentence, blocks) of a run at this moment."""
    view = view_of(run.path)
    state, now = state_of(run, view, started), time.time()
    steps = started.steps if started is not None and started.working else steps_in(run.path / "flower.log")
    blocks: list[Block] = [table(view, steps if state == "working" else {})]
    if view.reason:
        blocks.insert(0, Notice(view.reason, "bad"))
    if started is not None and started.lines:
        blocks.append(Code("What `casam run` printed", "\n".join(started.lines), folded=state != "failed"))
    return state, sentence(view, state, now), blocks


def table(view: RunView, steps: dict[str, Step]) -> Table:
    """Institutions x stages. Those with refusals or faults come first."""
    heads = [f"{number}. {task}" for number, task in enumerate(("frozen SAM", *view.stream))]
    sites = sorted(view.sites.items(), key=lambda item: -(item[1].faults + item[1].refusals))
    rows: list[Row] = [row_of(name, site, view, steps.get(name)) for name, site in sites[:MOST_ROWS]]
    more = f" ({MOST_ROWS} of {len(sites)} shown)" if len(sites) > MOST_ROWS else ""
    figures = ("mean IoU", "epsilon", "sent", "received", "refused", "faults")
    return Table(
        f"Institutions and stages{more}",
        ("institution", "now", *heads, *figures),
        tuple(rows),
        words=frozenset(range(1, len(heads) + 2)),
    )


def row_of(name: str, site: SiteView, view: RunView, step: Step | None) -> Row:
    """One institution."""
    spent = [site.epsilon[key] for key in (EPSILON_TRAIN, EPSILON_METRICS) if key in site.epsilon]
    states = [site.states.get(stage, "") for stage in range(len(view.stream) + 1)]
    return (
        name,
        f"{step.what}, step {step.done} of {step.total}" if step else MISSING,
        *(Cell(state or "waits", TONES.get(state, "")) for state in states),
        fraction(sum(site.iou.values()) / len(site.iou)) if site.iou else MISSING,
        f"{max(spent):.2f}" if spent else MISSING,
        size(site.up),
        size(site.down),
        count(site.refusals),
        count(site.faults),
    )


def steps_in(log: Path) -> dict[str, Step]:
    """By institution, the last step that the log of a simulation names; empty without a log."""
    if not log.is_file():
        return {}
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = file.read().decode("utf-8", "replace").splitlines()
    found = (LINE.search(line) for line in lines)
    return {
        match["who"].strip(): Step(match["what"], int(match["done"]), int(match["total"]))
        for match in found
        if match and match["total"]
    }
