"""The public API: a run without a console, its figures typed, its bank in use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import casam
from casam_core.errors import ScenarioError
from tests.conftest import tiny_table


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[casam.Run, list[dict[str, Any]]]:
    """A tiny run, and what was told while it ran."""
    told: list[dict[str, Any]] = []
    out = tmp_path_factory.mktemp("api") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASAM_HOME", str(tmp_path_factory.mktemp("home")))
        run = casam.run(tiny_table(), out=out, set={"training.epochs": 2}, on_event=told.append)
    return run, told


def test_a_run_gives_its_figures_typed(finished: tuple[casam.Run, list[dict[str, Any]]]) -> None:
    run, _ = finished
    assert run.summary.tasks == ["polyp", "histology"]
    assert run.summary.last_iou is not None
    assert 0 <= run.summary.last_iou <= 1
    assert casam.load_run(run.folder).summary == run.summary


def test_every_event_is_told_once_and_in_order(finished: tuple[casam.Run, list[dict[str, Any]]]) -> None:
    run, told = finished
    assert told == list(run.events())
    assert [event["event"] for event in told][-1] == "end"


def test_a_run_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    casam.run(tiny_table(stream=["polyp"]), out=tmp_path / "run")
    assert capfd.readouterr().out == ""


def test_what_the_listener_raises_is_raised_when_the_run_has_ended(tmp_path: Path) -> None:
    def listener(event: dict[str, Any]) -> None:
        raise RuntimeError(event["event"])

    with pytest.raises(RuntimeError, match="start"):
        casam.run(tiny_table(stream=["polyp"]), out=tmp_path / "run", on_event=listener)
    assert casam.load_run(tmp_path / "run").summary.status == "completed"


def test_its_bank_segments(finished: tuple[casam.Run, list[dict[str, Any]]]) -> None:
    bank = casam.load_bank(finished[0].bank)
    segmenter = casam.Segmenter(casam.backbone_for(bank), bank)
    image = np.full((64, 64, 3), 128, np.uint8)
    assert segmenter.predict(image, [(8, 8, 40, 40)]).masks_NHW.shape == (1, 64, 64)


def test_a_table_at_fault_is_refused_with_its_key() -> None:
    with pytest.raises(ScenarioError, match="task 'liver' of the stream is held by no institution"):
        casam.Scenario.from_dict(tiny_table(stream=["liver"]))
    with pytest.raises(ScenarioError, match="unknown key 'traning'"):
        casam.run(tiny_table(), set={"traning.epochs": 3})


def test_a_scenario_of_the_library_is_found_by_its_name() -> None:
    assert casam.Scenario.load("quickstart", ["seed=7"]).seed == 7


def test_importing_casam_imports_no_torch() -> None:
    code = "import sys, casam; print(sorted({'torch', 'flwr', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
