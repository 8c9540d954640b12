"""Results of several runs: headline figures with their differences, every task, every stage."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import altair as alt

from scenarios.report.drawing import FROZEN, OURS, SERIES, SHAPES, draw, values
from scenarios.report.figures import figures_table
from scenarios.report.parts import Block, Chart, Key, Panel, Section, Table
from scenarios.report.reading import Run
from scenarios.report.sections.quality import stage_ticks
from scenarios.report.words import MISSING, fraction

MOST_IN_CHART = 40
MOST_LINES = len(SERIES)


def outcome(runs: Sequence[Run]) -> Section:
    """Headline figures with differences, and the tasks' scores in pictures."""
    blocks: list[Block] = [
        figures_table(runs),
        tasks_chart(runs),
    ]
    if len(runs) <= MOST_LINES:
        blocks.append(stages_chart(runs))
    return Section(
        "outcome",
        "What came out of it",
        "Some figures have a better direction: there, green with the word better, or orange with the word "
        "worse, marks a difference. A difference between single runs may be chance; only several seeds can "
        "show whether it is not.",
        blocks,
    )


def tasks_of(runs: Sequence[Run]) -> list[str]:
    """All tasks of all streams, in the order in which they appear."""
    return list(dict.fromkeys(task for run in runs for task in run.summary.tasks))


def last_of(run: Run, task: str) -> float | None:
    """The task's IoU after the last stage; None if it is not learned or not known."""
    if task not in run.summary.tasks or not run.stages:
        return None
    return run.summary.matrix["iou"][-1][run.summary.tasks.index(task)]


def tasks_chart(runs: Sequence[Run]) -> Chart:
    """One picture per task: a row for each run."""
    shown = runs[:MOST_IN_CHART]
    known = [v for run in shown for task in tasks_of(runs) if (v := last_of(run, task)) is not None]
    low = min([0.5, *known]) // 0.1 / 10
    panels, rows = [], []
    for number, task in enumerate(tasks_of(runs)):
        scores = [(run, last_of(run, task)) for run in runs]
        rows.append((task, *(fraction(value) for _, value in scores)))
        data = [
            {"run": run.label, "iou": value, "say": f"{run.label}: {fraction(value)}"}
            for run, value in scores[:MOST_IN_CHART]
        ]
        y = alt.Y(
            "run:N",
            sort=None,
            title=None,
            axis=alt.Axis(ticks=False, domain=False, grid=True, labelLimit=110),
        )
        x = alt.X(
            "iou:Q",
            title=None,
            scale=alt.Scale(domain=[low, 1]),
            axis=alt.Axis(tickCount=4, format=".1f", grid=False),
        )
        base = alt.Chart(values(data)).encode(y=y, description=alt.Description("say:N"))
        layers: list[alt.Chart] = [base.mark_point(fill=OURS, stroke=OURS, size=60, opacity=1).encode(x=x)]
        frozen = [run.summary.zero_shot["iou"].get(task) for run in shown]
        marks = [
            {"run": run.label, "iou": value, "say": f"{run.label}, frozen SAM: {value:.3f}"}
            for run, value in zip(shown, frozen, strict=True)
            if value is not None
        ]
        ticks = alt.Chart(values(marks)).mark_tick(color=FROZEN, thickness=2, size=16)
        layers.append(ticks.encode(x=x, y=y, description=alt.Description("say:N")))
        said = "; ".join(str(row["say"]) for row in data)
        chart = alt.layer(*layers).properties(width=150, height=alt.Step(22))
        panels.append(Panel(draw(chart, f"c-task{number}"), f"{task}: {said}.", task))
    return Chart(
        "Every task at the end",
        "IoU after the last stage, with one row for each run."
        + (
            f" The chart shows the first {MOST_IN_CHART} of {len(runs)} runs."
            if len(runs) > MOST_IN_CHART
            else ""
        ),
        tuple(panels),
        Table("IoU after the last stage", ("task", *(run.label for run in runs)), tuple(rows)),
        (Key("ours", "with the bank"), Key("frozentick", "frozen SAM")),
    )


def stages_chart(runs: Sequence[Run]) -> Chart:
    """Mean IoU of the tasks learned so far, stage by stage."""
    data: list[dict[str, Any]] = []
    rows = []
    most = max(run.stages for run in runs)
    for run in runs:
        means = [None if run.own_orders else mean_of_row(row) for row in run.summary.matrix["iou"]]
        rows.append((run.label, *(fraction(m) for m in means), *[MISSING] * (most - len(means))))
        data += [
            {"run": run.label, "stage": t, "iou": m, "say": f"{run.label}, stage {t}: {m:.3f}"}
            for t, m in enumerate(means, 1)
            if m is not None
        ]
    names = [run.label for run in runs]
    lowest = min((row["iou"] for row in data), default=0.0)
    base = alt.Chart(values(data)).encode(
        x=alt.X(
            "stage:Q",
            title="stage",
            scale=alt.Scale(domain=[0.7, most + 0.3]),
            axis=alt.Axis(values=stage_ticks(most), format="d", grid=False),
        ),
        y=alt.Y(
            "iou:Q",
            title="mean IoU so far",
            scale=alt.Scale(domain=[lowest // 0.1 / 10, 1]),
            axis=alt.Axis(tickCount=5),
        ),
        stroke=alt.Stroke(
            "run:N", scale=alt.Scale(domain=names, range=list(SERIES[: len(names)])), legend=None
        ),
        description=alt.Description("say:N"),
    )
    lines = base.mark_line(strokeWidth=2).encode(detail="run:N")
    dots = base.mark_point(size=60, strokeWidth=2, fill="var(--paper)", opacity=1).encode(
        shape=alt.Shape("run:N", scale=alt.Scale(domain=names, range=list(SHAPES[: len(names)])), legend=None)
    )
    chart = alt.layer(lines, dots).properties(width=290, height=200)
    return Chart(
        "Stage by stage",
        "Mean IoU of the tasks learned so far. Tasks differ in difficulty, so the mean changes from stage to "
        "stage: compare runs, not stages.",
        (
            Panel(
                draw(chart, "c-stages"),
                "Mean IoU at the last stage: " + "; ".join(f"{row[0]} {row[-1]}" for row in rows) + ".",
            ),
        ),
        Table(
            "Mean IoU of the tasks learned so far",
            ("run", *(f"stage {t}" for t in range(1, most + 1))),
            tuple(rows),
        ),
        tuple(Key(f"series-{i}", name) for i, name in enumerate(names)),
    )


def mean_of_row(row: Sequence[float | None]) -> float | None:
    """Mean of the known values of one stage; None without any."""
    known = [value for value in row if value is not None]
    return statistics.fmean(known) if known else None
