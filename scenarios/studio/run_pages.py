"""The list of runs, the result of one, and two beside each other, as parts of a page."""

from __future__ import annotations

import time
from urllib.parse import quote

from casam_core.errors import CasamError
from scenarios.report.figures import figures_table, matrix
from scenarios.report.parts import Block, Cell, Heat, Notice, Row, Section, Table
from scenarios.report.reading import Run, read_run
from scenarios.report.sections.headline import headline
from scenarios.report.sections.record import course
from scenarios.report.words import MISSING, duration, fraction
from scenarios.studio.live_page import state_of, view_of
from scenarios.studio.shelf import RunItem
from scenarios.studio.started import Starter
from server.run.summary_schema import read_summary


def link(page: str, at: str) -> str:
    """`/run?at=0/quick`"""
    return f"{page}?at={quote(at)}"


def runs_table(runs: list[RunItem], starter: Starter) -> Table:
    """All runs, the newest first."""
    rows = [run_row(run, starter) for run in runs]
    heads = ("run", "scenario", "state", "IoU at the end", "forgotten, points", "last event")
    return Table("Runs in the given folders", heads, tuple(rows), words=frozenset({1, 2, 5}))


def run_row(run: RunItem, starter: Starter) -> Row:
    """One run; a run with damaged files says so."""
    name = Cell(run.name, href=link("/run", run.at))
    ago = f"{duration(time.time() - run.changed)} ago"
    try:
        if run.finished:
            summary = read_summary(run.path)
            lost = MISSING if summary.ff_iou is None else f"{summary.ff_iou:.2f}"
            return name, summary.scenario, Cell("completed", "good"), fraction(summary.last_iou), lost, ago
    except CasamError:
        return name, MISSING, Cell("damaged files", "failed"), MISSING, MISSING, ago
    view = view_of(run.path)
    state = state_of(run, view, starter.of(run.path))
    shown = Cell(state, "failed" if state == "failed" else "")
    return name, MISSING, shown, MISSING, MISSING, ago


def result_sections(run: Run) -> list[Section]:
    """A finished run: what came out, the matrix, who did what. The report says more."""
    return [
        headline(run),
        Section("matrix", "How well each task is segmented", "", [matrix(run)]),
        course(run),
    ]


def compared(first: RunItem, second: RunItem) -> list[Block]:
    """The figures of two finished runs beside each other, and their matrices. Raises RunInputError."""
    runs = [read_run(item.path, item.name) for item in (first, second)]
    matrices = [matrix(run) for run in runs]
    return [
        Notice("Differences are relative to the first run. A difference between two runs may be chance."),
        figures_table(runs),
        *(
            Heat(f"{run.label}: matrix", heat.help, heat.table)
            for run, heat in zip(runs, matrices, strict=True)
        ),
    ]
