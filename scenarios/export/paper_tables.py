"""The tables of the study paper-tables as Markdown, from its rows (scenarios/export/paper_page.py).

A cell is a mean over seeds with half of its 95 % interval (Student's); a difference is paired by seed. No
method is shown in an order with fewer seeds than are EVIDENCE.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from casam_bench.quality.layer_page import EVIDENCE
from scenarios.study.differences import Spread, holm, student
from scenarios.study.frames import points_in
from scenarios.study.text import LEVEL, probability, table

OURS = "casam"
QUALITY = {
    "last_iou": "Last",
    "avg_iou": "Avg",
    "ff_iou": "FF",
    "bwt_iou": "BWT",
    "fwt_iou": "FWT",
    "plasticity_iou": "plasticity",
    "intransigence_iou": "intransigence",
    "worst_iou": "worst task, unseen too",
    "unseen_iou": "unseen",
}
ROUTING = {
    "routing_accuracy": "accuracy",
    "false_unknown_rate": "own images to frozen SAM",
    "auroc_near": "AUROC, near",
    "fpr95_near": "FPR95, near",
    "auroc_far": "AUROC, far",
    "fpr95_far": "FPR95, far",
}
COSTS = {
    "trained_parameters": "parameters of a layer",
    "bytes_up": "bytes sent",
    "bytes_down": "bytes received",
    "learning_seconds": "processor seconds",
}
COMPARED = ("last_iou", "avg_iou", "plasticity_iou", "worst_iou", "unseen_iou")
"""Differences of these are tested; Holm's correction is over all methods and these figures of one table."""


def complete(rows: pd.DataFrame, axes: Sequence[str] = ("method", "order")) -> pd.DataFrame:
    """The rows of cells that have at least EVIDENCE seeds."""
    seeds = rows.groupby(list(axes), sort=False, dropna=False)["seed"].transform("nunique")
    return rows[seeds >= EVIDENCE]


def part_of_page(rows: pd.DataFrame, trials: pd.DataFrame) -> str:
    """All tables: the trials; the methods that ran at their best rates in all orders; and by order those that
    ran so there but not in all, beside ours."""
    best = at_rates(rows, best_rates(trials))
    orders = list(dict.fromkeys(rows["order"]))
    everywhere = best[best.groupby("method")["order"].transform("nunique") == len(orders)]
    name = f"{len(orders)} orders" if len(orders) > 1 else f"Order {orders[0]}"
    parts = ["### Learning rates\n\n" + of_trials(trials)]
    parts += [f"### {name}, at the best of these rates", of_runs(everywhere)]
    if len(orders) > 1:
        parts.append("\n".join(["By order.", "", *by_order(everywhere, orders)]).strip())
    for order, own in best.groupby("order", sort=False):
        if further := [m for m in dict.fromkeys(own["method"]) if m not in set(everywhere["method"])]:
            parts.append(f"### Order {order}, at the best of these rates: {', '.join(further)}")
            parts.append(of_runs(own[own["method"].isin([OURS, *further])]))
    if never := sorted(set(rows["method"]) - set(best["method"])):
        parts.append(f"Without {', '.join(never)}, which did not run at its best rate.")
    return "\n\n".join(parts)


def best_rates(trials: pd.DataFrame) -> pd.Series:
    """By method, the rate with the highest IoU on validation images; of equally good ones the lowest, as in
    scenarios.study.tuning."""
    order = trials.sort_values(["last_iou", "learning_rate"], ascending=[False, True])
    return order.groupby("method")["learning_rate"].first()


def at_rates(rows: pd.DataFrame, rates: pd.Series) -> pd.DataFrame:
    """The complete cells that learned at their method's rate, or do not learn. rates: by method."""
    wanted = rows["method"].map(rates)
    return complete(rows[wanted.isna() | np.isclose(rows["learning_rate"], wanted)])


def by_order(rows: pd.DataFrame, orders: Sequence[str]) -> Iterator[str]:
    """One table: what each method ends with, and forgets, in each order."""
    figures = [(figure, order) for figure in ("last_iou", "ff_iou") for order in orders]
    lines = [
        [str(method), *(in_points(by_seed(own[own["order"] == order], f), f) for f, order in figures)]
        for method, own in rows.groupby("method", sort=False)
    ]
    yield from table(["method", *(f"{QUALITY[figure]}, {order}" for figure, order in figures)], lines)


def of_trials(trials: pd.DataFrame) -> str:
    """One table: by method its rates from low to high, each with the IoU on validation images; the best is
    bold."""
    best, lines = best_rates(trials), []
    for method, tried in trials.groupby("method", sort=False):
        own = tried.sort_values("learning_rate")
        cells = [str(method)]
        for rate, iou in zip(own["learning_rate"], own["last_iou"], strict=True):
            cell = f"{rate:g}: {100 * iou:.1f}"
            cells.append(f"**{cell}**" if rate == best[method] else cell)
        lines.append(cells)
    return "\n".join(table(["method", "lower", "the form's own", "higher"], lines)).strip()


def of_runs(rows: pd.DataFrame) -> str:
    """Five tables of one set of runs, each method on the same seeds and orders."""
    seeds = rows.groupby("method")["seed"].nunique().min()
    lines = [f"{len(rows)} runs, {seeds} seeds. Scores in points.", ""]
    lines += table(["method", *QUALITY.values()], means(rows, QUALITY))
    lines += ["Differences to casam, paired; p after Holm.", "", *differences(rows)]
    routed = rows[rows["routing_accuracy"].notna()]
    lines += [
        "The router, and unknown images.",
        "",
        *table(["method", *ROUTING.values()], means(routed, ROUTING)),
    ]
    lines += ["Costs of a run.", "", *table(["method", *COSTS.values()], costs(rows))]
    return "\n".join(lines).strip()


def means(rows: pd.DataFrame, figures: Sequence[str] | dict[str, str]) -> Iterator[list[str]]:
    """One row per method: each figure in points."""
    for method, own in rows.groupby("method", sort=False):
        yield [str(method), *(in_points(by_seed(own, figure), figure) for figure in figures)]


def by_seed(rows: pd.DataFrame, figure: str) -> list[float]:
    """By seed, the mean over orders of a figure: orders of one seed share images and are not independent."""
    values: list[float] = rows.groupby("seed")[figure].mean().dropna().to_list()
    return values


def in_points(values: Sequence[float], figure: str) -> str:
    """`71.2 ± 1.3`; a dash for a figure that the method does not have."""
    if not values:
        return "-"
    scale, spread = points_in(figure), student(values)
    half = "" if spread.high is None else f" ± {scale * (spread.high - spread.mean):.1f}"
    return f"{scale * spread.mean:z.1f}{half}"


def differences(rows: pd.DataFrame) -> Iterator[str]:
    """Every method against ours, paired by seed: one table."""
    wide = {f: rows.groupby(["seed", "method"])[f].mean().unstack() for f in COMPARED}
    others = [m for m in dict.fromkeys(rows["method"]) if m != OURS]
    pairs = {m: [(wide[f][m] - wide[f][OURS]).dropna().to_list() for f in COMPARED] for m in others}
    yield from paired_table(["method", *(QUALITY[f] for f in COMPARED)], pairs)


def paired_table(
    head: Sequence[str], pairs: Mapping[str, Sequence[Sequence[float]]], scale: float = 100.0
) -> Iterator[str]:
    """A table of paired differences; Holm's correction is over all its cells, and significant ones are bold.

    pairs: by row and column, the difference of every seed. scale: what makes points of it.
    """
    found = {(row, i): student(values) for row, cells in pairs.items() for i, values in enumerate(cells)}
    adjusted = dict(zip(found, holm([spread.p for spread in found.values()]), strict=True))
    rows = [
        [row, *(difference(found[row, i], adjusted[row, i], scale) for i in range(len(cells)))]
        for row, cells in pairs.items()
    ]
    yield from table(head, rows)


def difference(spread: Spread, p: float | None, scale: float) -> str:
    """`-3.1 ± 0.9 (p 0.012)`."""
    assert spread.high is not None  # at least EVIDENCE pairs
    assert p is not None
    half = scale * (spread.high - spread.mean)
    text = f"{scale * spread.mean:+.1f} ± {half:.1f} (p {probability(p)})"
    return f"**{text}**" if p < LEVEL else text


def costs(rows: pd.DataFrame) -> Iterator[list[str]]:
    """One row per method: means over the runs that have the figure, `-` if none has."""
    for method, own in rows.groupby("method", sort=False):
        means_of = [own[figure].mean() for figure in COSTS]
        yield [str(method), *("-" if pd.isna(mean) else f"{mean:,.0f}" for mean in means_of)]
