"""A clock that jumps, as after a night's sleep or a wrong time server: nothing is decided by it."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest

from casam_core.bank.bank import Bank
from casam_core.config.scenario import Scenario
from scenarios.engines.inprocess import run_inprocess
from tests.conftest import tiny_table


def run(folder: Path) -> dict[str, Any]:
    run_inprocess(Scenario.model_validate(tiny_table()), folder, None)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def test_a_run_under_a_jumping_clock_ends_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run(tmp_path / "undisturbed")
    true_time, jumps = time.time, itertools.cycle([0.0, 7200.0, -7200.0, 90_000.0])
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: true_time() + next(jumps))
        jumping = run(tmp_path / "jumping")
    assert jumping["matrix"] == undisturbed["matrix"]
    assert (
        Bank.open(tmp_path / "jumping" / "bank").digest == Bank.open(tmp_path / "undisturbed" / "bank").digest
    )
    assert 0 < jumping["timing"]["seconds"] < 600
    times = [
        json.loads(line)["time"] for line in (tmp_path / "jumping" / "events.jsonl").read_text().splitlines()
    ]
    assert times != sorted(times)  # it did jump
