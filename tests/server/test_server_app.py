"""The ServerApp: settings name a scenario and a folder, and a failure is a failed Flower run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

import server.server_app
from casam_core.errors import RunError, ScenarioError
from server.server_app import open_folder, scenario_of
from tests.server.scripted import scripted


def test_a_scenario_is_a_text_or_a_name_of_the_library(tmp_path: Path) -> None:
    scenario = scripted(tmp_path).scenario
    assert scenario_of(scenario.canonical_json()).digest() == scenario.digest()
    assert scenario_of("quickstart").name == "quickstart"
    with pytest.raises(ScenarioError, match=r"a name of the library \(.*quickstart.*found 'nothing'"):
        scenario_of("nothing")


def test_the_run_folder_is_absolute_and_named_after_the_run_or_the_scenario(tmp_path: Path) -> None:
    scenario = scripted(tmp_path).scenario
    assert open_folder({"out": str(tmp_path), "run": "mine"}, scenario).path == tmp_path / "mine"
    assert open_folder({"out": str(tmp_path)}, scenario).path.name.startswith("tiny-20")
    with pytest.raises(RunError, match="out: expected an absolute path"):
        open_folder({"out": "runs"}, scenario)


@pytest.mark.parametrize("exits", [False, True])
def test_an_app_runs_its_scenario_and_an_exit_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exits: bool
) -> None:
    run = scripted(tmp_path / "run")
    settings: dict[str, Any] = {
        "scenario": run.scenario.canonical_json(),
        "out": str(tmp_path),
        "run": "run",
    }
    context = Context(1, 0, {}, RecordDict(), settings)
    if exits:

        def stop(*_: object) -> None:
            raise SystemExit(3)

        monkeypatch.setattr(server.server_app, "run_stream", stop)
        with pytest.raises(RunError, match=r"the server was asked to exit \(3\)"):
            server.server_app.app(run.grid, context)
        return
    run.write_register()
    server.server_app.app(run.grid, context)
    assert (tmp_path / "run" / "summary.json").exists()


def test_workers_of_a_bare_flwr_run_are_as_nice_as_their_server() -> None:
    assert os.environ["RAY_worker_niceness"] == "0"  # noqa: SIM112 (what Ray adds)


def test_a_bare_flwr_run_says_where_its_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = scripted(tmp_path / "run")
    monkeypatch.setattr(server.server_app, "run_stream", lambda *_: None)
    settings: dict[str, Any] = {"scenario": run.scenario.canonical_json(), "out": str(tmp_path), "run": ""}
    server.server_app.app(run.grid, Context(1, 0, {}, RecordDict(), settings))
    folder = tmp_path / run.scenario.name
    assert f"casam | server | run folder: {folder}-20" in capsys.readouterr().out
