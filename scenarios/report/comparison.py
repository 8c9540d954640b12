"""Several runs side by side: what was changed, what came out, who gains and who pays."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from scenarios.report.drawing import FROZEN, OURS, SERIES, SHAPES, draw, values
from scenarios.report.headline import gain
from scenarios.report.parts import Block, Cell, Chart, Key, Notice, Panel, Row, Section, Table, Tone
from scenarios.report.quality import stage_ticks
from scenarios.report.reading import Run, frozen_iou, refusals
from scenarios.report.words import (
    MINUS,
    MISSING,
    count,
    duration,
    fraction,
    percent,
    points,
    policy_in_words,
    signed,
    size,
)

MOST_IN_CHART = 40
MOST_LINES = len(SERIES)
MOST_CHANGES = 60
LONGEST_VALUE = 60


@dataclass(frozen=True)
class Figure:
    """One row of the comparison. better: +1 more is better, -1 less is, 0 neither. change: how a difference
    is written."""

    name: str
    of: Callable[[Run], float | None]
    text: Callable[[float | None], str]
    change: Callable[[float], str]
    better: int = 0
    smallest: float = 0.0005


FIGURES = (
    Figure("IoU at the end", lambda r: r.summary.last_iou, fraction, signed, 1),
    Figure("average IoU", lambda r: r.summary.avg_iou, fraction, signed, 1),
    Figure("frozen SAM's IoU", lambda r: frozen_iou(r.summary), fraction, signed),
    Figure("gain over frozen SAM, points", gain, points, points, 1),
    Figure(
        "forgetting, points",
        lambda r: r.summary.ff_iou,
        lambda v: MISSING if v is None else f"{v:.2f}",
        lambda v: signed(v, 2),
        -1,
        0.005,
    ),
    Figure(
        "found their task", lambda r: r.summary.routing.accuracy, percent, lambda v: f"{points(v)} points", 1
    ),
    Figure(
        "held for unknown wrongly",
        lambda r: r.summary.routing.false_unknown_rate,
        percent,
        lambda v: f"{points(v)} points",
        -1,
    ),
    Figure(
        "strangers recognised",
        lambda r: r.summary.routing.unseen_unknown_rate,
        percent,
        lambda v: f"{points(v)} points",
        1,
    ),
    Figure(
        "sent by institutions",
        lambda r: sum(r.summary.bytes.up.values()),
        size,
        lambda v: change_of(v, size),
        -1,
    ),
    Figure(
        "received by institutions",
        lambda r: sum(r.summary.bytes.down.values()),
        size,
        lambda v: change_of(v, size),
        -1,
    ),
    Figure(
        "refusals",
        lambda r: refusals(r.summary),
        count,
        lambda v: signed(v, 0),
    ),
    Figure("decoder passes", lambda r: sum(r.summary.decodes), count, lambda v: change_of(v, count)),
    Figure("time", lambda r: r.summary.timing.seconds, duration, lambda v: change_of(v, duration)),
)


def change_of(value: float, text: Callable[[float], str]) -> str:
    """`+1.4 MB`"""
    return ("+" if value > 0 else MINUS) + text(abs(value))


def comparison(runs: Sequence[Run]) -> list[Section]:
    """The sections that stand before the runs' own."""
    return [changed(runs), outcome(runs), who_gains(runs), prices(runs)]


def changed(runs: Sequence[Run]) -> Section:
    """The runs, and every key in which their scenarios differ."""
    rows: list[Row] = [
        (
            run.label,
            s.scenario,
            s.method,
            str(s.seed),
            s.scenario_digest[:12],
            str(s.environment.get("code", "")),
        )
        for run in runs
        for s in (run.summary,)
    ]
    head = ("run", "scenario", "method", "seed", "digest", "code")
    blocks: list[Block] = [Table("The runs", head, tuple(rows), words=frozenset({1, 2, 4, 5}))]
    flats = [dict(flat(run.scenario)) for run in runs]
    keys = [key for key in sorted({key for f in flats for key in f}) if len({f.get(key) for f in flats}) > 1]
    if not keys:
        blocks.append(Notice("All runs have the same scenario, key for key."))
    else:
        shown = [(key, *(shortened(f.get(key, MISSING)) for f in flats)) for key in keys[:MOST_CHANGES]]
        more = f" ({MOST_CHANGES} of {len(keys)} shown)" if len(keys) > MOST_CHANGES else ""
        columns = frozenset(range(1, len(runs) + 1))
        heads = ("key", *(run.label for run in runs))
        blocks.append(Table(f"Keys in which the scenarios differ{more}", heads, tuple(shown), words=columns))
    if len({run.summary.environment.get("code") for run in runs}) > 1:
        blocks.append(Notice("The runs were made by different versions of casam's code.", "warn"))
    return Section("changed", "What was changed", "", blocks)


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """(dotted key, JSON value) of every leaf; institutions are named instead of numbered."""
    if isinstance(value, Mapping):
        return [leaf for key, inner in value.items() for leaf in flat(inner, f"{prefix}.{key}".lstrip("."))]
    if (
        isinstance(value, list)
        and value
        and all(isinstance(item, Mapping) and "name" in item for item in value)
    ):
        return [leaf for item in value for leaf in flat(item, f"{prefix}.{item['name']}")]
    return [(prefix, json.dumps(value))]


def shortened(text: str) -> str:
    """Long values are cut; the runs' own scenario.json holds them whole."""
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def outcome(runs: Sequence[Run]) -> Section:
    """Headline figures with differences, and the tasks' scores in pictures."""
    rows: list[Row] = []
    for figure in FIGURES:
        first, *others = [figure.of(run) for run in runs]
        cells: list[str | Cell] = [figure.text(first)]
        cells += [compared(figure, first, value) for value in others]
        rows.append((figure.name, *cells))
    blocks: list[Block] = [
        Table(
            "Headline figures; below each, the difference from the first run",
            ("figure", *(run.label for run in runs)),
            tuple(rows),
        ),
        tasks_chart(runs),
    ]
    if len(runs) <= MOST_LINES:
        blocks.append(stages_chart(runs))
    return Section(
        "outcome",
        "What came out of it",
        "Green and the word better, or orange and the word worse, mark differences in a figure that has a "
        "better direction. One run each: whether a difference is more than chance, only several seeds can "
        "tell.",
        blocks,
    )


def compared(figure: Figure, first: float | None, value: float | None) -> Cell:
    """The figure with its difference from the first run's."""
    if first is None or value is None:
        return Cell(figure.text(value))
    difference = value - first
    if abs(difference) < figure.smallest:
        return Cell(figure.text(value), "", ("the same",))
    change = figure.change(difference)
    if not figure.better:
        return Cell(figure.text(value), "", (change,))
    good = difference * figure.better > 0
    tone: Tone = "good" if good else "bad"
    return Cell(figure.text(value), tone, (f"{change}, {'better' if good else 'worse'}",))


def tasks_of(runs: Sequence[Run]) -> list[str]:
    """All tasks of all streams, in order of appearance."""
    return list(dict.fromkeys(task for run in runs for task in run.summary.tasks))


def last_of(run: Run, task: str) -> float | None:
    """The task's IoU after the last stage; None where it is not learned or not known."""
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
        "IoU after the last stage, a row for each run."
        + (f" The first {MOST_IN_CHART} of {len(runs)} runs are drawn." if len(runs) > MOST_IN_CHART else ""),
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
        means = [mean_of_row(row) for row in run.summary.matrix["iou"]]
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
        "Mean IoU of the tasks learned so far. It moves because tasks differ in difficulty, too: compare "
        "runs, not stages.",
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
    """Mean of what is known of one stage."""
    known = [value for value in row if value is not None]
    return statistics.fmean(known) if known else None


def who_gains(runs: Sequence[Run]) -> Section:
    """Every institution's own images under every run."""
    places = list(
        dict.fromkeys(
            (name, task)
            for run in runs
            for name in run.institutions
            for task in sorted(run.summary.statistics.get(name, {}))
        )
    )
    rows: list[Row] = []
    for name, task in places:
        cells: list[str | Cell] = []
        first: float | None = None
        for number, run in enumerate(runs):
            found = run.summary.statistics.get(name, {}).get(task)
            if found is None:
                cells.append("not shared" if name in run.institutions else "not there")
                continue
            notes = [f"gain {points(found.gain.mean)}"]
            if found.gain.low is not None:
                notes[0] += f" ({points(found.gain.low)} to {points(found.gain.high)})"
            if number and first is not None:
                notes.append(f"{signed(found.iou.mean - first)} from the first run")
            first = found.iou.mean if not number else first
            cells.append(Cell(fraction(found.iou.mean), "", tuple(notes)))
        rows.append((f"{name} · {task}", *cells))
    blocks: list[Block] = []
    if rows:
        heads = ("institution · task", *(run.label for run in runs))
        caption = "IoU on each institution's own images; gain over frozen SAM in points with 95 % interval"
        blocks.append(Table(caption, heads, tuple(rows)))
    else:
        blocks.append(Notice("No institution shares exact figures with intervals in these runs.", "soft"))
    return Section(
        "who",
        "Who gains, who pays",
        "Each institution's images as it measured them itself at the last stage. Institutions that share "
        "their scores with noise or not at all have no figures here.",
        blocks,
    )


def prices(runs: Sequence[Run]) -> Section:
    """Policies, epsilon and bytes by institution."""
    names = list(dict.fromkeys(name for run in runs for name in run.institutions))
    rows: list[Row] = []
    for name in names:
        cells: list[str | Cell] = []
        for run in runs:
            ledger = run.summary.privacy.get(name)
            if ledger is None:
                cells.append("not there")
                continue
            notes = list(policy_in_words(ledger.policy))
            spent = [("training", ledger.epsilon_train), ("test", ledger.epsilon_metrics)]
            notes += [f"ε {what} images {value:.2f}" for what, value in spent if value is not None]
            if refused := sum(ledger.refusals.values()):
                notes.append(f"{refused} refusal{'s' if refused > 1 else ''}")
            cells.append(Cell(f"{size(run.summary.bytes.up.get(name, 0))} sent", "", tuple(notes)))
        rows.append((name, *cells))
    return Section(
        "prices",
        "What each institution allowed and spent",
        "",
        (
            Table(
                "Policy, epsilon, bytes sent and refusals by institution and run",
                ("institution", *(run.label for run in runs)),
                tuple(rows),
                words=frozenset(range(1, len(runs) + 1)),
            ),
        ),
    )
