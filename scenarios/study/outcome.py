"""The result files of a study: tidy tables (CSV and Parquet), a summary in words, plots.

    results.csv/.parquet       one row per run
    institutions.csv/.parquet  one row per run, institution and task
    summary.csv                mean and interval over seeds, per combination and figure
    differences.csv            every comparison, paired by seed
    summary.md                 the answer in words
    plots/                     PNG

Each call writes all of them again from the finished runs. A file is replaced completely or not at all.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from casam_core.files import write_atomic
from scenarios.study.differences import difference_rows, summary_rows
from scenarios.study.frames import run_rows, site_rows
from scenarios.study.plots import pictures
from scenarios.study.study import Plan
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
