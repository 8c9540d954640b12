"""Institutions with orders of their own: who learns what in which stage, and what each one forgets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

import server.stream
from casam_core.bank.bank import Bank
from casam_core.config.scenario import Scenario
from casam_core.errors import ScenarioError
from casam_core.protocol.messages import AlignRequest
from scenarios.engines.inprocess import run_inprocess
from scenarios.engines.preflight import preflight
from scenarios.report.reading import read_run
from scenarios.report.sections.headline import cards
from server.run.summary_schema import read_summary
from tests.conftest import phantom, tiny_table
from tests.runs import FinishedRun, events
from tests.server.scripted import scripted
from tests.whole_runs.test_resume import run_until_cut

BOTH = {"polyp": phantom("polyp"), "histology": phantom("histology")}
NAMES = ("north", "south")
BACKWARDS = ["histology", "polyp"]


def table(**changes: Any) -> dict[str, Any]:
    """Two institutions hold both tasks; south learns them backwards."""
    sites = [{"name": "north", "data": BOTH}, {"name": "south", "data": BOTH, "stream": BACKWARDS}]
    return tiny_table(method="sequential", institutions=sites) | changes


def test_each_institution_learns_the_task_of_its_turn_and_tells_what_it_forgot(
    finished_run: FinishedRun,
) -> None:
    run = finished_run(table())
    summary = read_summary(run)
    assert [(event["stage"], event["holders"]) for event in events(run, "align")] == [
        (1, ["north", "south"]),
        (2, ["north", "south"]),
    ]
    assert summary.holders == {"polyp": ["north", "south"], "histology": ["south", "north"]}
    assert set(summary.site_ff_iou) == {"north", "south"}
    assert summary.last_iou is not None
    assert (summary.ff_iou, summary.bwt_iou, summary.avg_iou, summary.plasticity_iou) == (None,) * 4
    assert not summary.complete["ff_iou"]
    card = next(card for card in cards(read_run(run, "")) if card.title == "Forgetting of institutions")
    assert "points" in card.value


def test_in_the_streams_own_order_nothing_changes(finished_run: FinishedRun) -> None:
    """One who writes the scenario's order down learns as one who writes none."""
    plain = table()
    del plain["institutions"][1]["stream"]
    one = read_summary(finished_run(plain))
    written = table()
    written["institutions"][1]["stream"] = ["polyp", "histology"]
    other = read_summary(finished_run(written))
    assert one.matrix == other.matrix
    assert one.site_ff_iou == other.site_ff_iou
    assert one.ff_iou is not None
    assert other.ff_iou is None  # its rows are the same, but nothing says so


def test_who_has_learned_its_tasks_trains_no_more(tmp_path: Path) -> None:
    """West holds one task of the two, so its stream ends after the first stage."""
    held = {"north": ("polyp", "histology"), "west": ("histology",)}
    institutions = [
        {"name": name, "data": {task: BOTH[task] for task in tasks}} for name, tasks in held.items()
    ]
    institutions[1]["stream"] = ["histology"]
    run = scripted(tmp_path / "run", held, method="sequential", institutions=institutions)
    run.run()
    asked = {
        name: [AlignRequest.of(payload) for kind, payload in site.asked if kind == "train.align"]
        for name, site in run.sites.items()
    }
    assert [(request.job.stage, request.trains_on) for request in asked["north"]] == [
        (1, ("polyp",)),
        (2, ("histology",)),
    ]
    assert [(request.job.stage, request.trains_on) for request in asked["west"]] == [(1, ("histology",))]


def test_a_secure_sum_counts_the_images_of_each_ones_turn(finished_run: FinishedRun) -> None:
    """As in the open run: 8 images of polyps at one, 12 of histology at the other."""
    data = [{"polyp": phantom("polyp", 16)}, {"histology": phantom("histology", 24)}]
    sites = [
        {"name": name, "data": held, "stream": list(held)} for name, held in zip(NAMES, data, strict=True)
    ]
    plain = finished_run(table(institutions=sites))
    hidden = {"adapter": {"aggregation": "secagg"}, "minimum_cohort": 2}
    summed = finished_run(table(institutions=[site | {"policy": hidden} for site in sites]))
    (one,), (other,) = (events(run, "align") for run in (plain, summed))
    assert (other["summed"], other["images"]) == (list(NAMES), one["images"])
    layers = [Bank.open(run / "bank" / "stage-1")["shared"].layer for run in (plain, summed)]
    for name, weights in layers[0].items():
        np.testing.assert_allclose(layers[1][name], weights, atol=2e-3)


def test_a_run_that_was_stopped_ends_as_if_it_were_not(tmp_path: Path, finished_run: FinishedRun) -> None:
    scenario, folder = Scenario.model_validate(table()), tmp_path / "run"
    run_until_cut(scenario, folder, server.stream, "save", 2, after=True)  # after the first stage
    run_inprocess(scenario, folder, None, resume=True)
    whole, resumed = read_summary(finished_run(table())), read_summary(folder)
    assert (resumed.matrix, resumed.site_ff_iou, resumed.holders) == (
        whole.matrix,
        whole.site_ff_iou,
        whole.holders,
    )


@pytest.mark.parametrize("method", ["casam", "oracle", "joint"])
def test_an_entry_per_task_knows_no_order(method: str) -> None:
    with pytest.raises(ScenarioError, match="institution 'south', stream: expected a method with one layer"):
        preflight(Scenario.model_validate(table(method=method)), None)


@pytest.mark.parametrize("stream", [["histology"], ["histology", "polyp", "polyp"], ["histology", "liver"]])
def test_an_own_stream_has_each_task_once(stream: list[str]) -> None:
    wrong = table()
    wrong["institutions"][1]["stream"] = stream
    with pytest.raises(
        ValidationError, match="'south', stream: expected each of its tasks of the stream once"
    ):
        Scenario.model_validate(wrong)
