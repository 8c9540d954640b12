"""An interrupted run, resumed, ends as one that nobody interrupted."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

import server.stage
import server.stream
from casam_core.config.scenario import Scenario
from casam_core.errors import RunError, ScenarioError
from client.release.ledger import Ledger
from scenarios.commands.cli import app
from scenarios.engines.inprocess import run_inprocess
from scenarios.engines.run import Start
from tests.conftest import tiny_table, with_policies
from tests.runs import FinishedRun, events, lines_in, private, result, summary_of

PRIVATE = {
    "adapter": {"noise": "dp"},
    "router": {"noise": "dp"},
    "metrics": "noisy",
    "budget": {"epsilon": 8.0, "epsilon_metrics": 8.0, "delta": 0.01},
}
LEAVES = {"leaves_at": 2, "on_leave": "unlearn"}


class PowerCutError(BaseException):
    """Nothing that the product catches."""


WEST_ADDS_NOISE = with_policies(tiny_table(privacy={"steps": 2}), west=PRIVATE)


def cut(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, at: int, *, after: bool) -> None:
    """The power goes at the n-th call of a function, before or after it did its work."""
    whole: Callable[..., Any] = getattr(module, name)
    calls = 0

    def cutting(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at and not after:
            raise PowerCutError
        result = whole(*args, **kwargs)
        if calls == at:
            raise PowerCutError
        return result

    monkeypatch.setattr(module, name, cutting)


def run_until_cut(scenario: Scenario, folder: Path, module: Any, name: str, at: int, *, after: bool) -> None:
    """A run that the power cut ends."""
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, module, name, at, after=after)
        with pytest.raises(PowerCutError):
            run_inprocess(scenario, folder, None)


# Cuts of every kind stand in tests/server/test_stream.py; here, what institutions do about some.
CUTS = {
    "in the middle of the first stage": (server.stage, "learn_router", 1, False),
    "with an entry in the bank and no stage behind it": (server.stream, "save", 2, False),
    "between two stages": (server.stream, "save", 2, True),
    "with all learned and no last stage behind it": (server.stream, "save", 3, False),
}


@pytest.mark.parametrize(("module", "name", "at", "after"), CUTS.values(), ids=list(CUTS))
def test_wherever_the_power_goes_the_end_is_the_same(
    tmp_path: Path, finished_run: FinishedRun, module: Any, name: str, at: int, after: bool
) -> None:
    """The ledger, too: what was released before the cut is sent again from its file, and counted once."""
    whole = finished_run(WEST_ADDS_NOISE)
    check_cut(tmp_path / "cut", whole, WEST_ADDS_NOISE, module, name, at, after=after)
    ledgers = (Ledger(private(run, "west") / "ledger.jsonl") for run in (tmp_path / "cut", whole))
    spends = [[(s.kind, s.task, s.split, s.noise_multiplier) for s in ledger.lines()] for ledger in ledgers]
    assert spends[0] == spends[1] != []


def test_one_layer_for_all_tasks_goes_on_from_stage_to_stage(
    tmp_path: Path, finished_run: FinishedRun
) -> None:
    table = tiny_table(method="sequential")
    check_cut(tmp_path / "cut", finished_run(table), table, server.stream, "save", 2, after=True)


@pytest.mark.parametrize("after", [False, True])
def test_personal_entries_are_those_of_a_run_that_was_not_cut(
    tmp_path: Path, finished_run: FinishedRun, after: bool
) -> None:
    table = tiny_table(alignment={"personal": True})
    whole = finished_run(table)
    check_cut(tmp_path / "cut", whole, table, server.stage, "evaluate", 2, after=after)
    told = [summary_of(run)["personal"] for run in (tmp_path / "cut", whole)]
    assert told[0] == told[1] != {}
    banks = [
        {
            str(file.relative_to(run)): file.read_bytes()
            for file in run.glob("institutions/*/private/p*/**/*.entry")
        }
        for run in (tmp_path / "cut", whole)
    ]
    assert banks[0] == banks[1] != {}


def test_an_unlearning_that_was_cut_is_finished(tmp_path: Path, finished_run: FinishedRun) -> None:
    table = with_policies(
        tiny_table(stream=["histology", "polyp"]), south=LEAVES, west={"keep_samples": True}
    )
    whole = finished_run(table)
    check_cut(tmp_path / "cut", whole, table, server.stage, "learn_router", 2, after=False)
    assert summary_of(tmp_path / "cut")["unlearned"] == summary_of(whole)["unlearned"]
    assert (tmp_path / "cut" / "receipts" / "south-stage-2.json").exists()


def check_cut(
    folder: Path, whole: Path, table: dict[str, Any], module: Any, name: str, at: int, *, after: bool
) -> None:
    """A run that is cut and resumed ends as one that is not."""
    scenario = Scenario.model_validate(table)
    run_until_cut(scenario, folder, module, name, at, after=after)
    assert not (folder / "summary.json").exists()
    run_inprocess(scenario, folder, None, resume=True)
    assert result(folder) == result(whole)
    assert len(events(folder, "end")) == 1
    assert len(events(folder, "start")) == 2


# --- The command ---------------------------------------------------------------------------------------


def test_resume_takes_a_run_folder_and_nothing_else(tmp_path: Path) -> None:
    for arguments in (["quickstart", "--resume", str(tmp_path)], []):
        found = CliRunner().invoke(app, ["run", *arguments]).exception
        assert isinstance(found, ScenarioError)


def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["run", "--resume", str(tmp_path)]).exception
    assert isinstance(found, RunError)
    assert "expected the folder of a run that `casam run` began" in str(found)


def test_a_run_of_a_method_that_is_gone_is_refused_with_the_reason(tmp_path: Path) -> None:
    start = Start("inprocess", "", "", "")
    (tmp_path / "order.json").write_text(json.dumps(asdict(start)))
    scenario = json.loads(Scenario.model_validate(tiny_table()).canonical_json())
    scenario["privacy"]["method"] = "subspace"
    (tmp_path / "scenario.json").write_text(json.dumps(scenario))
    found = CliRunner().invoke(app, ["run", "--resume", str(tmp_path)]).exception
    assert 'scenario.json: privacy: privacy.method "subspace"' in str(found)


def casam(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).parent / "casam"), "run", *arguments]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_were_not(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """kill -9 of server and institutions together, at random moments of a seeded choice.

    The long profile: pytest --kills 25.
    """
    kills, draw = int(request.config.getoption("--kills")), random.Random(20)
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(WEST_ADDS_NOISE))
    whole = casam("tiny.toml", "--engine", "inprocess", "--out", "whole", cwd=tmp_path)
    assert whole.wait(timeout=600) == 0
    total = lines_in(tmp_path / "whole")
    survived, folder, number = 0, tmp_path / "cut-0", 0
    while survived < kills:
        first = not (folder / "scenario.json").exists()
        start = (
            ["tiny.toml", "--engine", "inprocess", "--out", folder.name]
            if first
            else ["--resume", folder.name]
        )
        begun = lines_in(folder)
        moment = begun + draw.randrange(1, max(2, total - min(begun, total - 2)))
        process = casam(*start, cwd=tmp_path)
        while process.poll() is None and lines_in(folder) < moment:
            time.sleep(0.005)
        time.sleep(draw.random() * 0.05)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            survived += 1
        process.wait()
        if (folder / "summary.json").exists():  # it got through; the next kills hit a new run
            assert result(folder) == result(tmp_path / "whole")
            number += 1
            folder = tmp_path / f"cut-{number}"
    if (folder / "scenario.json").exists() and not (folder / "summary.json").exists():
        last = casam("--resume", folder.name, cwd=tmp_path)
        assert last.wait(timeout=600) == 0
        assert result(folder) == result(tmp_path / "whole")
    print(f"{survived} kills over {number + 1} runs")
