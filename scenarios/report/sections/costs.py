"""The costs of the run: bytes by institution and stage, seconds, decoder passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt

from scenarios.report.drawing import SERIES, draw, values
from scenarios.report.parts import Block, Cell, Chart, Heat, Key, Panel, Row, Section, Table, step_of
from scenarios.report.reading import Run
from scenarios.report.words import MISSING, count, duration, size

EDGES = (1e3, 1e4, 1e5, 1e6, 1e7, 1e8)
PARTS = ("align", "router", "evaluate")
WAYS = {"up": "from the institutions", "down": "to the institutions"}
ABOUT_WAYS = {
    "up": "An institution that trains sends its layer and router; every one that shares scores sends those.",
    "down": "Stage 0 evaluates frozen SAM. After it, every institution receives the new entry.",
}


def costs(run: Run, prefix: str) -> Section:
    """The section."""
    blocks: list[Block] = [traffic(run, way) for way in WAYS]
    if (seconds := seconds_chart(run, prefix)) is not None:
        blocks.append(seconds)
    decodes = [(f"stage {stage}", count(passes)) for stage, passes in enumerate(run.summary.decodes)]
    blocks.append(
        Table("Decoder passes (one image each) per evaluation", ("evaluation", "passes"), tuple(decodes))
    )
    return Section(
        "costs",
        "What it cost",
        "Bytes are serialised records before transport, without the first introductions. Images are never "
        "sent.",
        blocks,
    )


def bytes_by_stage(run: Run, way: str) -> dict[str, dict[int, int]]:
    """Bytes by institution and stage, from the totals that the run recorded after every stage."""
    found: dict[str, dict[int, int]] = {}
    before: Mapping[str, int] = {}
    for event in run.events:
        if event.name == "traffic":
            total: Mapping[str, int] = event.facts[way]
            for name, value in total.items():
                here = found.setdefault(name, {})
                here[event.stage] = here.get(event.stage, 0) + value - before.get(name, 0)
            before = total
    return found


def traffic(run: Run, way: str) -> Heat:
    """Institution x stage, in one direction."""
    words, totals = WAYS[way], {"up": run.summary.bytes.up, "down": run.summary.bytes.down}[way]
    by_stage, stages = bytes_by_stage(run, way), range(run.stages + 1)
    rows: list[Row] = []
    for name in run.institutions:
        known = [by_stage.get(name, {}).get(stage) for stage in stages]
        rows.append((name, *map(size_cell, known), size_cell(totals.get(name, 0))))
    return Heat(
        f"Bytes {words}: {size(sum(totals.values()))}",
        ABOUT_WAYS[way],
        Table(
            f"Bytes {words} by stage", ("institution", *(f"stage {s}" for s in stages), "all"), tuple(rows)
        ),
    )


def size_cell(value: int | None) -> Cell:
    """`1.4 MB`"""
    return Cell(size(value), step=step_of(value, EDGES) if value else None)


def seconds_chart(run: Run, prefix: str) -> Chart | None:
    """Stacked bars of the seconds that each part of each stage took; None without timing."""
    data: list[dict[str, Any]] = []
    rows = []
    for number, stage in enumerate(run.summary.timing.stages, 1):
        name = run.stage_name(number)
        known = {part: float(stage[part]) for part in PARTS if part in stage}
        cells = [duration(known[part]) if part in known else MISSING for part in PARTS]
        rows.append((name, *cells, duration(sum(known.values()))))
        for part, seconds in known.items():
            say = f"{name}, {part}: {duration(seconds)}"
            data.append(
                {"stage": name, "part": part, "seconds": seconds, "place": PARTS.index(part), "say": say}
            )
    if not data:
        return None
    y = alt.Y("stage:N", sort=None, title=None, axis=alt.Axis(ticks=False, domain=False, grid=False))
    colour = alt.Fill("part:N", scale=alt.Scale(domain=list(PARTS), range=list(SERIES[:3])), legend=None)
    bars = alt.Chart(values(data)).mark_bar(height=16, stroke="var(--paper)", strokeWidth=1)
    chart = bars.encode(
        y=y,
        x=alt.X("sum(seconds):Q", title="seconds", axis=alt.Axis(tickCount=5)),
        fill=colour,
        order=alt.Order("place:Q"),
        description=alt.Description("say:N"),
    ).properties(width=330, height=alt.Step(26))
    said = "; ".join(f"{row[0]} {row[-1]}" for row in rows)
    return Chart(
        "Where the time went",
        "Seconds on one machine that simulated all institutions. In a deployment, institutions work at the "
        "same time."
        if run.summary.environment
        else "",
        (Panel(draw(chart, f"{prefix}-seconds"), f"Time by stage: {said}."),),
        Table("Time by stage and part", ("stage", *PARTS, "together"), tuple(rows)),
        tuple(Key(f"series-{i}", part) for i, part in enumerate(PARTS)),
    )
