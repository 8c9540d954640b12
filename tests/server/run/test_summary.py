"""Figures of the summary that are the server's own, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from casam_core.config.scenario import Scenario
from casam_core.routing.decision import margin_histogram
from scenarios.engines.inprocess import run_inprocess
from server.evaluation import StageScores
from server.run.summary import routing_of
from server.run.summary_schema import Separation, read_summary
from server.stage import Clock
from tests.conftest import phantom, tiny_table

MARGINS = {
    "polyp": [-2.0, -1.0],
    "histology": [-1.5, -0.5],
    "spleen_ct": [-1.2, 1.0],
    "cardiac_mr": [3.0, 4.0],
}


def scenario_with_twins() -> Scenario:
    """Two tasks are learned; of two unseen ones, spleen_ct is called near."""
    sites = [{"name": task.replace("_", "-"), "data": {task: phantom(task)}} for task in MARGINS]
    return Scenario.model_validate(tiny_table(institutions=[*sites[:2], sites[2] | {"near": True}, sites[3]]))


def test_near_and_far_unknown_images_are_separated_by_themselves() -> None:
    margins = {task: margin_histogram(values) for task, values in MARGINS.items()}
    scores = StageScores({}, {}, {"polyp": {"polyp": 2}}, 0, margins, {})
    found = routing_of(scenario_with_twins(), scores, ["spleen_ct", "cardiac_mr"])
    # Known: -2, -1.5, -1, -0.5. Near: -1.2 is above two of four, 1.0 above all: (2 + 4) / 8.
    assert found.near == Separation(auroc=0.75, fpr95=0.5)  # the cut that finds both has -1 and -0.5 above it
    assert found.far == Separation(auroc=1.0, fpr95=0.0)
    assert found.auroc == pytest.approx((0.75 + 1.0) / 2)
    none = routing_of(scenario_with_twins(), scores, [])
    assert none.near == none.far == Separation()


def test_the_transfer_of_a_run_comes_from_its_own_evaluations(tmp_path: Path) -> None:
    """With one shared layer, the next task's score moves before the task is learned."""
    table = tiny_table(
        method="sequential",
        evaluation={"tasks": "needed"},
        alignment={"learning_rate": 0.3},
        training={"epochs": 6, "batch_images": 4, "keep_best": False},
    )
    run_inprocess(Scenario.model_validate(table), tmp_path / "run", None)
    summary = read_summary(tmp_path / "run")
    rows = summary.matrix["iou"]
    assert summary.plasticity_iou == pytest.approx(np.mean([rows[0][0], rows[1][1]]))
    assert summary.fwt_iou is not None
    assert summary.fwt_iou != 0
    assert summary.complete["fwt_iou"]


def test_processor_seconds_of_learning_end_before_the_evaluation() -> None:
    clock = Clock()
    sum(i * i for i in range(200_000))
    noted = clock.processor
    sum(i * i for i in range(200_000))
    clock.lap("evaluate")
    assert 0 < noted < clock.processor
    assert clock.seconds.keys() == {"evaluate"}  # seconds of one kind
