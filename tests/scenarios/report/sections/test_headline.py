"""The headline: its figures by hand, and that it claims nothing that the run does not show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from casam_core.config.scenario import Scenario
from scenarios.report.page import page
from scenarios.report.reading import read_all, read_run
from scenarios.report.sections.headline import cards
from tests.scenarios.report.looking import changed, shown
from tests.scenarios.report.making import scenario_of, write_run


def test_the_headline_by_hand(html: str) -> None:
    text = shown(html)
    # (0.78 + 0.70 + 0.90) / 3 against (0.60 + 0.65 + 0.85) / 3
    assert "At the end the mean IoU is 0.793, 9.3 points above frozen SAM's 0.700." in text
    assert "1.0 points of IoU were forgotten" in text
    assert "The router sent 96.4 % of the images to their own task" in text


def test_the_headline_is_true_of_refusals_and_of_institutions_without_a_limit(tmp_path: Path) -> None:
    def mixed(summary: dict[str, Any]) -> None:
        summary["holders"]["cardiac_mr"] = []

    text = changed(tmp_path, mixed)
    assert "3 of 5 institutions learned 2 of 3 tasks in 3 stages (polyp and histology)" in text
    assert "Frozen SAM keeps cardiac_mr." in text
    assert "no limit for all 4 of 5 institutions allow exact values; ε ≤ 2.25 for 1" in text


def test_a_gain_of_nothing_is_not_called_a_loss(tmp_path: Path) -> None:
    text = shown(page(read_all([write_run(tmp_path / "one", last_iou=0.69996)]), full=True))
    assert "At the end the mean IoU is 0.700, the same as frozen SAM's 0.700." in text


def test_a_mean_over_some_tasks_does_not_stand_beside_frozen_sams_over_all(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one", complete={"last_iou": False})
    (card,) = [card for card in cards(read_run(run, "one")) if card.title == "IoU at the end"]
    assert card.detail == "over the tasks with known scores"
    assert "of the images whose routes are known" in shown(page(read_all([run]), full=True))  # one has left


def test_the_headline_names_tasks_that_no_router_can_choose(html: str) -> None:
    assert "No router can choose cardiac_mr, because its holders share no router state." in shown(html)


def test_the_headline_says_where_only_known_scores_count(tmp_path: Path) -> None:
    scenario = scenario_of()
    table = scenario.model_dump(mode="json")
    table["institutions"][0]["policy"] = {"metrics": "never"}
    complete = {"last_iou": False, "avg_iou": False, "ff_iou": False, "bwt_iou": False}
    run = write_run(tmp_path / "one", Scenario.model_validate(table), complete=complete)
    text = shown(page(read_all([run]), full=True))
    assert "mean IoU over the tasks with known scores is" in text
    assert "between a task's best stage and the last, among the tasks with known scores." in text
    assert "of the images whose routes are known to their own task" in text


def test_one_institution_shares_and_several_share(tmp_path: Path) -> None:
    def silent(summary: dict[str, Any]) -> None:
        summary["privacy"]["north"]["policy"]["metrics"] = "never"

    assert "north shares no scores, so nobody knows" in changed(tmp_path, silent)
