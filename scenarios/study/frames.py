"""The figures of a study's runs as tidy tables: one row per run; one row per institution and task of a run.

The only source is summary.json of each run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from casam_core.methods import METHODS
from casam_core.metrics.continual import ContinualMatrix, intransigence
from scenarios.report.reading import frozen_iou, refusals
from scenarios.study.study import Cell, Plan
from server.run.summary_schema import FILE, Summary, read_summary

FIGURES = (
    "last_iou",
    "avg_iou",
    "gain_iou",
    "worst_iou",
    "unseen_iou",
    "ff_iou",
    "site_ff_iou",
    "bwt_iou",
    "fwt_iou",
    "plasticity_iou",
    "intransigence_iou",
    "personal_gain",
    "routing_accuracy",
    "false_unknown_rate",
    "auroc_near",
    "fpr95_near",
    "auroc_far",
    "fpr95_far",
    "epsilon_train",
    "bytes_up",
    "bytes_down",
    "refusals",
    "trained_parameters",
    "learning_seconds",
    "seconds",
)
"""Columns of a run's figures; docs/studies.md explains them."""

RUN_COLUMNS = ("cell", "seed", "status", "reason", "learning_rate", "scores", *FIGURES)

ESTIMATES = ("mean", "sd", "low", "high")
SITE_NUMBERS = (
    *(f"{what}_{part}" for what in ("iou", "gain") for part in ESTIMATES),
    "personal_iou",
    "epsilon_train",
    "epsilon_metrics",
    "bytes_up",
    "refusals",
)
SITE_COLUMNS = ("cell", "seed", "institution", "task", "learned", "trained", "units", *SITE_NUMBERS)


def points_in(figure: str) -> float:
    """Points in one unit of a figure; forgetting is in points already."""
    return 1.0 if figure.endswith("ff_iou") else 100.0


def run_rows(plan: Plan, runs: Path, reasons: Mapping[str, str]) -> pd.DataFrame:
    """One row per cell; a cell without a finished run has a reason and no figures."""
    rows = []
    summaries = {cell.name: summary_of(runs, cell) for cell in plan.cells}
    for cell in plan.cells:
        summary = summaries[cell.name]
        status = "finished" if summary else "failed" if cell.name in reasons else "missing"
        reference = joint_of(plan, cell)
        joint = summaries[reference.name] if reference else None
        figures = figures_of(summary, joint) if summary else dict.fromkeys(FIGURES)
        reason, rate = reasons.get(cell.name, ""), cell.scenario.alignment.learning_rate
        scores = scores_of(summary) if summary else ""
        row = {**head(cell), "status": status, "reason": reason, "learning_rate": rate, "scores": scores}
        row |= figures
        rows.append(row)
    return pd.DataFrame(rows).astype(dict.fromkeys(("learning_rate", *FIGURES), "float64"))


def joint_of(plan: Plan, cell: Cell) -> Cell | None:
    """The cell that learns the same stream together under the same seed, with the most labels alike."""
    alike = [
        other
        for other in plan.cells
        if METHODS[other.scenario.method].pools
        and (other.seed, other.scenario.stream) == (cell.seed, cell.scenario.stream)
    ]
    return max(alike, key=lambda other: len(cell.labels.items() & other.labels.items()), default=None)


def site_rows(plan: Plan, runs: Path) -> pd.DataFrame:
    """One row per finished cell, institution and task, with the institution's own statistics.

    Institutions that do not share exact scores have no row.
    """
    rows = [
        {**head(cell), **row}
        for cell in plan.cells
        if (summary := summary_of(runs, cell))
        for row in sites_of(summary)
    ]
    frame = pd.DataFrame(rows, columns=[*plan.study.labels(), *SITE_COLUMNS])
    return frame.astype(dict.fromkeys(SITE_NUMBERS, "float64"))


def head(cell: Cell) -> dict[str, Any]:
    """The columns that identify a row."""
    return {**cell.labels, "cell": cell.name, "seed": cell.seed}


def summary_of(runs: Path, cell: Cell) -> Summary | None:
    """The summary of the cell's run; None if there is none. Raises RunError for a damaged one."""
    folder = runs / cell.name
    return read_summary(folder) if (folder / FILE).exists() else None


def figures_of(summary: Summary, joint: Summary | None = None) -> dict[str, float | None]:
    """FIGURES of one run; None for a figure that does not apply or is unknown.

    joint: the run of the same seed and stream that learns tasks together, the reference of intransigence.
    """
    lacks = intransigence(matrix_of(summary), matrix_of(joint)).value if joint else None
    routing, learning = summary.routing, summary.timing.learning_processor
    processor = [seconds for seconds in learning if seconds is not None]
    last, frozen, whole = summary.last_iou, frozen_iou(summary), summary.complete.get("last_iou", False)
    worst = known_all(summary.worst_institution_iou)
    forgotten = [points for points in summary.site_ff_iou.values() if points is not None]
    spent = [site.epsilon_train for site in summary.privacy.values() if site.epsilon_train is not None]
    return {
        "last_iou": last,
        "avg_iou": summary.avg_iou,
        "gain_iou": None if last is None or frozen is None or not whole else last - frozen,
        "worst_iou": min(worst, default=None),
        "unseen_iou": unseen_iou(summary),
        "ff_iou": summary.ff_iou,
        "site_ff_iou": fmean(forgotten) if forgotten else None,
        "bwt_iou": summary.bwt_iou,
        "fwt_iou": summary.fwt_iou,
        "plasticity_iou": summary.plasticity_iou,
        "intransigence_iou": lacks,
        "personal_gain": personal_gain(summary),
        "routing_accuracy": summary.routing.accuracy,
        "false_unknown_rate": summary.routing.false_unknown_rate,
        "auroc_near": routing.near.auroc,
        "fpr95_near": routing.near.fpr95,
        "auroc_far": routing.far.auroc,
        "fpr95_far": routing.far.fpr95,
        "epsilon_train": max(spent, default=None),
        "bytes_up": sum(summary.bytes.up.values()),
        "bytes_down": sum(summary.bytes.down.values()),
        "refusals": refusals(summary),
        "trained_parameters": summary.trained_parameters,
        "learning_seconds": sum(processor) if len(processor) == len(summary.timing.stages) else None,
        "seconds": summary.timing.seconds,
    }


def scores_of(summary: Summary) -> str:
    """What a run's means are over: `all` scores, or the known ones, as `polyp 1 2; histology 2` (stages)."""
    lacking = [name for name, complete in summary.complete.items() if not complete]
    if all(getattr(summary, name, None) is None for name in lacking):  # no mean of some scores
        return "all"
    columns = zip(*summary.matrix["iou"], strict=True)
    stages = [[str(t) for t, iou in enumerate(column, 1) if iou is not None] for column in columns]
    return "; ".join(" ".join([task, *known]) for task, known in zip(summary.tasks, stages, strict=True))


def matrix_of(summary: Summary) -> ContinualMatrix:
    """The continual matrix of the IoU."""
    return ContinualMatrix(tuple(summary.tasks), tuple(map(tuple, summary.matrix["iou"])))


def unseen_iou(summary: Summary) -> float | None:
    """Mean IoU at the last stage over the unseen tasks; None without any, or if one of them is unknown."""
    values = known_all(summary.unseen.iou[-1])
    return fmean(values) if values else None


def known_all(scores: Mapping[str, float | None]) -> list[float]:
    """The scores; none if one is unknown, because the mean or worst of the others is another figure."""
    known = [score for score in scores.values() if score is not None]
    return known if len(known) == len(scores) else []


def personal_gain(summary: Summary) -> float | None:
    """Mean over institutions and tasks: IoU with personal entries minus IoU with shared ones; None if nobody
    told."""
    gains = [
        iou - summary.statistics[name][task].iou.mean
        for name, tasks in summary.personal.items()
        for task, iou in tasks.items()
    ]
    return fmean(gains) if gains else None


def sites_of(summary: Summary) -> list[dict[str, Any]]:
    """One row per institution and task of a run."""
    return [
        {
            "institution": name,
            "task": task,
            "learned": task in summary.tasks,
            "trained": name in summary.holders.get(task, []),
            "units": found.units,
            **{
                f"{what}_{part}": getattr(estimate, part)
                for what, estimate in (("iou", found.iou), ("gain", found.gain))
                for part in ESTIMATES
            },
            "personal_iou": summary.personal.get(name, {}).get(task),
            "epsilon_train": summary.privacy[name].epsilon_train,
            "epsilon_metrics": summary.privacy[name].epsilon_metrics,
            "bytes_up": summary.bytes.up.get(name),
            "refusals": sum(summary.privacy[name].refusals.values()),
        }
        for name, tasks in summary.statistics.items()
        for task, found in tasks.items()
    ]
