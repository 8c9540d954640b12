"""`casam compare`: a study with the methods as its axis."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import tomli_w

from casam_core.errors import CasamError, ScenarioError, StudyError
from casam_core.methods import METHODS
from scenarios.commands.study_command import comparison_of, parse_seeds
from scenarios.study.frames import unseen_iou
from scenarios.study.study import plan_of
from server.run.summary_schema import Summary
from tests.casam_command import Casam
from tests.conftest import tiny_table
from tests.scenarios.report.making import scenario_of, summary_of
from tests.scenarios.study.test_grid import CellsHere

PATH = Path("casam compare")


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(tomli_w.dumps(tiny_table()))
    return path


def test_every_method_is_run_under_every_seed_and_compared_with_the_first(scenario: Path) -> None:
    study = comparison_of("mine", str(scenario), "casam,ewc", [0, 1], [])
    cells = plan_of(study, PATH, with_data=False).cells
    assert [(cell.scenario.method, cell.seed, cell.scenario.seed) for cell in cells] == [
        ("casam", 0, 0),
        ("casam", 1, 1),
        ("ewc", 0, 0),
        ("ewc", 1, 1),
    ]
    (comparison,) = study.comparisons
    assert (comparison.axis, comparison.baseline) == ("method", "casam")


def test_all_means_every_method() -> None:
    assert comparison_of("mine", "quickstart", "all", [0], []).axes == {"method": list(METHODS)}


def test_one_method_is_no_comparison() -> None:
    assert comparison_of("mine", "quickstart", "casam", [0, 1], []).comparisons == []


@pytest.mark.parametrize(
    ("methods", "seeds", "kind"),
    [
        ("casam,none", "0", ScenarioError),
        ("casam", "one", StudyError),
        ("casam,casam", "0", StudyError),
        ("casam", "0,0", StudyError),
        ("casam", "-1", StudyError),
    ],
)
def test_a_wrong_grid_is_refused_in_one_line(methods: str, seeds: str, kind: type[CasamError]) -> None:
    with pytest.raises(kind, match=r"expected|two values have the label 'casam'") as refusal:
        comparison_of("mine", "quickstart", methods, parse_seeds(seeds) or [0], [])
    assert "\n" not in str(refusal.value)


def test_the_mean_over_tasks_that_nobody_learned_is_of_the_last_stage() -> None:
    unseen = {
        "tasks": ["x", "y"],
        "zero_shot": {"x": 0.1, "y": 0.1},
        "iou": [{"x": 0.1}, {"x": 0.5, "y": 0.7}],
        "unknown_rate": [{}, {}],
    }
    summary = Summary.model_validate(summary_of(scenario_of(), unseen=unseen))
    assert unseen_iou(summary) == pytest.approx(0.6)  # (0.5 + 0.7) / 2


def test_two_methods_for_real(
    casam: Casam, scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scenarios.study.cell.LocalCells", CellsHere)
    monkeypatch.setattr("scenarios.study.pace.start_process", lambda: None)
    out = tmp_path / "out"
    assert casam("compare", scenario, "--methods", "frozen,casam", "--out", out).status == 0
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["trained_parameters"] == "0.0") for row in rows] == [
        ("frozen", True),
        ("casam", False),
    ]
    assert [row["learning_rate"] for row in rows] == ["", ""]  # each form's own
    said = casam("compare", scenario, "--methods", "frozen,casam", "--out", out).out
    assert "2 runs, 2 of them finished" in said
    # Another scenario does not join the comparison.
    other = casam("compare", scenario, "--methods", "frozen", "--out", out, "--set", "training.epochs=3")
    assert "another scenario" in other.err


@pytest.mark.slow
def test_lora_of_every_task_is_tuned_with_the_same_tries_on_validation_images(
    casam: Casam, scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scenarios.study.cell.LocalCells", CellsHere)  # no start of six processes
    out = tmp_path / "out"
    asked = ("compare", scenario, "--methods", "casam,routed_lora", "--tune", "0.1,1", "--out", out)
    assert casam(*asked, "--set", "training.epochs=1").status == 0
    with (out / "results.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows["routed_lora"]["routing_accuracy"] == rows["casam"]["routing_accuracy"] != ""
    assert rows["routed_lora"]["trained_parameters"] != rows["casam"]["trained_parameters"]
    summaries = [json.loads(path.read_text()) for path in (out / "tuning").rglob("summary.json")]
    assert [summary["evaluated_on"] for summary in summaries] == ["val"] * 4  # two rates of each method
