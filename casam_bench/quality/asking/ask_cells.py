"""`casam ask` against full runs: does the full figure lie in the 90 % interval, and after how many seconds?

A change is asked once, in a new process and without the memory of earlier questions. Then the changed
scenario is run whole: once where nothing is drawn at random, else with DRAWS other draws of the noise. Every
answer and every full run is a file, so the command can be stopped and started again.

Full runs have the test images of the run, so they are compared with the interval over the noise alone; the
printed interval is wider, because it also allows for other test images.
"""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from casam_bench.bench import Figures, Surroundings, csv_of
from casam_bench.quality.asking.ask_tables import Row, figures_of, table_of
from casam_bench.quality.asking.changes import CHANGES, Change, scenario_of
from casam_bench.quality.layer_seconds import kept_or_made
from casam_core.errors import CasamError
from casam_core.files import write_atomic

FRESH, DRAWS = 100, 2
"""The first draw of the noise that no answer has drawn, and how many full runs there are with noise."""

LIMIT = 900.0
"""Seconds that an answer may take here. The command's own limit is 30: on a machine that does other work, a
process of low priority would meet it after a few seconds of work, so `worked` is what counts."""

NAN = float("nan")


@dataclass(frozen=True)
class Bench:
    """Where one call keeps its cells."""

    around: Surroundings

    @property
    def home(self) -> Path:
        """Folder of runs, answers and full runs."""
        return self.around.home / "ask"

    def run_of(self, change: Change) -> Path:
        """The run that the question is about; made if it is not there."""
        run = self.home / "runs" / change.base
        if not (run / "order.json").is_file():
            shutil.rmtree(run, ignore_errors=True)
            self.around.say(f"{change.base}: the run")
            self.around.engines.begin(scenario_of(change.base), run, self.around.data_root)
        return run

    def answered(self, change: Change) -> dict[str, Any]:
        """The answer, or the line that says why there is none."""
        run = self.run_of(change)
        shutil.rmtree(run / "ask", ignore_errors=True)
        begun, worked = time.monotonic(), children()
        try:
            found = self.around.engines.ask(run, change.settings, LIMIT)
        except CasamError as error:
            found = {"none": str(error)}
        return found | {"wall": time.monotonic() - begun, "worked": children() - worked}

    def full(self, change: Change, draw: int) -> dict[str, Any]:
        """The figures of the full run, or with what it ended."""
        run = self.run_of(change)
        with tempfile.TemporaryDirectory(prefix="casam-bench-") as folder:
            try:
                figures = self.around.engines.changed_run(run, change.settings, Path(folder) / "run", draw)
            except CasamError as error:
                return {"ended": str(error)}
        return {"figures": figures}

    def cell(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """What is kept under this name; None while another process makes it."""
        return kept_or_made(self.home / f"{name}.json", make)


def children() -> float:
    """Processor seconds of the processes that this one started and that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(around: Surroundings) -> Figures:
    """All changes: the answers and one full run of each, then the other draws. Rows are also in ask.csv."""
    bench = Bench(around)
    changes = [c for c in CHANGES if c.kind == "phantom" or around.data_root]
    if around.smoke:
        changes = changes[:1]
    found: dict[str, list[Row]] = {}
    rows: list[Row] = []
    for draw in range(DRAWS):
        for change in changes:
            answer = bench.cell(f"{change.slug}-answer", partial(bench.answered, change))
            if answer is None or (draw and not answer.get("draws")):
                continue
            drawn = FRESH + draw if answer.get("draws") else 0
            full = bench.cell(f"{change.slug}-full-{draw}", partial(bench.full, change, drawn))
            if full is not None:
                found.setdefault(change.slug, []).extend(rows_of(change, answer, full, draw))
                around.say(f"{change.base}, {change.name}: {answer['wall']:.1f} s")
        rows = [row for change in changes for row in found.get(change.slug, [])]
        write_atomic(bench.home / "ask.csv", csv_of(Row, rows).encode())
    around.say(table_of(rows))
    return figures_of(rows)


def rows_of(change: Change, answer: Mapping[str, Any], full: Mapping[str, Any], draw: int) -> Iterator[Row]:
    """A row for each figure of an answer; one row without figures where there is no answer."""

    def row(
        institution: str = "", task: str = "", told: Mapping[str, Any] | None = None, value: float = NAN
    ) -> Row:
        told = told or {}
        spans = {
            key: number(told.get(key))
            for key in ("now", "predicted", "noise_low", "noise_high", "low", "high")
        }
        return Row(
            kind=change.kind,
            scenario=change.base,
            change=change.name,
            draws=int(answer.get("draws", 0)),
            wall=round(answer["wall"], 2),
            worked=round(answer["worked"], 2),
            seconds=number(answer.get("seconds")),
            draw=draw,
            institution=institution,
            task=task,
            full=number(value),
            said=str(answer.get("none", "") or full.get("ended", "")),
            **spans,
        )

    if "none" in answer or "ended" in full:
        yield row()
        return
    figures = full["figures"]
    for told in answer["rows"]:
        value = figures.get(told["institution"], {}).get(told["task"], NAN)
        yield row(told["institution"], told["task"], told, value)
    if told := answer["mean"]:
        own = [
            figures.get(r["institution"], {}).get(r["task"], NAN)
            for r in answer["rows"]
            if r["now"] is not None and r["predicted"] is not None
        ]
        yield row("all", "mean", told, sum(own) / len(own))


def number(value: float | None) -> float:
    """A figure of a row; nan for none."""
    return NAN if value is None else round(value, 6)
