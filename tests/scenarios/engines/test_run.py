"""What `casam run` checks before an engine starts, and what it says of one that failed."""

from __future__ import annotations

import errno
import importlib.util
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from casam_core.config.scenario import Scenario
from casam_core.errors import RunError, RunInputError
from scenarios.engines import Engine
from scenarios.engines.flower import FlowerRun
from scenarios.engines.order import RunOrder
from scenarios.engines.run import Start, check_completed, resume_run, run_scenario
from server.run.run_folder import RunFolder
from tests.casam_command import Casam

LOST = FlowerRun(1, "lost")


@pytest.fixture
def begun(tmp_path: Path, tiny_scenario: Scenario) -> Path:
    """The folder of a run by Flower that has begun."""
    run = RunFolder(tmp_path / "run")
    run.write_json("scenario.json", tiny_scenario.model_dump(mode="json"))
    run.write_json("order.json", asdict(Start("simulation", data_root="", ledger_dir="", checkpoint="")))
    run.close()
    return run.path


def test_an_earlier_failure_is_not_the_reason_of_a_resumed_runs_end(tmp_path: Path) -> None:
    failed = {"event": "failed", "reason": "no holder could train"}
    (tmp_path / "events.jsonl").write_text(json.dumps(failed) + "\n")
    with pytest.raises(RunError, match="the run failed: no holder could train; details in its log"):
        check_completed(LOST, tmp_path, "its log")
    with (tmp_path / "events.jsonl").open("a") as events:
        events.write('{"event": "start"}\n{"event": "resumed"}\n')
    with pytest.raises(RunError, match=r"the run failed \(Flower says lost\); details in its log"):
        check_completed(LOST, tmp_path, "its log")


def test_a_run_that_another_server_writes_is_refused_before_flower_starts(
    begun: Path, tiny_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("scenarios.engines.run.run_flower_app")
    first = RunFolder(begun, tiny_scenario)
    with pytest.raises(RunError, match="is written to by another server; follow its run: casam watch"):
        resume_run(begun, Console())
    first.close()


def test_without_ray_nothing_is_made(
    tmp_path: Path, tiny_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunInputError, match="the simulation engine needs Ray"):
        run_scenario(tiny_scenario, RunOrder(Engine.simulation, None, tmp_path / "run"), Console())
    assert not (tmp_path / "run").exists()


def test_an_engine_beside_resume_is_refused(begun: Path, casam: Casam) -> None:
    said = casam("run", "--resume", begun, "--engine", "inprocess").refusal
    assert "give only the run folder" in said


@pytest.mark.parametrize("command", ["resume", "init"])
def test_a_full_disk_names_resume_where_there_is_something_to_resume(
    begun: Path, casam: Casam, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/disk/file")

    monkeypatch.setattr("scenarios.engines.run.run_engine", full)
    monkeypatch.setattr("casam_core.files.write_new", full)
    init = ["init", "mine.toml", "--site", "lab:nuclei=phantom:histology"]
    ended = casam(*(init if command == "init" else ["run", "--resume", begun]))
    assert ended.status == 1
    assert ended.err.startswith("error: /disk/file: No space left on device; check the path")
    assert (f"casam run --resume {begun}" in ended.err) == (command == "resume")
