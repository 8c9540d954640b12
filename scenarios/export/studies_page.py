"""Generated parts of docs/results.md: sites that differ, orders of sites' own, and policies.

In a clone, after `casam study heterogeneity --out DIR`, and the same for own-orders and privacy-utility,

    python -m scenarios.export.studies_page DIR ...

writes for each of these studies docs/figures/STUDY.csv (a row per finished run), and from these files alone
the tables between the page's marks. Without a folder it makes the tables from the files again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from casam_bench.quality.layer_page import DOCS, EVIDENCE, publish
from casam_core.errors import RunInputError
from casam_core.files import write_atomic
from scenarios.export.paper_page import finished
from scenarios.export.paper_tables import complete, in_points, paired_table
from scenarios.study.frames import points_in
from scenarios.study.text import table
from server.run.summary_schema import read_json

FIGURES = {"last_iou": "IoU at the end, mean of the sites", "worst_iou": "IoU at the end, worst site"}
ORDER_FIGURES = {"last_iou": "IoU at the end", "site_ff_iou": "forgotten by institutions"}
POLICY_FIGURES = {"gain_iou": "above frozen SAM", "false_unknown_rate": "own images to frozen SAM by mistake"}
PERSONAL = "personal_gain"
BASELINE, OPEN = "fedavg", "open"


def sites_part(rows: pd.DataFrame) -> str:
    """A table of means and one of differences for each figure, and what personal entries gain."""
    shown = complete(rows, ["sites", "strategy"])
    sites, parts = list(dict.fromkeys(shown["sites"])), []
    for figure, name in FIGURES.items():
        lines = [f"**{name}**, points.", "", *table(["strategy", *sites], means(shown, figure, sites))]
        parts += ["\n".join(lines).strip(), differences(shown, figure, sites)]
    gains = [in_points(list(own[PERSONAL].dropna()), PERSONAL) for _, own in by_site(shown, BASELINE, sites)]
    lines = ["**A layer of each site's own on top of the mean layer**, points gained.", ""]
    parts.append("\n".join([*lines, *table(["strategy", *sites], [[BASELINE, *gains]])]).strip())
    return "\n\n".join([f"{len(shown)} runs, {EVIDENCE} seeds.", *parts])


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
    return "\n".join([*lines, *paired_table(["strategy", *sites], pairs)]).strip()


# --- Orders


def orders_part(rows: pd.DataFrame) -> str:
    """By method: both figures in one order and in orders of their own, and the difference of every seed."""
    shown = complete(rows, ["orders", "method"])
    lines, pairs = [], {}
    for method, own in shown.groupby("method", sort=False):
        of = {(f, o): by_order(own, o, f) for f in ORDER_FIGURES for o in ("one", "own")}
        lines.append([str(method), *(in_points(values.to_list(), f) for (f, _), values in of.items())])
        pairs[str(method)] = [
            (points_in(f) * (of[f, "own"] - of[f, "one"])).dropna().to_list() for f in ORDER_FIGURES
        ]
    head = [f"{name}, {order}" for name in ORDER_FIGURES.values() for order in ("one order", "own orders")]
    found = [f"{len(shown)} runs, {EVIDENCE} seeds. Points.", "", *table(["method", *head], lines)]
    found += ["Own orders against one, paired by seed; p after Holm.", ""]
    return "\n".join([*found, *paired_table(["method", *ORDER_FIGURES.values()], pairs, scale=1.0)]).strip()


def by_order(rows: pd.DataFrame, orders: str, figure: str) -> pd.Series[float]:
    """A figure of one method, by seed."""
    return rows[rows["orders"] == orders].set_index("seed")[figure].sort_index()


# --- Policies


def policies_part(rows: pd.DataFrame) -> str:
    """For each kind of data: figures of each policy's runs, and how much less they gain than open runs."""
    parts = []
    for data, of_data in complete(rows, ["data", "policy"]).groupby("data", sort=False):
        of = {str(name): own.set_index("seed") for name, own in of_data.groupby("policy", sort=False)}
        lines = [
            [name, *(in_points(list(own[f].dropna()), f) for f in POLICY_FIGURES)] for name, own in of.items()
        ]
        lost = {name: own["gain_iou"] - of[OPEN]["gain_iou"] for name, own in of.items() if name != OPEN}
        pairs = {name: [values.dropna().to_list()] for name, values in lost.items()}
        found = [f"**{data}**, {len(of_data)} runs, {EVIDENCE} seeds. Points.", ""]
        found += table(["policy", *POLICY_FIGURES.values()], lines)
        found += ["Differences to open, paired by seed; p after Holm.", ""]
        found += paired_table(["policy", POLICY_FIGURES["gain_iou"]], pairs)
        parts.append("\n".join(found).strip())
    return "\n\n".join(parts)


PARTS: dict[str, tuple[list[str], Callable[[pd.DataFrame], str]]] = {
    "heterogeneity": (["sites", "strategy", "seed", *FIGURES, PERSONAL], sites_part),
    "own-orders": (["orders", "method", "seed", *ORDER_FIGURES], orders_part),
    "privacy-utility": (["data", "policy", "seed", *POLICY_FIGURES], policies_part),
}
"""By study: the columns of its file, and what makes its part of the page."""


def main() -> None:
    for folder in map(Path, sys.argv[1:]):
        study = str(read_json(folder / "study.json")["study"]["name"])
        if study not in PARTS:
            raise RunInputError(f"{folder}: expected a study of {', '.join(PARTS)}, found {study}")
        rows = finished(folder, study, PARTS[study][0])
        write_atomic(
            DOCS / "figures" / f"{study}.csv", rows.to_csv(index=False, float_format="%.6g").encode()
        )
    for study, (_, part) in PARTS.items():
        publish("results.md", study, part(pd.read_csv(DOCS / "figures" / f"{study}.csv")))


if __name__ == "__main__":
    try:
        main()
    except RunInputError as error:
        sys.exit(f"error: {error}")
