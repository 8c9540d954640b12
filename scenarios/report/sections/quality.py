"""How well the tasks are segmented: the matrix, forgetting, gain over frozen SAM."""

from __future__ import annotations

import math

import altair as alt

from scenarios.report.drawing import FROZEN, INK, OURS, draw, values
from scenarios.report.figures import SPLITS, matrix, stage_rows
from scenarios.report.parts import Block, Chart, Key, Panel, Section, Table
from scenarios.report.reading import Run
from scenarios.report.words import MISSING, count, fraction, points


def quality(run: Run, prefix: str) -> Section:
    """The section. prefix: makes the ids of its pictures unique."""
    blocks: list[Block] = [matrix(run)]
    if not run.own_orders:
        blocks.append(forgetting_chart(run, prefix))
    if (gains := gain_chart(run, prefix)) is not None:
        blocks.append(gains)
    if run.summary.personal:
        blocks.append(personal_table(run))
    if any(value is not None for value in (run.summary.hd95 or {}).values()) or run.summary.iou_instance:
        blocks.append(other_figures(run))
    routed = run.summary.routing.confusion is not None
    return Section(
        "quality",
        "How well each task is segmented",
        f"IoU (intersection over union) measures how well a predicted outline and the true outline overlap: "
        f"0 is no overlap, 1 is a perfect match. Each institution measures it on its own "
        f"{SPLITS[run.summary.evaluated_on]} images"
        + (", with the entry that the router chose for each image." if routed else "."),
        blocks,
    )


def forgetting_chart(run: Run, prefix: str) -> Chart:
    """One small picture per task: IoU after each stage, and frozen SAM's IoU as a dashed line."""
    tasks, matrix = run.summary.tasks, run.summary.matrix["iou"]
    known = [v for _, row in stage_rows(run) for v in row if v is not None]
    low = math.floor(10 * min(known, default=0.0)) / 10
    high = min(1.0, math.ceil(10 * max(known, default=1.0)) / 10)
    panels, rows = [], []
    for j, task in enumerate(tasks):
        curve = [(t, row[j]) for t, row in enumerate(matrix, 1) if t > j]
        frozen = run.summary.zero_shot["iou"].get(task)
        scores = [(t, value) for t, value in curve if value is not None]
        best = max((value for _, value in scores[:-1]), default=None)
        lost = best - scores[-1][1] if best is not None and scores[-1][0] == len(matrix) else None
        first = fraction(curve[0][1]) if curve else MISSING
        last = fraction(curve[-1][1]) if curve else MISSING
        rows.append((task, fraction(frozen), first, last, points(lost)))
        data = [{"stage": t, "iou": v, "say": f"{task} after stage {t}: {v:.3f}"} for t, v in scores]
        x = alt.X(
            "stage:Q",
            title="stage",
            scale=alt.Scale(domain=[0.5, len(matrix) + 0.5]),
            axis=alt.Axis(values=stage_ticks(len(matrix)), format="d", grid=False),
        )
        y = alt.Y(
            "iou:Q", title=None, scale=alt.Scale(domain=[low, high]), axis=alt.Axis(tickCount=4, format=".1f")
        )
        base = alt.Chart(values(data)).encode(x=x, y=y, description=alt.Description("say:N"))
        layers: list[alt.Chart] = [
            base.mark_line(stroke=OURS, strokeWidth=2),
            base.mark_point(fill=OURS, stroke=OURS, size=40, opacity=1),
        ]
        if frozen is not None:
            rule = alt.Chart(values([{"iou": frozen, "say": f"frozen SAM: {frozen:.3f}"}]))
            layers.insert(
                0,
                rule.mark_rule(stroke=FROZEN, strokeDash=[5, 4], strokeWidth=2).encode(
                    y=y, description=alt.Description("say:N")
                ),
            )
        said = "; ".join(f"{value:.3f} after stage {t}" for t, value in scores) or "no scores were shared"
        panels.append(
            Panel(
                draw(alt.layer(*layers).properties(width=190, height=110), f"{prefix}-forget{j}"),
                f"{task}: {said}. Frozen SAM: {fraction(frozen)}.",
                task,
            )
        )
    return Chart(
        "Is anything forgotten?",
        "Each picture shows one task, from the stage in which it was learned to the last stage. A flat line "
        "means that later stages did no harm. A falling line means that the task was forgotten.",
        tuple(panels),
        Table(
            "IoU right after learning and at the end. Lost: the best earlier score minus the last one, in "
            "points",
            ("task", "frozen SAM", "right after learning", "at the end", "lost"),
            tuple(rows),
        ),
        (Key("ours", "with the bank"), Key("frozen", "frozen SAM")),
    )


def stage_ticks(stages: int) -> list[int]:
    """About eight whole numbers from 1 to `stages`."""
    return list(range(1, stages + 1, max(1, math.ceil(stages / 8))))


def gain_chart(run: Run, prefix: str) -> Chart | None:
    """Gain over frozen SAM with the institutions' own intervals; None if no gain is known."""
    data, rows = [], []
    for task in run.summary.tasks:
        found = [(who, tasks[task]) for who, tasks in run.summary.statistics.items() if task in tasks]
        for who, statistics in found:
            gain = statistics.gain
            data.append(
                {
                    "row": f"{task} · {who}",
                    "gain": 100 * gain.mean,
                    "low": None if gain.low is None else 100 * gain.low,
                    "high": None if gain.high is None else 100 * gain.high,
                    "known": gain.low is not None,
                    "say": f"{task} at {who}: {interval(gain.mean, gain.low, gain.high)}",
                }
            )
            rows.append(
                (
                    task,
                    who,
                    count(statistics.units),
                    fraction(statistics.iou.mean),
                    points(gain.mean),
                    f"{points(gain.low)} to {points(gain.high)}" if gain.low is not None else MISSING,
                    verdict(gain.low, gain.high),
                )
            )
        if not found and (gained := gain_from_matrix(run, task)) is not None:
            data.append(
                {
                    "row": f"{task} · all",
                    "gain": 100 * gained,
                    "low": None,
                    "high": None,
                    "known": False,
                    "say": f"{task}: {points(gained)} points, no interval released",
                }
            )
            rows.append((task, "all", MISSING, MISSING, points(gained), MISSING, "no interval released"))
    if not data:
        return None
    order = [str(row["row"]) for row in data]
    y = alt.Y("row:N", sort=order, title=None, axis=alt.Axis(ticks=False, domain=False, grid=False))
    x = alt.X("gain:Q", title="gain in IoU over frozen SAM, points", axis=alt.Axis(tickCount=6, format="+d"))
    base = alt.Chart(values(data)).encode(y=y, description=alt.Description("say:N"))
    zero = alt.Chart(values([{"zero": 0}])).mark_rule(stroke=INK, strokeWidth=1).encode(x="zero:Q")
    with_interval = base.transform_filter("datum.known")
    lines = with_interval.mark_rule(stroke=OURS, strokeWidth=3).encode(x=alt.X("low:Q"), x2="high:Q")
    dots = with_interval.mark_point(fill=OURS, stroke=OURS, size=70, opacity=1).encode(x=x)
    open_dots = (
        base.transform_filter("!datum.known")
        .mark_point(fill="var(--paper)", stroke=OURS, size=70, opacity=1)
        .encode(x=x)
    )
    chart = alt.layer(zero, lines, dots, open_dots).properties(width=330, height=alt.Step(26))
    said = "; ".join(str(row["say"]) for row in data)
    return Chart(
        "What is gained over frozen SAM, and how sure that is",
        "Each institution compares the bank with frozen SAM on the same images, at the last stage. The line "
        "is its 95 % bootstrap interval over patients or slides; if these are unknown, over images. An "
        "interval that includes zero means that these images show no clear difference.",
        (Panel(draw(chart, f"{prefix}-gain"), f"Gain over frozen SAM: {said}."),),
        Table(
            "Gain in IoU over frozen SAM at the last stage, in points",
            ("task", "institution", "units", "IoU", "gain", "95 % interval", "reading"),
            tuple(rows),
            words=frozenset({1, 6}),
        ),
        (Key("ours", "mean and 95 % interval"), Key("open", "no interval known")),
    )


def gain_from_matrix(run: Run, task: str) -> float | None:
    """Last score minus frozen SAM's score; None unless both are known."""
    frozen = run.summary.zero_shot["iou"].get(task)
    last = run.summary.matrix["iou"][-1][run.summary.tasks.index(task)] if run.stages else None
    return None if frozen is None or last is None else last - frozen


def interval(mean: float, low: float | None, high: float | None) -> str:
    """`+3.1 points (+1.0 to +5.2)`"""
    known = f" ({points(low)} to {points(high)})" if low is not None and high is not None else ", no interval"
    return f"{points(mean)} points{known}"


def verdict(low: float | None, high: float | None) -> str:
    """The meaning of an interval in words."""
    if low is None or high is None:
        return "too few units for an interval"
    if low > 0:
        return "better than frozen SAM"
    return "worse than frozen SAM" if high < 0 else "no clear difference"


def personal_table(run: Run) -> Table:
    """What each institution gains by its personal entries, of those who told it."""
    rows = []
    for who, tasks in sorted(run.summary.personal.items()):
        for task, iou in sorted(tasks.items()):
            shared = run.summary.statistics[who][task].iou.mean
            rows.append((task, who, fraction(shared), fraction(iou), points(iou - shared)))
    return Table(
        "IoU with personal entries at the last stage, on the same images; the gain in points",
        ("task", "institution", "shared entry", "personal entry", "gain"),
        tuple(rows),
        words=frozenset({1}),
    )


def other_figures(run: Run) -> Table:
    """Dice, boundary IoU and the other figures at the last stage."""
    summary = run.summary
    names = {"iou": "IoU", "dice": "Dice", "biou": "boundary IoU", "biou_official": "boundary IoU (authors')"}
    last = {name: summary.matrix[name][-1] for name in names if summary.matrix.get(name)}
    rows = []
    for j, task in enumerate(summary.tasks):
        cells = [fraction(row[j]) for row in last.values()]
        worst = summary.worst_institution_iou.get(task)
        row = [task, *cells, fraction(summary.iou_instance.get(task)), fraction(worst)]
        if summary.hd95 is not None:
            value = summary.hd95.get(task)
            row.append(MISSING if value is None else f"{value:.1f}")
        rows.append(tuple(row))
    head = ["task", *(names[name] for name in last)]
    head += ["IoU over instances", "lowest institution's IoU"]
    if summary.hd95 is not None:
        head.append("HD95, pixels")
    return Table("All figures at the last stage", tuple(head), tuple(rows))
