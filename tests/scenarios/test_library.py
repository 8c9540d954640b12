"""The scenarios that come with casam: listed, shown, and each says in its run what it promises to show.

They run small here, with the tiny backbone: what is tested is who takes part in what, not how well.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from casam_core.bank.bank import Bank
from casam_core.config.library import library_names, resolve_scenario, scenario_path
from casam_core.protocol.outcomes import Outcome
from scenarios.engines.inprocess import run_inprocess
from scenarios.study.study import STUDIES, study_names
from tests.casam_command import Casam

SMALL = (
    "backbone.name=tiny",
    "training.epochs=1",
    "training.fallback_to_identity=false",
    "evaluation.max_instances=2",
    "institutions.*.data.*.images=10",
    "institutions.*.data.*.size=64",
)


def run(name: str, folder: Path, *changes: str) -> dict[str, Any]:
    """summary.json of a small run."""
    run_inprocess(resolve_scenario(name, [*SMALL, *changes]), folder / "run", None)
    content: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text())
    return content


def test_a_name_belongs_to_one_scenario_whatever_its_folder() -> None:
    names = library_names()
    assert len(set(names)) == len(names)
    assert [scenario_path(name).stem for name in names] == names


def test_the_list_has_every_scenario_with_minutes_and_what_to_look_at(casam: Casam) -> None:
    lines = casam("scenarios").out.splitlines()
    for name in library_names():
        (at,) = [number for number, line in enumerate(lines) if line.split(" ")[0] == name]
        scenario = resolve_scenario(name)
        assert scenario.description in lines[at]
        assert scenario.look_at in lines[at + 1]
        if scenario.minutes is not None:
            assert f" {scenario.minutes:g} " in lines[at]
    assert "casam studies" in lines[-1]
    studies = casam("studies").out
    assert all(name in studies for name in study_names())


def test_a_file_is_shown_as_it_is(casam: Casam) -> None:
    assert casam("scenarios", "show", "refusal").out == scenario_path("refusal").read_text()
    assert casam("studies", "show", "order").out == (STUDIES / "order.toml").read_text()
    assert "expected a .toml file or one of" in casam("scenarios", "show", "refusals").refusal
    assert "no such scenario file" in casam("scenarios", "show", "none.toml").refusal


def test_refusal_shows_four_ways_to_say_no(tmp_path: Path) -> None:
    summary = run("refusal", tmp_path)
    said = {name: site["refusals"] for name, site in summary["privacy"].items()}
    assert said == {
        "pathology-lab": {},
        "heart-centre": {Outcome.ADAPTER_NOT_SHARED: 1},
        "endoscopy-centre": {Outcome.METRICS_NOT_SHARED: 5},
        "dental-school": {Outcome.ROUTER_NOT_SHARED: 1},
    }
    assert summary["holders"]["cardiac_mr"] == []
    polyp = summary["tasks"].index("polyp")
    assert {row[polyp] for row in summary["matrix"]["iou"]} == {None}


def test_a_late_joiner_is_measured_without_training(tmp_path: Path) -> None:
    summary = run("late-joiner", tmp_path)
    assert summary["holders"]["histology"] == ["pathology-lab"]
    histology = [row[0] for row in summary["matrix"]["iou"]]
    assert histology[0] is None
    assert None not in histology[1:]
    assert "histology" in summary["statistics"]["pathology-annex"]
    assert summary["holders"]["cardiac_mr"] == ["heart-centre"]


def test_what_a_withdrawn_hospital_shared_stays(tmp_path: Path) -> None:
    summary = run("withdrawal", tmp_path)
    assert [row[0] is None for row in summary["matrix"]["iou"]] == [False, False, True]
    assert "polyp" in Bank.open(tmp_path / "run" / "bank").tasks


def test_unseen_domains_are_measured_and_never_learned(tmp_path: Path) -> None:
    summary = run("unseen-domain", tmp_path)
    assert summary["unseen"]["tasks"] == ["dental_xray", "spleen_ct"]
    assert summary["routing"]["unseen_unknown_rate"] is not None
    assert summary["routing"]["auroc"] is not None


def test_few_shot_has_five_training_images_each() -> None:
    scenario = resolve_scenario("few-shot")
    limits = {spec.limit.train for site in scenario.institutions for spec in site.data.values()}
    assert limits == {5}


def test_a_shared_task_has_all_three_as_its_holders(tmp_path: Path) -> None:
    summary = run("shared-task", tmp_path)
    assert summary["holders"]["histology"] == ["university-hospital", "city-hospital", "village-clinic"]


def test_a_thousand_institutions_are_a_few_lines(tmp_path: Path) -> None:
    assert len(resolve_scenario("thousand-institutions").institutions) == 1000
    summary = run("thousand-institutions", tmp_path, "institutions.0.copies=5")
    assert summary["holders"]["polyp"] == [f"clinic-{number}" for number in range(1, 6)]
