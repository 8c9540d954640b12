"""An answer is a run that remembers: without noise it has the full run's figures, with noise its cost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from casam_core.config.scenario import Scenario
from casam_core.errors import RunError, RunInputError, ScenarioError
from scenarios.ask.answering import answer
from scenarios.ask.answers import Answer, answer_lines
from scenarios.ask.asking import Question, question
from scenarios.ask.remembering import memory_of
from scenarios.ask.replay import Clock, Replayed, heard_run, replay
from scenarios.engines.run import Start
from scenarios.study.study import plan_study
from tests.casam_command import Casam
from tests.conftest import tiny_table
from tests.runs import FinishedRun

PRIVATE = (
    'institutions.north.policy.adapter.noise="dp"',
    'institutions.north.policy.router.noise="dp"',
    "institutions.north.policy.budget.epsilon=8",
    "institutions.north.policy.budget.delta=0.01",
)
NEVER = 'institutions.west.policy.router.share="never"'


@pytest.fixture
def run(tmp_path: Path, finished_run: FinishedRun) -> Path:
    """A finished run as `casam run` leaves it."""
    folder = shutil.copytree(finished_run(tiny_table()), tmp_path / "run")
    start = Start("inprocess", data_root="", ledger_dir="", checkpoint="")
    (folder / "order.json").write_text(json.dumps(start.__dict__))
    return folder


def full(asked: Question, folder: Path) -> Replayed:
    """The full run of the changed scenario, with institutions that remember nothing."""
    return heard_run(asked.new, folder, None)


def figures(found: Answer) -> dict[tuple[str, str], float | None]:
    """By institution and task, the figure under the run's seed."""
    return {(row.institution, row.task): row.same_seed for row in found.rows}


def released(found: Replayed) -> dict[tuple[str, str], float]:
    """By institution and task, the figure of a full run."""
    return {(name, task): one.iou for name, tasks in found.results.items() for task, one in tasks.items()}


@pytest.mark.parametrize(
    "settings",
    [
        (NEVER,),
        ('institutions.south.policy.adapter.share="never"', 'institutions.west.policy.adapter.share="never"'),
        ("institutions.west.policy.joins_at=2", "institutions.south.policy.accept_entries=false"),
        ('institutions.*.policy={adapter={aggregation="secagg"}, minimum_cohort=2}',),
    ],
)
def test_without_noise_the_answer_has_the_figures_of_the_full_run(
    run: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    asked = question(run, settings)
    found, whole = answer(asked), full(asked, tmp_path / "full")
    assert figures(found) == released(whole)
    assert found.trained == ()  # every layer was trained in the run
    assert all(row.noise_low == row.noise_high == row.same_seed for row in found.rows)
    assert {cost.institution: cost.refusals for cost in found.costs} == {
        name: facts.refusals for name, facts in whole.summary.privacy.items()
    }


def test_what_keeps_everything_costs_nothing_and_is_not_called_unlimited(run: Path) -> None:
    keeps = '{adapter={share="never"}, router={share="never"}, metrics="never"}'
    found = answer(question(run, [f"institutions.west.policy={keeps}"]))
    cost = next(cost for cost in found.costs if cost.institution == "west")
    assert (cost.epsilon_train_now, cost.epsilon_metrics_now) == (None, None)  # no bound
    assert (cost.epsilon_train, cost.epsilon_metrics) == (0.0, 0.0)
    assert [line.split() for line in answer_lines(found) if line.startswith("west  ")][-1][1:9] == (
        ["no", "bound", "->", "0.00", "no", "bound", "->", "0.00"]
    )


def test_an_institution_that_leaves_takes_its_figures_and_entries_with_it(run: Path, tmp_path: Path) -> None:
    left = 'institutions.north.policy={leaves_at=2, on_leave="unlearn"}'
    asked = question(run, [left])
    found, whole = answer(asked), full(asked, tmp_path / "full")
    north = next(row for row in found.rows if row.institution == "north")
    assert (north.now is None, north.predicted, north.affected) == (False, None, True)
    others = {key: value for key, value in figures(found).items() if key[0] != "north"}
    assert others == {key: value for key, value in released(whole).items() if key[0] != "north"}
    assert whole.summary.unlearned[0].institution == "north"


def test_with_noise_the_cost_is_exact_and_the_figure_has_an_interval(run: Path, tmp_path: Path) -> None:
    asked = question(run, PRIVATE)
    found, whole = answer(asked, draws=3), full(asked, tmp_path / "full")
    assert (found.draws, found.trained) == (3, ("north: polyp",))
    assert figures(found) == released(whole)
    north = next(row for row in found.rows if row.institution == "north")
    assert north.low is not None
    assert north.noise_low is not None
    assert north.low <= north.noise_low <= (north.predicted or 0) <= (north.noise_high or 0)
    cost = next(cost for cost in found.costs if cost.institution == "north")
    assert cost.epsilon_train_now is None
    assert cost.epsilon_train == whole.summary.privacy["north"].epsilon_train
    assert "north" in found.affected
    again = answer(asked, draws=3)
    assert again.trained == ()  # the first answer remembered
    assert again.rows == found.rows


def test_a_draw_of_the_noise_that_ends_the_run_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_later(*arguments: Any) -> Replayed:
        if arguments[4:] == (1,):
            raise RunError("nobody trains polyp")
        return replay(*arguments)

    monkeypatch.setattr("scenarios.ask.answering.replay", fails_later)
    found = answer(question(run, PRIVATE), draws=3)
    assert found.draws == 1
    assert any("one of them ends the run (nobody trains polyp)" in what for what in found.unknown)


def test_a_new_router_under_an_old_layer_decodes_nothing_again(run: Path) -> None:
    changes = [change for change in PRIVATE if "adapter" not in change]
    asked = question(run, [*changes, 'institutions.north.policy.adapter.share="yes"'])
    old = replay(asked.old, memory_of(run, asked.old, asked.old), None, Clock(100))
    assert old.summary.decodes == [0, 0, 0]
    memories = memory_of(run, asked.old, asked.new)
    first = replay(asked.new, memories, None, Clock(100))
    routes = {one.results["north"]["polyp"].routes["polyp"] for one in (old, first)}
    again = replay(asked.new, memories, None, Clock(100), draw=1)
    assert sum(again.summary.decodes) == 0 or len(routes) > 1


def test_what_does_not_fit_the_seconds_names_the_study_that_would_tell(run: Path) -> None:
    work = run / "institutions" / "north" / "private" / "work.jsonl"
    slow = [
        json.loads(line) | ({"seconds": 900.0} if '"train.align"' in line else {})
        for line in work.read_text().splitlines()
    ]
    work.write_text("".join(json.dumps(line) + "\n" for line in slow))
    with pytest.raises(RunError, match="north must train polyp again") as caught:
        answer(question(run, PRIVATE), seconds=60)
    path = Path(str(caught.value).rpartition("casam study ")[2])
    study = plan_study(path, with_data=False)
    asked = {cell.scenario.digest() for cell in study.cells if cell.scenario.seed == 0}
    assert asked == {question(run, PRIVATE).old.digest(), question(run, PRIVATE).new.digest()}


def test_a_question_needs_a_simulated_run_and_a_change(run: Path, casam: Casam) -> None:
    with pytest.raises(ScenarioError, match="expected what would be different"):
        question(run, [])
    with pytest.raises(ScenarioError, match="nobody"):
        question(run, ["institutions.nobody.policy.canaries=0"])
    shutil.rmtree(run / "institutions" / "west")
    with pytest.raises(RunInputError, match="a server of a deployment has no images"):
        question(run, [NEVER])


def test_the_command_prints_the_table_and_json(run: Path, casam: Casam) -> None:
    text = casam("ask", str(run), "--set", NEVER, "--json").out
    facts: dict[str, Any] = json.loads(text)
    assert [row["institution"] for row in facts["rows"]] == ["north", "south", "south", "west"]
    assert facts["draws"] == 0
    lines = list(answer_lines(answer(question(run, [NEVER]))))
    assert lines[0] == f"What if: {NEVER}"
    assert any(line.startswith("Full runs would tell: casam study ") for line in lines)


def test_a_scenario_that_cannot_run_is_refused_by_name(run: Path) -> None:
    with pytest.raises(ScenarioError, match="leaves_at must be above joins_at"):
        question(run, ["institutions.north.policy.joins_at=2", "institutions.north.policy.leaves_at=1"])
    assert isinstance(question(run, [NEVER]).new, Scenario)
