"""The result files of a study: tidy tables (CSV and Parquet), a summary in words, plots.

    results.csv/.parquet       one row per run
    institutions.csv/.parquet  one row per run, institution and task
    summary.csv                mean and interval over seeds, per combination and figure
    differences.csv            every comparison, paired by seed
    summary.md                 the answer in words
    plots/                     PNG: IoU of every comparison with its seeds, gain or loss of each institution

Each call writes all of them again from the finished runs. A file is replaced completely or not at all.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import vl_convert

from casam_core.files import write_atomic
from scenarios.study.differences import difference_rows, grouped, summary_rows
from scenarios.study.frames import run_rows, site_rows
from scenarios.study.study import Comparison, Plan, Study
from scenarios.study.text import summary_text


def write_results(folder: Path, plan: Plan, reasons: Mapping[str, str]) -> str:
    """Write all result files and return the summary. reasons: by cell, why it failed."""
    runs = run_rows(plan, folder / "runs", reasons)
    sites = site_rows(plan, folder / "runs")
    summary = summary_rows(plan.study, runs)
    differences = difference_rows(plan.study, runs, sites)
    for name, frame in (("results", runs), ("institutions", sites)):
        write_csv(folder / f"{name}.csv", frame)
        buffer = io.BytesIO()
        frame.to_parquet(buffer, engine="pyarrow", index=False)
        write_atomic(folder / f"{name}.parquet", buffer.getvalue())
    write_csv(folder / "summary.csv", summary)
    write_csv(folder / "differences.csv", differences)
    (folder / "plots").mkdir(exist_ok=True)
    for name, data in pictures(plan.study, runs, summary, differences).items():
        write_atomic(folder / "plots" / name, data)
    text = summary_text(plan, runs, sites, differences)
    write_atomic(folder / "summary.md", text.encode())
    return text


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a CSV file; a missing figure is an empty cell."""
    write_atomic(path, frame.to_csv(index=False, lineterminator="\n").encode())


def pictures(
    study: Study, runs: pd.DataFrame, summary: pd.DataFrame, differences: pd.DataFrame
) -> dict[str, bytes]:
    """PNG data by file name: up to two per comparison, if the figures for them exist."""
    found = {}
    for comparison in study.comparisons:
        others = [axis for axis in study.labels() if axis != comparison.axis]
        name = comparison.axis.replace(".", "-").replace("*", "all")
        if runs["last_iou"].notna().any():
            found[f"{name}-iou.png"] = iou_picture(comparison, others, runs, summary)
        sites = differences[(differences["comparison"] == comparison.axis)]
        sites = sites[sites["scope"] == "institution"]
        if len(sites):
            found[f"{name}-institutions.png"] = institutions_picture(comparison, others, sites)
    return found


def iou_picture(
    comparison: Comparison, others: list[str], runs: pd.DataFrame, summary: pd.DataFrame
) -> bytes:
    """Last IoU of every value: one dot per seed, the mean with its 95 % interval, the baseline as a line."""
    panels = []
    for labels, part in grouped(runs[runs["last_iou"].notna()], others):
        means = summary[summary["figure"] == "last_iou"]
        for axis, label in labels.items():
            means = means[means[axis] == label]
        values = list(dict.fromkeys(part[comparison.axis]))
        seeds, mean = (rows(frame.rename(columns={comparison.axis: "value"})) for frame in (part, means))
        x, title = alt.X("value:N", sort=values, title=None, axis=alt.Axis(labelAngle=-30)), "IoU at the end"
        dots = alt.Chart(seeds).mark_circle(color="gray").encode(x=x, y=alt.Y("last_iou:Q", title=title))
        baseline = alt.Chart(mean).transform_filter(alt.datum.value == comparison.baseline)
        line = baseline.mark_rule(strokeDash=[4, 3]).encode(y=alt.Y("mean:Q", title=title))
        chart = alt.layer(line, dots, *intervals(mean, "y", title, x=x))
        panels.append(
            chart.properties(title=title_of(labels, comparison), width=70 * len(values), height=260)
        )
    return png(panels)


def institutions_picture(comparison: Comparison, others: list[str], sites: pd.DataFrame) -> bytes:
    """Per institution and task, the difference of every value from the baseline, in points."""
    panels = []
    for labels, part in grouped(sites, others):
        points = {"mean": 100 * part["difference"], "low": 100 * part["low"], "high": 100 * part["high"]}
        data = part.assign(place=part["institution"] + ", " + part["task"], **points)
        places, values = (list(dict.fromkeys(data[column])) for column in ("place", "value"))
        encoding = {
            "y": alt.Y("place:N", sort=places, title=None),
            "yOffset": alt.YOffset("value:N", sort=values),
            "color": alt.Color("value:N", sort=values, title=None),
        }
        title = f"IoU against {comparison.baseline}, points"
        zero = alt.Chart(rows(pd.DataFrame({"zero": [0]}))).mark_rule().encode(x=alt.X("zero:Q", title=title))
        chart = alt.layer(zero, *intervals(rows(data), "x", title, **encoding))
        height = len(places) * 14 * (1 + len(values))
        panels.append(chart.properties(title=title_of(labels, comparison), width=360, height=height))
    return png(panels)


def rows(frame: pd.DataFrame) -> alt.Data:
    """The rows as data of a chart; a missing figure is null."""
    known = frame.astype(object).where(frame.notna(), None)
    return alt.Data(values=known.to_dict("records"))  # type: ignore[no-untyped-call]


def intervals(data: alt.Data, along: str, title: str, **encoding: Any) -> list[alt.Chart]:
    """Columns mean, low and high along one axis: means as points, each with its interval if it has one."""
    channel, end = {"x": (alt.X, alt.X2), "y": (alt.Y, alt.Y2)}[along]
    mean, low = (channel(f"{name}:Q", title=title, scale=alt.Scale(zero=False)) for name in ("mean", "low"))
    return [
        alt.Chart(data).mark_point(filled=True, opacity=1).encode(**encoding, **{along: mean}),
        alt.Chart(data).mark_rule().encode(**encoding, **{along: low, f"{along}2": end("high")}),
    ]


def title_of(labels: dict[str, str], comparison: Comparison) -> str:
    """The values of the other axes in this panel."""
    return ", ".join(f"{axis} {label}" for axis, label in labels.items()) or comparison.axis


def png(panels: Sequence[alt.LayerChart | alt.FacetChart]) -> bytes:
    """The panels side by side."""
    data: bytes = vl_convert.vegalite_to_png(alt.hconcat(*panels).to_dict(), scale=1.5)
    return data
