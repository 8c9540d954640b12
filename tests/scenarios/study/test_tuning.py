"""Tuning: the same few tries for every method, judged on validation images, none repeated."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from casam_core.config.scenario import Scenario
from casam_core.errors import RunError, ScenarioError
from client.data.open import open_dataset
from client.data.splits import split_samples
from scenarios.engines.inprocess import run_inprocess
from scenarios.study.tuning import parse_factors, tune
from tests.conftest import tiny_table

FIGURES = {"0.1": 0.5, "0.2": 0.7, "0.4": 0.7, "9": None}
"""What a run at this learning rate would measure on validation images; None: it fails."""


class FakeRuns:
    def __init__(self) -> None:
        self.asked: list[Sequence[str]] = []

    def __call__(self, method: str, seed: int, folder: Path, overrides: Sequence[str]) -> None:
        self.asked.append(overrides)
        figure = FIGURES[overrides[1].removeprefix("alignment.learning_rate=")]
        if figure is None:
            raise RunError("training diverged")
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({"last_iou": figure}))


def test_the_best_validation_figure_wins_and_the_lower_rate_among_equals(tmp_path: Path) -> None:
    runs = FakeRuns()
    assert tune({"casam": 0.1}, (1, 2, 4), 0, tmp_path, runs, print) == {"casam": 0.2}
    assert all("evaluation.split=val" in overrides for overrides in runs.asked)


def test_a_method_that_learns_nothing_is_not_tuned(tmp_path: Path) -> None:
    runs = FakeRuns()
    assert tune({"frozen": 0.1}, (1, 2), 0, tmp_path, runs, print) == {}
    assert not runs.asked


def test_a_try_is_made_once(tmp_path: Path) -> None:
    tune({"casam": 0.1}, (1, 2), 0, tmp_path, FakeRuns(), print)
    again = FakeRuns()
    assert tune({"casam": 0.1}, (1, 2, 4), 0, tmp_path, again, print) == {"casam": 0.2}
    assert len(again.asked) == 1
    with (tmp_path / "tuning.csv").open(newline="") as file:
        assert [row["learning_rate"] for row in csv.DictReader(file)] == ["0.1", "0.2", "0.4"]


def test_a_diverging_rate_loses_and_only_diverging_rates_are_an_error(tmp_path: Path) -> None:
    assert tune({"casam": 0.1}, (1, 90), 0, tmp_path, FakeRuns(), print) == {"casam": 0.1}
    with pytest.raises(RunError, match="lower --tune factors"):
        tune({"ewc": 0.1}, (90,), 0, tmp_path, FakeRuns(), print)


@pytest.mark.parametrize("text", ["a,b", "0,1", "-1", "inf", ""])
def test_wrong_factors_are_refused(text: str) -> None:
    with pytest.raises(ScenarioError, match="--tune: expected factors"):
        parse_factors(text)


def test_the_validation_split_is_what_is_measured(tmp_path: Path) -> None:
    """For real: the images of the matrix are the validation images, and the summary says so."""
    table = tiny_table(method="frozen", evaluation={"split": "val"})
    run_inprocess(Scenario.model_validate(table), tmp_path / "run", None)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["evaluated_on"] == "val"
    masks = list((tmp_path / "run").glob("institutions/*/private/masks.jsonl"))
    scenario = Scenario.model_validate(table)
    assert masks
    for path in masks:
        site = path.parts[-3]
        for task, spec in scenario.institution(site).data.items():
            dataset = open_dataset(spec, data_root=None, seed=scenario.seed, institution=site)
            split = split_samples(
                dataset.samples, spec.split, spec.limit, seed=scenario.seed, scope=f"{site}/{task}"
            )
            names = [json.loads(line)[0].split("/") for line in path.read_text().splitlines()]
            named = {image for of, image, _ in names if of == task}
            assert named == {sample.id for sample in split.val}
