"""Personal entries in whole runs: what stays, what is told, and what ends with a leaving institution."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from casam import Segmenter, load_bank
from casam_core.bank.bank import Bank
from casam_core.config.scenario import Scenario
from casam_core.errors import ScenarioError
from client.data.phantoms import PHANTOMS
from scenarios.engines.inprocess import run_inprocess
from scenarios.engines.preflight import preflight
from scenarios.report.reading import read_run
from scenarios.report.sections.quality import personal_table
from scenarios.study.frames import personal_gain
from server.run.summary_schema import read_summary
from tests.banks import tiny_backbone
from tests.conftest import phantom, tiny_table, with_policies
from tests.runs import FinishedRun, events, private, summary_of

SAME = ("matrix", "zero_shot", "routing", "statistics", "holders", "decodes")
TAUGHT = {"epochs": 2, "batch_images": 4, "keep_best": False, "fallback_to_identity": False}


def table(**changes: Any) -> dict[str, Any]:
    """South and west learn one task; south's images differ much from west's."""
    sites = [
        {"name": "south", "data": {"histology": phantom("histology", 16)}},
        {"name": "west", "data": {"histology": phantom("histology", 16) | {"shift": {"contrast": 0.3}}}},
    ]
    made = tiny_table(stream=["histology"], training=TAUGHT, institutions=sites)
    return made | changes


PERSONAL = {"alignment": {"personal": True}}


def entries(run: Path, name: str) -> dict[str, Bank]:
    """An institution's personal entries, by digest of the shared entry."""
    return {folder.name: Bank.open(folder) for folder in (private(run, name) / "personal").glob("*")}


def test_what_others_see_is_what_it_was_and_one_figure_more(finished_run: FinishedRun) -> None:
    personal, plain = finished_run(table(**PERSONAL)), finished_run(table())
    told, without = summary_of(personal), summary_of(plain)
    assert {name: told[name] for name in SAME} == {name: without[name] for name in SAME}
    mine, shared = (Bank.open(run / "bank")["histology"].layer for run in (personal, plain))
    assert all(np.array_equal(mine[name], shared[name]) for name in shared)
    assert "personal" not in without
    assert set(told["personal"]) == {"south", "west"}


def test_a_figure_is_that_of_the_entry_that_the_institution_kept(finished_run: FinishedRun) -> None:
    run = finished_run(table(**PERSONAL))
    told, bank = summary_of(run), Bank.open(run / "bank")
    for name in ("south", "west"):
        ((shared, own),) = entries(run, name).items()
        assert shared == bank.digest_of("histology")
        by_image = defaultdict[str, dict[str, float]](dict)
        for line in (private(run, name) / "masks.jsonl").read_text().splitlines():
            image, entry, scores = json.loads(line)
            by_image[image][entry] = scores["total"]["iou"] / scores["n_instances"]
        mine = [ious.get(own.digest_of("histology"), ious["identity"]) for ious in by_image.values()]
        assert told["personal"][name]["histology"] == pytest.approx(fmean(mine), abs=1e-4)


def test_report_and_study_say_what_is_gained(finished_run: FinishedRun) -> None:
    run = finished_run(table(**PERSONAL))
    told = summary_of(run)
    personal, shared = told["personal"], told["statistics"]
    rows = personal_table(read_run(run, "run")).rows
    assert [row[:2] for row in rows] == [("histology", "south"), ("histology", "west")]
    assert [row[3] for row in rows] == [f"{personal[name]['histology']:.3f}" for name in ("south", "west")]
    gains = [personal[name]["histology"] - shared[name]["histology"]["iou"]["mean"] for name in personal]
    assert personal_gain(read_summary(run)) == pytest.approx(fmean(gains))
    assert personal_gain(read_summary(finished_run(table()))) is None


def test_an_institution_predicts_with_its_personal_entry(finished_run: FinishedRun) -> None:
    run = finished_run(table(**PERSONAL))
    image_HW3 = PHANTOMS["histology"](np.random.default_rng(7), 64).image_HW3
    for name in ("south", "west"):
        (own,) = entries(run, name).values()
        site = load_bank(private(run, name) / "site-bank")
        assert all(
            np.array_equal(value, own["histology"].layer[key])
            for key, value in site["histology"].entry.layer.items()
        )
        found = Segmenter(tiny_backbone(), site).predict(image_HW3, [(8, 8, 40, 40)], task="histology")
        assert found.masks_NHW.shape == (1, 64, 64)


@pytest.mark.parametrize(
    "policy",
    [
        {"metrics": "never"},
        pytest.param({"router": {"share": "never"}}, marks=pytest.mark.slow),
        pytest.param(
            {"metrics": "noisy", "budget": {"epsilon_metrics": 20.0, "delta": 0.01}}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"router": {"noise": "dp"}, "budget": {"epsilon": 8.0, "delta": 0.01}}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_policy_that_hides_something_tells_no_figure(
    finished_run: FinishedRun, policy: dict[str, Any]
) -> None:
    run = finished_run(with_policies(table(**PERSONAL), west=policy))
    assert "west" not in summary_of(run).get("personal", {})
    assert len(entries(run, "west")) == 1  # for itself


def test_who_shares_no_layer_has_no_personal_one(finished_run: FinishedRun) -> None:
    run = finished_run(with_policies(table(**PERSONAL), west={"adapter": {"share": "never"}}))
    assert set(summary_of(run)["personal"]) == {"south"}
    assert entries(run, "west") == {}


def test_who_leaves_takes_personal_entries_of_others_along(tmp_path: Path) -> None:
    sites = [
        {"name": name, "data": {"histology": phantom("histology", 16)}} for name in ("south", "west", "east")
    ]
    sites[0]["data"]["polyp"] = phantom("polyp", 16)
    made = table(**PERSONAL) | {"stream": ["histology", "polyp"], "institutions": sites, "unlearning": "drop"}
    made = with_policies(made, west={"leaves_at": 2, "on_leave": "unlearn"})
    run_inprocess(Scenario.model_validate(made), tmp_path / "run", None)
    kept = {task for bank in entries(tmp_path / "run", "south").values() for task in bank.tasks}
    assert kept == {"polyp"}
    assert Bank.open(private(tmp_path / "run", "south") / "site-bank").tasks == ("polyp",)
    assert entries(tmp_path / "run", "east") == {}
    assert summary_of(tmp_path / "run")["personal"].keys() == {"south"}


def test_a_method_with_one_layer_for_all_has_no_personal_entries(tmp_path: Path) -> None:
    scenario = Scenario.model_validate(table(**PERSONAL, method="sequential"))
    for begin in (
        lambda: preflight(scenario, None),
        lambda: run_inprocess(scenario, tmp_path / "run", None),
    ):
        with pytest.raises(ScenarioError, match=r"alignment\.personal: expected a method with one entry"):
            begin()
    assert not events(tmp_path / "run", "asked")  # nobody was asked anything
