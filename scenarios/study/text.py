"""A study's answer in words: summary.md, from its tables.

A difference is significant if its p value, corrected for all tests of its kind (Holm), is below 0.05. "Not
significant" does not mean "no cost": with few seeds only large differences become significant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from scenarios.study.differences import grouped
from scenarios.study.frames import points_in
from scenarios.study.study import Comparison, Plan

LEVEL = 0.05
MEANINGS = {
    "last_iou": "IoU at the end",
    "worst_iou": "worst institution",
    "unseen_iou": "unseen tasks",
    "ff_iou": "forgetting",
    "site_ff_iou": "forgetting of sites",
    "fwt_iou": "forward transfer",
    "plasticity_iou": "plasticity",
    "intransigence_iou": "intransigence",
    "personal_gain": "gain of personal entries",
    "false_unknown_rate": "to frozen SAM by mistake",
}
"""Figures of a run in the first table of a comparison, with their column heads."""
PRICES = ("epsilon", "bytes up", "trained parameters", "seconds of learning")
"""More columns of that table: the highest epsilon, and means over seeds of PRICED."""
PRICED = ("bytes_up", "trained_parameters", "learning_seconds")


def summary_text(plan: Plan, runs: pd.DataFrame, sites: pd.DataFrame, differences: pd.DataFrame) -> str:
    """The text of summary.md."""
    return "\n".join(lines(plan, runs, sites, differences)) + "\n"


def lines(plan: Plan, runs: pd.DataFrame, sites: pd.DataFrame, differences: pd.DataFrame) -> Iterator[str]:
    """Lines of the page: head, missing runs, then every comparison."""
    study = plan.study
    done = runs[runs["status"] == "finished"]
    yield f"# Study {study.name}\n"
    yield f"{study.description}\n"
    yield f"{len(done)} of {len(runs)} runs finished, seeds {', '.join(map(str, study.seeds))}."
    for what in plan.left_out:
        yield f"Skipped: {what}, which needs --data-root."
    for row in runs[runs["status"] != "finished"].to_dict("records"):
        yield f"- {row['cell']} {row['status']}: {row['reason'] or 'not run yet'}"
    yield ""
    yield "IoU is in points (hundredths), with [95 % interval over seeds]. Differences are paired by seed.\n"
    if not study.comparisons:
        yield from table(["combination", *MEANINGS.values()], combinations(plan, done))
    for comparison in study.comparisons:
        yield f"## {comparison.question or f'{comparison.axis} against {comparison.baseline}'}\n"
        mine = differences[differences["comparison"] == comparison.axis]
        others = [axis for axis in study.labels() if axis != comparison.axis]
        for labels, part in grouped(done, others):
            if labels:
                yield "### " + ", ".join(f"{axis} {label}" for axis, label in labels.items()) + "\n"
            here = mine
            for axis, label in labels.items():
                here = here[here[axis] == label]
            yield from table(
                [comparison.axis, *MEANINGS.values(), "cost or gain", "p (Holm)", *PRICES],
                costs(comparison, part, here[here["scope"] == "run"]),
            )
            yield from whom(comparison, here[here["scope"] == "institution"])
            for value in dict.fromkeys(part[comparison.axis]):
                if value != comparison.baseline:
                    yield f"- {verdict(value, comparison, here)}"
            yield ""


def combinations(plan: Plan, done: pd.DataFrame) -> Iterator[list[str]]:
    """Rows of a study without comparisons."""
    for labels, part in grouped(done, list(plan.study.labels())):
        yield [", ".join(labels.values()), *means(part)]


def means(part: pd.DataFrame) -> list[str]:
    """Mean over seeds of the figures in MEANINGS."""
    return [
        in_points(part[figure].mean(), points_in(figure)) if part[figure].notna().any() else "-"
        for figure in MEANINGS
    ]


def costs(comparison: Comparison, part: pd.DataFrame, here: pd.DataFrame) -> Iterator[list[str]]:
    """One row per value of the axis."""
    last = here[here["figure"] == "last_iou"].set_index("value")
    for value, rows in part.groupby(comparison.axis, sort=False):
        spent = rows["epsilon_train"].max()
        row = last.loc[value] if value in last.index else None
        yield [
            str(value),
            *means(rows),
            "baseline" if value == comparison.baseline else "-" if row is None else interval(row),
            "" if row is None else probability(row["p_holm"]),
            "-" if pd.isna(spent) else f"{spent:.2f}",
            *(f"{rows[figure].mean():,.0f}" for figure in PRICED),
        ]


def whom(comparison: Comparison, here: pd.DataFrame) -> Iterator[str]:
    """A table by institution and task: the baseline's IoU, and every other value's difference from it."""
    if not len(here):
        return
    values = list(dict.fromkeys(here["value"]))
    rows = []
    for labels, part in grouped(here, ["institution", "task"]):
        by_value = part.set_index("value")
        cells = [
            f"{interval(by_value.loc[value])}{'*' if significant(by_value.loc[value]) else ''}"
            if value in by_value.index
            else "-"
            for value in values
        ]
        rows.append([labels["institution"], labels["task"], in_points(part["baseline_mean"].iloc[0]), *cells])
    yield f"By institution: IoU under {comparison.baseline}, then each value's difference (* significant):\n"
    yield from table(["institution", "task", comparison.baseline, *values], rows)


def verdict(value: str, comparison: Comparison, here: pd.DataFrame) -> str:
    """Sentences about one value: its effect on the mean IoU, and on the institution that loses most."""
    mine = here[here["value"] == value]
    run = mine[(mine["scope"] == "run") & (mine["figure"] == "last_iou")]
    name = f"**{value}**"
    if not len(run):
        return (
            f"{name}: nothing to compare, because a run is missing, or a mean lacks scores that "
            f"{comparison.baseline} has."
        )
    row = run.iloc[0]
    text = f"{name} {change(row)} of mean IoU against {comparison.baseline}: {judged(row)}."
    sites = mine[(mine["scope"] == "institution")]
    if len(sites):
        worst = sites.loc[sites["difference"].idxmin()]
        where = f"{worst['institution']} ({worst['task']})"
        if worst["difference"] < 0:
            points_lost = f"{-100 * worst['difference']:.1f} points"
            own = "" if pd.isna(worst["own_low"]) else f"; {by_itself(worst)}"
            text += f" The largest loss is at {where}, {points_lost}: {judged(worst)}{own}."
        count = sum(significant(site) and site["difference"] < 0 for _, site in sites.iterrows())
        text += f" Significantly worse off: {count} of {len(sites)} datasets."
    return text


def by_itself(row: pd.Series) -> str:
    """The interval from the institution's own statistics, in words."""
    low, high = 100 * row["own_low"], 100 * row["own_high"]
    return f"from its own images alone the difference is between {low:+.1f} and {high:+.1f}"


def change(row: pd.Series) -> str:
    """The difference in words."""
    if same(row):
        return "changes nothing"
    amount = f"{abs(100 * row['difference']):.1f} points"
    return f"costs {amount}" if row["difference"] < 0 else f"gains {amount}"


def judged(row: pd.Series) -> str:
    """Whether the difference is significant, in words."""
    if same(row):
        return "the same figure under every seed"
    if pd.isna(row["p_holm"]):
        return "one seed cannot show whether this is chance"
    word = "significant" if significant(row) else "not significant"
    return f"{word} (p = {probability(row['p_holm'])}, {row['seeds']} seeds)"


def same(row: pd.Series) -> bool:
    """Whether the figure equals the baseline's figure exactly, under every seed."""
    return bool(row["difference"] == 0 and (pd.isna(row["sd"]) or row["sd"] == 0))


def significant(row: pd.Series) -> bool:
    """Whether the corrected p value is below LEVEL."""
    return bool(not pd.isna(row["p_holm"]) and row["p_holm"] < LEVEL)


def interval(row: pd.Series) -> str:
    """`-3.1 [-4.0, -2.2]` in points."""
    if pd.isna(row["low"]):
        return f"{100 * row['difference']:+.1f}"
    return f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"


def in_points(value: float, scale: float = 100.0) -> str:
    """A score in points, without a sign."""
    return "-" if pd.isna(value) else f"{scale * value:.1f}"


def probability(p: float) -> str:
    """A p value; below 0.001 only as `< 0.001`."""
    return "-" if pd.isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def table(head: Sequence[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """A Markdown table without its empty columns."""
    rows = list(rows)
    kept = [i for i in range(len(head)) if any(row[i] not in ("", "-") for row in rows)]
    for row in [list(head), ["---"] * len(head), *rows]:
        yield "| " + " | ".join(row[i] for i in kept) + " |"
    yield ""
