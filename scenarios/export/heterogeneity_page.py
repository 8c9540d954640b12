"""A generated part of docs/results.md: strategies where sites differ, from the study heterogeneity.

In a clone, after `casam study heterogeneity --out DIR`,

    python -m scenarios.export.heterogeneity_page DIR

writes docs/figures/heterogeneity.csv (a row per finished run), and from that file alone the tables between
the page's marks. Without DIR it makes the tables from the CSV again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from casam_bench.quality.layer_page import DOCS, publish
from casam_core.errors import RunInputError
from casam_core.files import write_atomic
from scenarios.export.paper_page import finished
from scenarios.export.paper_tables import SEEDS, complete, in_points, tested
from scenarios.study.text import table

MARK = "heterogeneity"
CSV = DOCS / "figures" / f"{MARK}.csv"
FIGURES = {"last_iou": "IoU at the end, mean of the sites", "worst_iou": "IoU at the end, worst site"}
PERSONAL = "personal_gain"
BASELINE = "fedavg"


def part_of_page(rows: pd.DataFrame) -> str:
    """A table of means and one of differences for each figure, and what personal entries gain."""
    shown = complete(rows, ["sites", "strategy"])
    sites, parts = list(dict.fromkeys(shown["sites"])), []
    for figure, name in FIGURES.items():
        lines = [f"**{name}**, points.", "", *table(["strategy", *sites], means(shown, figure, sites))]
        parts += ["\n".join(lines).strip(), differences(shown, figure, sites)]
    gains = [in_points(list(own[PERSONAL].dropna()), PERSONAL) for _, own in by_site(shown, BASELINE, sites)]
    lines = ["**A layer of each site's own on top of the mean layer**, points gained.", ""]
    parts.append("\n".join([*lines, *table(["strategy", *sites], [[BASELINE, *gains]])]).strip())
    return "\n\n".join([f"{len(shown)} runs, {SEEDS} seeds.", *parts])


def by_site(rows: pd.DataFrame, strategy: str, sites: list[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """(kind of sites, the runs of a strategy there, by seed)."""
    own = rows[rows["strategy"] == strategy]
    for kind in sites:
        yield kind, own[own["sites"] == kind].set_index("seed").sort_index()


def means(rows: pd.DataFrame, figure: str, sites: list[str]) -> Iterator[list[str]]:
    """One row per strategy: the figure for each kind of sites."""
    for strategy in dict.fromkeys(rows["strategy"]):
        yield [
            strategy,
            *(in_points(own[figure].to_list(), figure) for _, own in by_site(rows, strategy, sites)),
        ]


def differences(rows: pd.DataFrame, figure: str, sites: list[str]) -> str:
    """Every strategy against the baseline, paired by seed."""
    base = dict(by_site(rows, BASELINE, sites))
    pairs = {
        strategy: [
            (own[figure] - base[kind][figure]).dropna().to_list()
            for kind, own in by_site(rows, strategy, sites)
        ]
        for strategy in dict.fromkeys(rows["strategy"])
        if strategy != BASELINE
    }
    lines = [f"Differences to {BASELINE}, paired by seed; p after Holm.", ""]
    return "\n".join([*lines, *tested(["strategy", *sites], pairs)]).strip()


def main() -> None:
    if len(sys.argv) > 1:
        rows = finished(Path(sys.argv[1]), MARK, ["sites", "strategy", "seed", *FIGURES, PERSONAL])
        write_atomic(CSV, rows.to_csv(index=False, float_format="%.6g").encode())
    publish("results.md", MARK, part_of_page(pd.read_csv(CSV)))


if __name__ == "__main__":
    try:
        main()
    except RunInputError as error:
        sys.exit(f"error: {error}")
