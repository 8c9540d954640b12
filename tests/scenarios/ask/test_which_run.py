"""A scenario's question goes to its newest finished run, or says which command makes one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from casam_core.errors import DataError, RunInputError, ScenarioError
from scenarios.ask.asking import question
from scenarios.ask.which_run import run_of
from tests.casam_command import Casam
from tests.conftest import tiny_table
from tests.runs import FinishedRun


@pytest.fixture
def runs(tmp_path: Path, finished_run: FinishedRun) -> Path:
    """runs/older and runs/newer of tiny.json beside it, and runs/other of another seed."""
    folder = tmp_path / "runs"
    for at, name in enumerate(("newer", "older")):
        run = shutil.copytree(finished_run(tiny_table()), folder / name)
        os.utime(run / "summary.json", (1000 - at, 1000 - at))
    other = shutil.copytree(folder / "newer", folder / "other")
    table = json.loads((other / "scenario.json").read_text())
    (other / "scenario.json").write_text(json.dumps(table | {"seed": 7}))
    (folder / "damaged").mkdir()
    for name in ("summary.json", "scenario.json"):
        (folder / "damaged" / name).write_text("{")
    (tmp_path / "tiny.json").write_text(json.dumps(tiny_table()))
    return folder


def test_a_scenario_is_its_newest_finished_run(runs: Path) -> None:
    assert run_of(str(runs.parent / "tiny.json"), runs) == runs / "newer"
    shutil.rmtree(runs / "newer")
    assert run_of(str(runs.parent / "tiny.json"), runs) == runs / "older"
    assert run_of(str(runs / "other"), runs) == runs / "other"


def test_without_a_run_the_command_that_makes_one_is_said(runs: Path, casam: Casam) -> None:
    with pytest.raises(RunInputError, match="`casam run quickstart --engine inprocess`, then ask again"):
        run_of("quickstart", runs)
    with pytest.raises(RunInputError, match="casam run nuclei --engine inprocess --data-root FOLDER"):
        run_of("nuclei", runs)
    with pytest.raises(ScenarioError, match=r"expected a \.toml file or one of"):
        run_of("no-such-thing", runs)
    refusal = casam("ask", "quickstart", "--set", "seed=3").refusal
    assert "expected a finished run of quickstart in runs, found none" in refusal


def test_images_that_a_policy_does_not_allow_are_said_in_words(
    tmp_path: Path, finished_run: FinishedRun
) -> None:
    """Inside a run an institution says `bad-data`, and its log would end with the replay."""
    table = tiny_table()
    table["institutions"][0]["data"]["polyp"]["limit"] = {"test": 2}
    run = shutil.copytree(finished_run(table), tmp_path / "run")
    start = {"engine": "inprocess", "data_root": "", "ledger_dir": "", "checkpoint": ""}
    (run / "order.json").write_text(json.dumps(start))
    name = "institutions.north.policy"
    noisy = [f"{name}.metrics=noisy", f"{name}.budget.epsilon_metrics=3", f"{name}.budget.delta=0.01"]
    with pytest.raises(DataError, match=r"institution 'north', task 'polyp': .* found limit; leave it out"):
        question(run, noisy)
