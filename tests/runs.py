"""Whole runs: made once for all tests that only read them, and what is read in their folders."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from casam_core.config.scenario import Scenario

LASTING = ("matrix", "zero_shot", "routing", "holders", "last_iou", "statistics")

FinishedRun = Callable[[dict[str, Any]], Path]
"""From a scenario's table to the folder of its finished run. A test copies it before it changes a file."""


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Runs a scenario in this process, once in all processes of the tests.

    Not for a test that changes the code that runs, or that compares two runs of one scenario.
    """
    from scenarios.engines.inprocess import run_inprocess  # most tests need no engine

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    runs = root / "finished-runs"
    runs.mkdir(exist_ok=True)
    seen: dict[Path, dict[str, tuple[int, int]]] = {}

    def finished(table: dict[str, Any]) -> Path:
        scenario = Scenario.model_validate(table)
        place = runs / hashlib.sha256(scenario.canonical_json().encode()).hexdigest()[:16]
        run = place / "run"
        with (runs / f"{place.name}.lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (run / "summary.json").exists():
                patch.setenv("CASAM_HOME", str(runs / "home"))
                run_inprocess(scenario, run, None)
        now = times_of(run)
        assert seen.setdefault(run, now) == now, "a test changed a run that others read"
        return run

    return finished


def times_of(folder: Path) -> dict[str, tuple[int, int]]:
    """By file, its size and when it was written."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def summary_of(run: Path) -> dict[str, Any]:
    """The figures of a finished run."""
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def private(run: Path, name: str) -> Path:
    """The folder that an institution shows nobody."""
    return run / "institutions" / name / "private"


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """One kind of event of a run, in their order."""
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def lines_in(run: Path) -> int:
    """How far a run has come: events and arrivals."""
    files = (run / "events.jsonl", run / "audit.jsonl")
    return sum(file.read_bytes().count(b"\n") for file in files if file.exists())


def result(run: Path) -> dict[str, Any]:
    """What must be the same: the figures, and every byte of the bank."""
    summary = summary_of(run)
    bank = run / "bank"
    return {
        **{key: summary[key] for key in LASTING},
        "bank": {str(p.relative_to(bank)): p.read_bytes() for p in bank.rglob("*") if p.is_file()},
    }
