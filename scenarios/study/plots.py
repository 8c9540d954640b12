"""A study's plots: the IoU of every comparison with its seeds, and each institution's gain or loss."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scenarios.study.differences import grouped
from scenarios.study.study import Comparison, Study


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
    parts = list(grouped(runs[runs["last_iou"].notna()], others))
    figure, panels = panels_of(len(parts), width=0.9 * runs[comparison.axis].nunique() + 2.2, height=3.6)
    means = summary[summary["figure"] == "last_iou"]
    for axes, (labels, part) in zip(panels, parts, strict=True):
        values = list(dict.fromkeys(part[comparison.axis]))
        here = means
        for axis, label in labels.items():
            here = here[here[axis] == label]
        by_value = here.set_index(comparison.axis)
        for x, value in enumerate(values):
            seeds = part[part[comparison.axis] == value]["last_iou"]
            axes.plot([x] * len(seeds), seeds, "o", color="tab:gray", alpha=0.6, markersize=4)
            row = by_value.loc[value]
            bar(axes, x, row["mean"], row["low"], row["high"], "tab:blue", upright=True)
            if value == comparison.baseline:
                axes.axhline(row["mean"], color="tab:blue", linewidth=0.8, linestyle="--")
        axes.set_xticks(range(len(values)), values, rotation=30, ha="right")
        axes.set_ylabel("IoU at the end")
        axes.set_title(title_of(labels) or comparison.axis, fontsize=10)
    return png(figure)


def institutions_picture(comparison: Comparison, others: list[str], sites: pd.DataFrame) -> bytes:
    """Per institution and task, the difference of every value from the baseline, in points."""
    parts = list(grouped(sites, others))
    tallest = max(part.groupby(["institution", "task"]).ngroups for _, part in parts)
    figure, panels = panels_of(len(parts), width=5.6, height=1.4 + 0.62 * tallest)
    for axes, (labels, part) in zip(panels, parts, strict=True):
        values = list(dict.fromkeys(part["value"]))
        names = list(dict.fromkeys(zip(part["institution"], part["task"], strict=True)))
        for number, value in enumerate(values):
            offset = (number - (len(values) - 1) / 2) * 0.7 / max(1, len(values))
            rows = part[part["value"] == value]
            for _, row in rows.iterrows():
                y = names.index((row["institution"], row["task"])) + offset
                amounts = (100 * row["difference"], 100 * row["low"], 100 * row["high"])
                bar(axes, y, *amounts, f"C{number}", upright=False)
            axes.plot([], [], "o", color=f"C{number}", label=value, markersize=4)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(names)), [f"{site}\n{task}" for site, task in names], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel(f"IoU against {comparison.baseline}, points")
        axes.set_title(title_of(labels) or comparison.axis, fontsize=10)
        axes.legend(fontsize=8)
    return png(figure)


def bar(axes: Axes, at: float, mean: float, low: float, high: float, colour: str, *, upright: bool) -> None:
    """A mean with its interval, if it has one."""
    reach = [[mean - low], [high - mean]] if np.isfinite([low, high]).all() else None
    place, errors = ((at, mean), {"yerr": reach}) if upright else ((mean, at), {"xerr": reach})
    axes.errorbar(*place, **errors, fmt="o", color=colour, capsize=3, markersize=4)  # type: ignore[arg-type]


def panels_of(count: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Panels side by side."""
    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def title_of(labels: dict[str, str]) -> str:
    """The values of the other axes in this panel."""
    return ", ".join(f"{axis} {label}" for axis, label in labels.items())


def png(figure: Figure) -> bytes:
    """The figure as PNG, without Matplotlib's version, so that equal studies write equal files."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
