"""Institutions' results become one row: weighted by images, missing stays missing."""

from __future__ import annotations

import pytest

from casam_core.config.scenario import Scenario
from casam_core.protocol.messages import EvaluateReply, TaskResult
from server.evaluation import combine, tasks_wanted
from tests.conftest import tiny_table


def result(iou: float, images: int, instances: int, routes: dict[str, int]) -> TaskResult:
    return TaskResult(images, instances, iou, iou, iou, iou, iou, None, routes)


def test_two_holders_are_weighted_by_images_and_by_instances() -> None:
    scores = combine(
        {
            "a": EvaluateReply({"polyp": result(0.5, 1, 8, {"polyp": 1})}, decodes=1),
            "b": EvaluateReply({"polyp": result(0.9, 3, 2, {"polyp": 2, "identity": 1})}, decodes=2),
        },
        {"polyp": ["a", "b"]},
    )
    assert scores.figure("iou", "polyp") == pytest.approx((0.5 * 1 + 0.9 * 3) / 4)
    assert scores.figure("iou_instance", "polyp") == pytest.approx((0.5 * 8 + 0.9 * 2) / 10)
    assert scores.worst_iou == {"polyp": 0.5}
    assert scores.routes == {"polyp": {"identity": 1, "polyp": 3}}
    assert scores.decodes == 3


def test_a_task_nobody_answered_for_is_none() -> None:
    scores = combine({"a": EvaluateReply({}, decodes=0)}, {"polyp": ["a"]})
    assert scores.figure("iou", "polyp") is None
    assert scores.worst_iou == {"polyp": None}
    assert scores.routes == {"polyp": {}}


def test_a_figure_that_a_holder_does_not_tell_is_none() -> None:
    """With noisy metrics an institution tells no hd95 and no iou_instance."""
    measured = TaskResult(2, 2, 1, 1, 1, 1, 1, 4.0, {})
    scores = combine(
        {
            "a": EvaluateReply({"polyp": measured}, 0),
            "b": EvaluateReply({"polyp": result(1.0, 2, 2, {})}, 0),
        },
        {"polyp": ["a", "b"]},
    )
    assert scores.figure("hd95", "polyp") is None
    assert (
        combine({"a": EvaluateReply({"polyp": measured}, 0)}, {"polyp": ["a"]}).figure("hd95", "polyp") == 4.0
    )


def test_a_holder_that_did_not_answer_leaves_the_cell_empty() -> None:
    """The mean over the others is another figure: forgetting would compare different images."""
    answered = EvaluateReply({"polyp": result(0.5, 1, 8, {"polyp": 1})}, decodes=1)
    scores = combine({"a": answered}, {"polyp": ["a", "b"]})
    assert scores.figure("iou", "polyp") is None
    assert scores.worst_iou == {"polyp": None}
    assert scores.routes == {"polyp": {"polyp": 1}}


def test_only_tasks_that_the_aggregates_need_are_wanted_between_the_first_and_the_last_stage() -> None:
    held = ["a", "b", "c", "unseen"]
    sites = [
        {"name": f"site-{task}", "data": {task: {"reader": "phantom", "phantom": "polyp"}}} for task in held
    ]
    every, needed = (
        Scenario.model_validate(
            tiny_table(stream=["a", "b", "c"], institutions=sites, evaluation={"tasks": tasks})
        )
        for tasks in ("all", "needed")
    )
    assert [tasks_wanted(every, stage, held) for stage in range(4)] == [set(held)] * 4
    assert [tasks_wanted(needed, stage, held) for stage in range(4)] == [
        set(held), {"a", "b"}, {"a", "b", "c"}, set(held),
    ]  # fmt: skip


def test_all_tasks_are_wanted_where_an_institution_has_an_order_of_its_own() -> None:
    data = {task: {"reader": "phantom", "phantom": "polyp"} for task in ("a", "b", "c")}
    site = {"name": "site", "data": data, "stream": ["c", "a", "b"]}
    table = tiny_table(stream=[*data], institutions=[site], evaluation={"tasks": "needed"})
    assert tasks_wanted(Scenario.model_validate(table), 1, data) == set(data)
