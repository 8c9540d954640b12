"""A whole run through the in-process engine: the protocol, the numbers, the run folder."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from casam_core.bank.bank import Bank
from casam_core.config.scenario import Scenario
from casam_core.errors import RunError
from casam_core.protocol.audit import read_log
from casam_core.protocol.fingerprint import ROOT
from client.evaluation.evaluator import MASKS, ROUTES
from client.institution import Institution
from client.node.worktime import noted
from client.site import Site, hosted_sites
from scenarios.engines.inprocess import run_inprocess
from tests.banks import files_of
from tests.conftest import tiny_table
from tests.runs import FinishedRun, events, summary_of

VOLATILE = ("timing", "environment", "run")


def lasting(folder: Path) -> dict[str, Any]:
    return {key: value for key, value in summary_of(folder).items() if key not in VOLATILE}


@pytest.fixture
def finished(finished_run: FinishedRun) -> Path:
    """One run of the tiny scenario, for reading."""
    return finished_run(tiny_table())


def test_the_run_folder_holds_what_docs_promise(finished: Path) -> None:
    for name in (
        "summary.json",
        "matrix.csv",
        "matrix.png",
        "events.jsonl",
        "scenario.json",
        "bank/manifest.json",
    ):
        assert (finished / name).stat().st_size > 0, name
    summary = summary_of(finished)
    assert summary["status"] == "completed"
    assert summary["tasks"] == ["polyp", "histology"]
    assert summary["holders"] == {"polyp": ["north"], "histology": ["south", "west"]}
    assert set(summary["zero_shot"]["iou"]) == {"polyp", "histology", "cardiac_mr"}
    assert summary["unseen"]["tasks"] == ["cardiac_mr"]
    assert set(summary["bytes"]["up"]) == set(summary["bytes"]["down"]) == {"north", "south", "west"}


def test_unseen_images_are_measured_after_every_stage(finished: Path) -> None:
    unseen = summary_of(finished)["unseen"]
    assert [set(stage) for stage in unseen["unknown_rate"]] == [{"cardiac_mr"}] * 2
    assert all(0 <= stage["cardiac_mr"] <= 1 for stage in unseen["unknown_rate"])
    assert set(unseen["zero_shot"]) == {"cardiac_mr"}
    routing = summary_of(finished)["routing"]
    assert 0 <= routing["auroc"] <= 1
    assert 0 <= routing["fpr95"] <= 1


def test_institutions_say_how_sure_their_figures_are(finished: Path) -> None:
    summary = summary_of(finished)
    assert {name: set(tasks) for name, tasks in summary["statistics"].items()} == {
        "north": {"polyp"}, "south": {"histology", "cardiac_mr"}, "west": {"histology"},
    }  # fmt: skip
    polyp = summary["statistics"]["north"]["polyp"]
    assert polyp["iou"]["mean"] == pytest.approx(summary["matrix"]["iou"][-1][0])  # its only holder
    gain = summary["matrix"]["iou"][-1][0] - summary["zero_shot"]["iou"]["polyp"]
    assert polyp["gain"]["mean"] == pytest.approx(gain)
    assert polyp["iou"]["low"] <= polyp["iou"]["mean"] <= polyp["iou"]["high"]


def test_every_figure_of_the_summary_is_explained(finished: Path) -> None:
    page = (ROOT / "docs" / "run-folder.md").read_text()
    assert [key for key in summary_of(finished) if f"`{key}" not in page] == []


def test_cells_of_tasks_not_learned_yet_are_null(finished: Path) -> None:
    for name in ("iou", "dice", "biou"):
        rows = summary_of(finished)["matrix"][name]
        assert [[cell is None for cell in row] for row in rows] == [[False, True], [False, False]]


def test_every_test_image_is_routed_once(finished: Path) -> None:
    confusion = summary_of(finished)["routing"]["confusion"]
    # 12 images per dataset, about a quarter for testing; two institutions hold histology. Slices of one
    # heart stay together, four to a patient.
    assert {task: sum(routes.values()) for task, routes in confusion.items()} == {
        "polyp": 5,
        "histology": 8,
        "cardiac_mr": 4,
    }


def test_the_bank_holds_one_entry_per_stage_with_its_provenance(finished: Path) -> None:
    bank = Bank.open(finished / "bank")
    assert bank.tasks == ("polyp", "histology")
    assert bank["histology"].provenance.holders == ("south", "west")
    assert bank["polyp"].provenance.stage == 1
    assert np.isfinite(bank["polyp"].threshold)


def test_an_institution_holds_the_same_entries_as_the_server(finished: Path) -> None:
    ours = Bank.open(finished / "bank")
    for name in ("north", "south", "west"):
        assert Bank.open(finished / "institutions" / name / "private" / "bank").digest == ours.digest


def test_every_request_is_noted_by_the_institution_that_worked_on_it(finished: Path) -> None:
    for private in finished.glob("institutions/*/private"):
        answered = [line.release for line in read_log(private / "audit.jsonl")]
        worked = noted(private)
        assert [work.kind for work in worked] == [
            release.kind for release in answered if release.kind != "query.identify"
        ]
        assert all(work.seconds > 0 and work.processor_seconds > 0 for work in worked)


def test_events_tell_the_story_in_order(finished: Path) -> None:
    told = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines()]
    fine = ("met", "asked", "answer", "traffic")  # for `casam watch`; tests/scenarios/engines/test_watch.py
    assert [event["event"] for event in told if event["event"] not in fine] == [
        "start", "evaluated",
        "align", "entry", "canary", "evaluated",
        "align", "entry", "canary", "evaluated",
        "end",
    ]  # fmt: skip
    times = [event["time"] for event in told]
    assert times == sorted(times)


def test_the_same_seed_gives_the_same_bits(finished: Path, tmp_path: Path, tiny_scenario: Scenario) -> None:
    run_inprocess(tiny_scenario, tmp_path / "again", None)
    assert lasting(tmp_path / "again") == lasting(finished)
    for part in ("bank", "matrix.csv", "matrix.png"):
        one, other = finished / part, tmp_path / "again" / part
        if one.is_dir():
            assert files_of(one) == files_of(other)
        else:
            assert one.read_bytes() == other.read_bytes(), part


def alone(**changes: Any) -> dict[str, Any]:
    """North and its task without the others."""
    table = tiny_table(stream=["polyp"], **changes)
    return table | {"institutions": table["institutions"][:1]}


def test_another_seed_gives_other_weights(finished_run: FinishedRun) -> None:
    one, other = (Bank.open(finished_run(alone(seed=seed)) / "bank")["polyp"] for seed in (0, 1))
    assert any((one.layer[name] != value).any() for name, value in other.layer.items())


def test_a_task_whose_layer_does_not_help_keeps_the_identity(finished: Path, tmp_path: Path) -> None:
    """At a learning rate of almost nothing no layer beats frozen SAM: routes stay, masks are its own."""
    table = tiny_table(
        alignment={"learning_rate": 1e-30}, training={"epochs": 1, "fallback_to_identity": True}
    )
    run_inprocess(Scenario.model_validate(table), tmp_path / "fallback", None)
    bank = Bank.open(tmp_path / "fallback" / "bank")
    assert [entry.provenance.form for entry in bank] == ["identity", "identity"]
    summary = summary_of(tmp_path / "fallback")
    assert summary["matrix"]["iou"][-1] == [summary["zero_shot"]["iou"][task] for task in summary["tasks"]]
    assert [event["task"] for event in events(tmp_path / "fallback", "fallback")] == ["polyp", "histology"]
    with_router = {route for counts in summary["routing"]["confusion"].values() for route in counts}
    assert {"polyp", "histology"} & with_router


def test_an_entry_depends_on_its_own_holders_only(finished: Path, finished_run: FinishedRun) -> None:
    """Without the institutions of other tasks, the first task's layer and router are the same bytes."""
    with_others, by_itself = (Bank.open(f / "bank")["polyp"] for f in (finished, finished_run(alone())))
    assert with_others.threshold == by_itself.threshold
    for name, value in with_others.layer.items():
        np.testing.assert_array_equal(value, by_itself.layer[name])
    for name, value in with_others.router.items():
        np.testing.assert_array_equal(value, by_itself.router[name])


def test_a_stage_decodes_only_what_changed_its_route(finished: Path) -> None:
    summary = summary_of(finished)
    first, *later = summary["decodes"]
    images = sum(sum(routes.values()) for routes in summary["routing"]["confusion"].values())
    assert first == images
    assert sum(later) <= images


def test_incremental_evaluation_has_the_bits_of_a_full_one(
    finished: Path, tmp_path: Path, tiny_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_everything = Institution.evaluator

    def fresh(self: Institution) -> Any:
        for name in (ROUTES, MASKS):
            (self.site.private / name).unlink(missing_ok=True)
        return forget_everything(self)

    monkeypatch.setattr(Institution, "evaluator", fresh)
    run_inprocess(tiny_scenario, tmp_path / "full", None)
    full, incremental = lasting(tmp_path / "full"), lasting(finished)
    assert sum(full.pop("decodes")) > sum(incremental.pop("decodes"))
    # The number of decodes travels in the replies; nothing else differs.
    assert full == incremental


@pytest.mark.parametrize("change", [{"router": {"kind": "vae", "features": "attention", "epochs": 2}},
                                    {"alignment": {"form": "low_rank"}},
                                    {"alignment": {"form": "casam"}},
                                    {"evaluation": {"prompts": "point", "hd95": True}},
                                    {"evaluation": {"prompts": "jittered_box"}},
                                    {"compute": {"precision": "bfloat16"}}])  # fmt: skip
def test_every_option_runs_through(finished_run: FinishedRun, change: dict[str, Any]) -> None:
    assert summary_of(finished_run(alone(**change)))["complete"]["last_iou"]


def test_a_task_whose_holder_fails_ends_the_run_with_the_reason(
    tmp_path: Path, tiny_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Institution, request: object, others: object) -> object:
        raise ValueError("patient 17")

    monkeypatch.setattr(Institution, "align", broken)
    with pytest.raises(RunError, match="no holder of task 'polyp' could train"):
        run_inprocess(tiny_scenario, tmp_path / "run", None)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert "patient 17" not in (tmp_path / "run" / "events.jsonl").read_text()


def test_an_institution_that_lost_its_bank_is_sent_it_again(
    finished: Path, tmp_path: Path, tiny_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Institution.updated_bank

    def loses_its_bank_once(self: Institution, request: Any) -> Any:
        manifest = self.site.private / "bank" / "manifest.json"
        if self.name == "north" and request.job.stage == 2 and len(request.entries) == 1:
            manifest.unlink()
        return whole(self, request)

    monkeypatch.setattr(Institution, "updated_bank", loses_its_bank_once)
    run_inprocess(tiny_scenario, tmp_path / "run", None)
    assert lasting(tmp_path / "run")["matrix"] == lasting(finished)["matrix"]


def test_with_a_mirror_entries_do_not_come_from_the_server(
    finished: Path, tmp_path: Path, tiny_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the image to the wire: the same bits, and what came down is smaller by the entries' bytes."""
    out = tmp_path / "run"

    def with_mirror(*args: Any, **rest: Any) -> list[Site]:
        return [replace(site, mirror=out / "bank" / "entries") for site in hosted_sites(*args, **rest)]

    monkeypatch.setattr("client.client_app.hosted_sites", with_mirror)
    run_inprocess(tiny_scenario, out, None)
    assert lasting(out)["matrix"] == lasting(finished)["matrix"]
    bank = Bank.open(out / "bank")
    assert bank.digest == Bank.open(finished / "bank").digest
    entries = sum(len(bank.bytes_of(task)) for task in bank.tasks)
    for name, before in lasting(finished)["bytes"]["down"].items():
        copy = Bank.open(out / "institutions" / name / "private" / "bank")
        assert copy.digest == bank.digest
        assert before - lasting(out)["bytes"]["down"][name] > 0.9 * entries


def test_a_finished_run_folder_is_not_overwritten(finished: Path, tiny_scenario: Scenario) -> None:
    before = files_of(finished)
    with pytest.raises(RunError, match="already holds a run"):
        run_inprocess(tiny_scenario, finished, None)
    assert files_of(finished) == before


def test_the_folder_of_a_run_that_failed_is_not_used_again(
    tmp_path: Path, tiny_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bank would answer in the new run's stage 0, which measures the frozen backbone."""
    whole = Institution.align

    def fails_in_stage_2(self: Institution, request: Any, others: Any) -> Any:
        if request.job.stage == 2:
            raise MemoryError
        return whole(self, request, others)

    with monkeypatch.context() as patch:
        patch.setattr(Institution, "align", fails_in_stage_2)
        with pytest.raises(RunError, match="could train"):
            run_inprocess(tiny_scenario, tmp_path / "run", None)
    with pytest.raises(RunError, match="already holds a run"):
        run_inprocess(tiny_scenario, tmp_path / "run", None)


def test_a_private_folder_opens_for_its_owner_only(finished: Path) -> None:
    for name in ("north", "south", "west"):
        assert (finished / "institutions" / name / "private").stat().st_mode & 0o077 == 0


def test_a_process_keeps_no_dataset_of_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[Institution]] = []
    whole = Institution.align

    def noted(self: Institution, request: Any, others: Any) -> Any:
        seen.append(weakref.ref(self))
        return whole(self, request, others)

    monkeypatch.setattr(Institution, "align", noted)
    run_inprocess(Scenario.model_validate(alone()), tmp_path / "run", None)
    gc.collect()
    assert [site() for site in seen] == [None]
