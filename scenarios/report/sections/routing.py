"""How the router assigns images to tasks: confusion, unknown images, margins and thresholds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from casam_core.routing.decision import BINS, IDENTITY, RANGE, SCALE, bin_edge
from scenarios.report.drawing import INK, OURS, UNKNOWN, draw, values
from scenarios.report.figures import not_learned, thresholds_of
from scenarios.report.parts import Block, Cell, Chart, Heat, Key, Notice, Panel, Row, Section, Table, step_of
from scenarios.report.reading import Run
from scenarios.report.words import MINUS, MISSING, count, listed, percent

EDGES = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
FROZEN_SAM = "unknown"
"""The page's name of the route `identity`."""
GROUP = 8
"""Bins of a margin histogram that form one bar."""
TICKS = (-1000.0, -100.0, -10.0, -1.0, -0.1, 0.0, 0.1, 1.0, 10.0, 100.0, 1000.0)


def routing(run: Run, prefix: str) -> Section:
    """The section; for a method without a router, one sentence that says so."""
    title = "How images find their task"
    if run.summary.routing.confusion is None:
        return Section("routing", title, f"Method {run.summary.method} routes no image.")
    blocks: list[Block] = []
    if any(run.summary.routing.confusion.values()):
        blocks += [confusion(run), unknown_chart(run, prefix)]
    else:
        blocks.append(Notice("No institution shared the routes of its images.", "warn"))
    blocks.append(margins_chart(run, prefix) or Notice("No institution released its margins.", "soft"))
    return Section(
        "routing",
        title,
        "The model is not told to which task an image belongs. The router compares the image with every "
        "learned task and finds the nearest one. If the image's score is above that task's threshold, the "
        "image counts as unknown, and frozen SAM segments it.",
        blocks,
    )


def confusion(run: Run) -> Heat:
    """True task x route, as shares of the row."""
    summary = run.summary
    counted = {task: routes for task, routes in (summary.routing.confusion or {}).items() if routes}
    tasks = [task for task in (*summary.tasks, *summary.unseen.tasks) if task in counted]
    routes, unknown = [*summary.tasks, FROZEN_SAM], {*not_learned(run), *summary.unseen.tasks}
    rows: list[Row] = []
    for task in tasks:
        counts = {FROZEN_SAM if route == IDENTITY else route: n for route, n in counted[task].items()}
        images = sum(counts.values())
        cells = [share_cell(counts.get(route, 0), images) for route in routes]
        rows.append((task + (" (not learned)" if task in unknown else ""), *cells, count(images)))
    return Heat(
        "Where images were sent",
        "Each row is 100 % of one task's test images at the last stage. For a learned task the diagonal is "
        "correct. For a task that was not learned the column unknown is correct.",
        Table("True task (rows) and route (columns)", ("true task", *routes, "images"), tuple(rows)),
    )


def share_cell(images: int, of_all: int) -> Cell:
    """`90 %` and the number of images; a dash for none."""
    if not images:
        return Cell(MISSING)
    share = images / of_all
    return Cell(f"{100 * share:.0f} %", notes=(count(images),), step=step_of(share, EDGES))


def unknown_chart(run: Run, prefix: str) -> Chart:
    """Share of images that count as unknown, after each stage."""
    summary, stages = run.summary, range(1, run.stages + 1)
    left = not_learned(run)
    series = {
        task: ("not learned" if task in left else "learned", rates_of(run, task)) for task in summary.tasks
    }
    for task in summary.unseen.tasks:
        rates = dict(enumerate((row.get(task) for row in summary.unseen.unknown_rate), 1))
        series[task] = ("not learned", rates)
    data: list[dict[str, Any]] = []
    rows = []
    for task, (kind, rates) in series.items():
        rows.append((task, kind, *(percent(rates.get(stage)) for stage in stages)))
        rate = rates.get(run.stages)
        if rate is not None:
            say = f"{task} ({kind}): {percent(rate)} unknown"
            data.append({"task": task, "kind": kind, "rate": 100 * rate, "zero": 0, "say": say})
    kinds = ["learned", "not learned"]
    base = alt.Chart(values(data)).encode(
        y=alt.Y(
            "task:N",
            sort=None,
            title=None,
            axis=alt.Axis(ticks=False, domain=False, grid=False, labelPadding=8),
        ),
        color=alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=[OURS, UNKNOWN]), legend=None),
        description=alt.Description("say:N"),
    )
    x = alt.X("rate:Q", title="images that count as unknown, %", scale=alt.Scale(domain=[0, 100]))
    bars = base.mark_bar(height=12, cornerRadiusEnd=3).encode(x=x)
    # Without the dot, a bar of length 0 would look like a missing value.
    dots = base.transform_filter("datum.rate < 1").mark_point(size=45, filled=True, opacity=1).encode(x=x)
    chart = alt.layer(bars, dots).properties(width=330, height=alt.Step(26))
    said = "; ".join(str(row["say"]) for row in data) or "not released"
    return Chart(
        "Which images count as unknown",
        "For a learned task a short bar is good: its images should be recognised. For a task that was never "
        "learned a long bar is good: frozen SAM is safer than the layer of a wrong task.",
        (Panel(draw(chart, f"{prefix}-unknown"), f"At the last stage: {said}."),),
        Table(
            "Share of images that count as unknown, after each stage",
            ("task", "kind", *(f"stage {stage}" for stage in stages)),
            tuple(rows),
            words=frozenset({1}),
        ),
        (Key("ours", "learned tasks"), Key("unknown", "tasks not learned")),
    )


def rates_of(run: Run, task: str) -> dict[int, float | None]:
    """Share of a learned task's images sent to identity, by stage, from its own stage on."""
    found: dict[int, float | None] = {}
    learned_at = run.summary.tasks.index(task) + 1
    for event in run.events:
        if event.name == "evaluated" and event.stage >= learned_at:
            routes: Mapping[str, int] = event.facts.get("routes", {}).get(task, {})
            images = sum(routes.values())
            found[event.stage] = routes.get(IDENTITY, 0) / images if images else None
    return found


def margins_chart(run: Run, prefix: str) -> Chart | None:
    """One small histogram of margins per task; None if no institution released its margins."""
    summary = run.summary
    margins = {task: bins for task, bins in summary.routing.margins.items() if bins}
    tasks = [task for task in (*summary.tasks, *summary.unseen.tasks) if task in margins]
    if not tasks:
        return None
    grouped = {task: in_groups(margins[task]) for task in tasks}
    used = [group for groups in grouped.values() for group in groups]
    low, high = min(*used, BINS // GROUP // 2 - 1) - 1, max(*used, BINS // GROUP // 2) + 2
    thresholds = thresholds_of(run)
    panels, rows = [], []
    for number, task in enumerate(tasks):
        groups = grouped[task]
        images = sum(groups.values())
        below = sum(n for group, n in groups.items() if group < BINS // GROUP // 2)
        threshold = thresholds.get(task)
        rows.append(
            (
                task,
                count(images),
                count(below),
                count(images - below),
                MISSING if threshold is None else f"{threshold:.4g}",
            )
        )
        learned = task in summary.tasks and task not in not_learned(run)
        chart = histogram(groups, low, high, OURS if learned else UNKNOWN)
        text = f"{task}{'' if learned else ' (not learned)'}: {below} of {images} images lie below"
        panels.append(Panel(draw(chart, f"{prefix}-margin{number}"), f"{text} the threshold.", task))
    keeps = [name for name, p in summary.privacy.items() if p.policy.metrics != "exact"]
    return Chart(
        "How far from the threshold",
        "A margin is an image's score under the nearest task minus that task's threshold. An image on the "
        "left of the line is recognised; an image on the right is unknown. A larger distance means a clearer "
        "decision. The scale is not linear." + (f" Not released by {listed(keeps)}." if keeps else ""),
        tuple(panels),
        Table(
            "Recognised and unknown images at the last stage, and each task's threshold if it is shared",
            ("task", "images", "recognised", "unknown", "threshold (score)"),
            tuple(rows),
        ),
        (Key("ours", "learned tasks"), Key("unknown", "tasks not learned")),
    )


def in_groups(bins: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Images by group of GROUP bins. Group BINS / GROUP / 2 begins at margin 0."""
    groups: dict[int, int] = {}
    for number, images in bins:
        groups[number // GROUP] = groups.get(number // GROUP, 0) + images
    return groups


def histogram(groups: Mapping[int, int], low: int, high: int, colour: str) -> alt.TopLevelMixin:
    """Bars by group from low to below high, and a line at margin 0."""
    data = [
        {
            "from": group,
            "to": group + 1,
            "images": images,
            "zero": 0,
            "say": f"{images} images with margins from {bin_edge(group * GROUP):.3g} "
            f"to {bin_edge((group + 1) * GROUP):.3g}",
        }
        for group, images in groups.items()
    ]
    most = max(groups.values())
    ticks = {group_at(margin): f"{margin:g}".replace("-", MINUS) for margin in TICKS}
    shown = [place for place in ticks if low <= place <= high]
    labels = " : ".join(f"abs(datum.value - {place}) < 0.001 ? '{ticks[place]}'" for place in shown)
    x = alt.X(
        "from:Q",
        title="margin",
        scale=alt.Scale(domain=[low, high]),
        axis=alt.Axis(values=shown, labelExpr=f"{labels} : ''", grid=False, labelOverlap=True),
    )
    y = alt.Y(
        "images:Q",
        title="images",
        scale=alt.Scale(domain=[0, most]),
        axis=alt.Axis(tickCount=min(3, most), format="d"),
    )
    bars = (
        alt.Chart(values(data))
        .mark_rect(fill=colour)
        .encode(x=x, x2="to:Q", y=y, y2="zero:Q", description=alt.Description("say:N"))
    )
    line = alt.Chart(values([{"from": BINS // GROUP // 2, "say": "the threshold"}])).mark_rule(
        stroke=INK, strokeWidth=1.5, strokeDash=[3, 2]
    )
    rule = line.encode(x="from:Q", description=alt.Description("say:N"))
    return alt.layer(bars, rule).properties(width=190, height=90)


def group_at(margin: float) -> float:
    """The position of a margin on the axis, in groups of bins."""
    return round((math.asinh(margin / SCALE) / RANGE + 1) / 2 * BINS / GROUP, 4)
