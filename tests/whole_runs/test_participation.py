"""Institutions that are late, lost, broken or gone: each has its name, and the stream has its rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from casam_core.config.scenario import Scenario
from scenarios.engines.inprocess import run_inprocess
from tests.conftest import tiny_table
from tests.runs import FinishedRun, events, summary_of

Faults = dict[str, dict[str, Any]]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.federation.federation.RETRY_SECONDS", 0.0)


def run(folder: Path, faults: Faults, **changes: Any) -> dict[str, Any]:
    """A whole run of tiny_table with faults by institution."""
    table = tiny_table(**changes)
    for site in table["institutions"]:
        site["faults"] = faults.get(site["name"], {})
    run_inprocess(Scenario.model_validate(table), folder, None)
    return summary_of(folder)


def entries(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "bank" / "entries").iterdir()}


def test_answers_that_are_lost_are_asked_again_and_change_no_bit(
    tmp_path: Path, finished_run: FinishedRun
) -> None:
    undisturbed = finished_run(tiny_table())
    lossy = run(
        tmp_path / "lossy",
        {"north": {"drop_rate": 0.5}, "west": {"crash_at": 1}},
        deadlines={"retries": 20},
    )
    asked_again = [name for event in events(tmp_path / "lossy", "retry") for name in event["institutions"]]
    assert set(asked_again) == {"north", "west"}
    assert asked_again.count("west") == 1  # it breaks down once
    assert lossy["matrix"] == summary_of(undisturbed)["matrix"]
    assert entries(tmp_path / "lossy") == entries(undisturbed)


def test_the_others_go_on_without_one_that_is_gone(tmp_path: Path) -> None:
    summary = run(
        tmp_path / "run",
        {"north": {"gone_at": 2}},
        participation={"missing": "skip"},
        deadlines={"connect": 1.0},
    )
    assert [event["institution"] for event in events(tmp_path / "run", "absent")] == ["north"]
    first, second = summary["matrix"]["iou"]
    assert first[0] is not None
    assert second[0] is None  # of its task nobody has images any more: null, never an old figure
    assert second[1] is not None
    assert summary["complete"]["last_iou"] is False
    assert summary["holders"]["polyp"] == ["north"]  # its entry stays


@pytest.mark.slow
def test_a_straggler_is_left_out_of_the_round(tmp_path: Path) -> None:
    summary = run(tmp_path / "run", {"west": {"delay": 9.0}}, deadlines={"train": 8.0, "evaluate": 60.0})
    assert summary["holders"]["histology"] == ["south"]
    late = [event for event in events(tmp_path / "run", "no-result") if event["kind"] == "train.align"]
    assert [(event["institution"], event["outcome"]) for event in late] == [("west", "no-answer")]


@pytest.mark.slow
def test_a_slow_institution_takes_its_time_and_gives_the_same(
    tmp_path: Path, finished_run: FinishedRun
) -> None:
    slow = run(tmp_path / "slow", {"south": {"slow_factor": 1.5}})
    assert slow["matrix"] == summary_of(finished_run(tiny_table()))["matrix"]
