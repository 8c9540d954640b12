"""A clock that jumps, as after a night's sleep or a wrong time server: nothing is decided by it."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import pytest

from casam_core.bank.bank import Bank
from casam_core.config.scenario import Scenario
from scenarios.engines.inprocess import run_inprocess
from tests.conftest import tiny_table
from tests.runs import FinishedRun, summary_of


def test_a_run_under_a_jumping_clock_ends_as_any_other(
    tmp_path: Path, tiny_scenario: Scenario, finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, folder = finished_run(tiny_table()), tmp_path / "jumping"
    true_time, jumps = time.time, itertools.cycle([0.0, 7200.0, -7200.0, 90_000.0])
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: true_time() + next(jumps))
        run_inprocess(tiny_scenario, folder, None)
    assert summary_of(folder)["matrix"] == summary_of(undisturbed)["matrix"]
    assert Bank.open(folder / "bank").digest == Bank.open(undisturbed / "bank").digest
    assert 0 < summary_of(folder)["timing"]["seconds"] < 600
    times = [json.loads(line)["time"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert times != sorted(times)  # it did jump
