"""Tuning: the same few tries for every method, judged on validation images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from casam_core.config.scenario import Scenario
from casam_core.errors import RunError, ScenarioError
from client.data.open import open_dataset
from client.data.splits import simulated_key, split_samples
from scenarios.commands.study_command import parse_factors
from scenarios.engines.inprocess import run_inprocess
from scenarios.study.study import Plan, Study, chosen, plan_of
from scenarios.study.tuning import needed, trials, tuned
from tests.conftest import tiny_table

FIGURES: dict[str, float | None] = {"0.1": 0.5, "0.2": 0.7, "0.4": 0.7, "9": None}
"""What a run at this learning rate would measure on validation images; None: it fails."""


def plan(factors: Sequence[float], methods: Sequence[str] = ("casam",)) -> Plan:
    """Methods under two seeds, at a learning rate of 0.1 before tuning."""
    study = Study(
        name="mine", scenario="quickstart", axes={"method": list(methods)}, seeds=[0, 1], tune=list(factors)
    )
    return plan_of(study, Path("mine"), with_data=False, overrides=["alignment.learning_rate=0.1"])


def two_axes(tune_by: Sequence[str] | None) -> Plan:
    """Two methods with two ranks each, one seed."""
    study = Study(
        name="mine",
        scenario="quickstart",
        axes={"method": ["casam", "sequential"], "alignment.rank": [4, 8]},
        tune=[1, 2],
        tune_by=None if tune_by is None else list(tune_by),
    )
    return plan_of(study, Path("mine"), with_data=False, overrides=["alignment.learning_rate=0.1"])


def rates(before: Plan) -> list[float | None]:
    """The learning rates after tuning, cell by cell."""
    tried = trials(before)
    figures = {cell.name: FIGURES[cell.labels["learning_rate"]] for cell in tried.cells}
    return [cell.scenario.alignment.learning_rate for cell in tuned(before, tried, figures).cells]


def test_the_best_validation_figure_wins_and_the_lower_rate_among_equals() -> None:
    assert rates(plan((1, 2, 4))) == [0.2, 0.2]


def test_trials_are_of_the_first_seed_and_of_validation_images() -> None:
    before = plan((1, 2))
    tried = trials(before).cells
    assert [(cell.seed, cell.scenario.evaluation.split) for cell in tried] == [(0, "val"), (0, "val")]
    assert [cell.scenario.alignment.learning_rate for cell in tried] == [0.1, 0.2]
    assert all(cell.scenario.evaluation.split == "test" for cell in before.cells)


def test_a_method_that_learns_nothing_is_not_tuned() -> None:
    before = plan((1, 2), ["frozen"])
    assert trials(before).cells == ()
    assert tuned(before, trials(before), {}) == before


def test_a_diverging_rate_loses_and_only_diverging_rates_are_an_error() -> None:
    assert rates(plan((1, 90))) == [0.1, 0.1]
    with pytest.raises(RunError, match="lower factors"):
        rates(plan((90,)))


def test_only_the_named_axes_have_rates_of_their_own() -> None:
    assert len(trials(two_axes(None)).cells) == 2 * 2 * 2
    before = two_axes(["method"])
    tried = trials(before)
    assert [(cell.labels["method"], cell.labels["alignment.rank"]) for cell in tried.cells] == [
        ("casam", "4"),
        ("casam", "4"),
        ("sequential", "4"),
        ("sequential", "4"),
    ]
    figures = {cell.name: FIGURES[cell.labels["learning_rate"]] for cell in tried.cells}
    assert {cell.scenario.alignment.learning_rate for cell in tuned(before, tried, figures).cells} == {0.2}


def test_an_axis_that_the_study_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="tune_by: axis 'order': expected one of method"):
        two_axes(["order"])


def test_a_part_of_the_study_needs_only_its_own_trials() -> None:
    """Those of the first value of other axes, too, when the part has none of it."""
    before = two_axes(["method"])
    tried = trials(before)
    part = needed(tried, chosen(before, ["method=sequential", "alignment.rank=8"]))
    assert {(cell.labels["method"], cell.labels["alignment.rank"]) for cell in part} == {("sequential", "4")}
    figures = {cell.name: FIGURES[cell.labels["learning_rate"]] for cell in part}
    found = {
        cell.labels["method"]: cell.scenario.alignment.learning_rate
        for cell in tuned(before, tried, figures).cells
    }
    assert found == {"casam": 0.1, "sequential": 0.2}


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
            key = simulated_key(scenario.seed, site)
            split = split_samples(dataset.samples, spec.split, spec.limit, key=key, scope=f"{site}/{task}")
            names = [json.loads(line)[0].split("/") for line in path.read_text().splitlines()]
            named = {image for of, image, _ in names if of == task}
            assert named == {sample.id for sample in split.val}
