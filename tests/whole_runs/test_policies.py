"""Policies in whole runs: who refuses what, what the others see of it, and what stays at home."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from casam_core.bank.bank import Bank
from casam_core.config.scenario import Scenario
from casam_core.errors import RunError
from casam_core.protocol.audit import broken, read_log
from casam_core.protocol.outcomes import Outcome
from client.evaluation.own_entries import KnownEntries
from client.release.ledger import Ledger
from scenarios.engines.inprocess import run_inprocess
from scenarios.inspection.verify import differences
from server.run.run_folder import heads_of, read_arrivals
from tests.conftest import tiny_table, with_policies
from tests.runs import FinishedRun, private, summary_of

ADAPTER_AT_HOME = {"adapter": {"share": "never"}}
ROUTER_AT_HOME = {"router": {"share": "never"}}
SPENT = {
    "adapter": {"noise": "dp"},
    "router": {"noise": "dp"},
    "metrics": "noisy",
    "budget": {"epsilon": 1e-6, "epsilon_metrics": 1e-6, "delta": 1e-5},
}
CAREFUL = with_policies(
    tiny_table(), north=ADAPTER_AT_HOME, south=ROUTER_AT_HOME, west=SPENT | {"metrics": "exact"}
)
"""Everybody keeps something at home: north and west a layer, south a router."""


def run(folder: Path, **policies: dict[str, Any]) -> Path:
    """A run of the tiny scenario with these policies."""
    run_inprocess(Scenario.model_validate(with_policies(tiny_table(), **policies)), folder / "run", None)
    return folder / "run"


def test_the_authors_objective_trains_privately_too(tmp_path: Path) -> None:
    """It compares masks at the size of the image; private steps descend Dice there."""
    noise = {"adapter": {"noise": "dp"}, "budget": {"epsilon": 8.0, "delta": 1e-3}}
    table = with_policies(tiny_table(stream=["polyp"]), north=noise)
    for institution in table["institutions"]:
        for data in institution["data"].values():
            data["images"] = 30
    table["training"] |= {"objective": "official", "far_cells": "all"}
    table["privacy"] = {"steps": 2}
    run_inprocess(Scenario.model_validate(table), tmp_path / "run", None)
    assert Bank.open(tmp_path / "run" / "bank").tasks == ("polyp",)
    assert not summary_of(tmp_path / "run")["privacy"]["north"]["refusals"]


def test_a_layer_that_stays_at_home_leaves_the_task_to_frozen_sam_elsewhere(
    finished_run: FinishedRun,
) -> None:
    careful = finished_run(CAREFUL)
    summary = summary_of(careful)
    assert Bank.open(careful / "bank").tasks == ("histology",)
    assert summary["holders"] == {"polyp": [], "histology": ["south"]}
    assert summary["privacy"]["north"]["refusals"] == {Outcome.ADAPTER_NOT_SHARED: 1}
    own = Bank.open(private(careful, "north") / "own-entries")
    assert own.tasks == ("polyp",)
    assert own["polyp"].provenance.holders == ("north",)
    assert not any("polyp" in routes for routes in summary["routing"]["confusion"].values())


def test_its_own_entry_is_the_one_that_it_would_have_shared(finished_run: FinishedRun) -> None:
    own = Bank.open(private(finished_run(CAREFUL), "north") / "own-entries")["polyp"]
    shared = Bank.open(finished_run(tiny_table()) / "bank")["polyp"]
    assert own.threshold == shared.threshold
    assert all((own.layer[name] == shared.layer[name]).all() for name in shared.layer)


def test_without_its_router_an_entry_is_used_by_its_name_alone(finished_run: FinishedRun) -> None:
    careful = finished_run(CAREFUL)
    entry, summary = Bank.open(careful / "bank")["histology"], summary_of(careful)
    assert (entry.threshold, entry.router) == (None, {})
    # known at home, and in no figure
    assert not any("histology" in routes for routes in summary["routing"]["confusion"].values())
    assert "histology" in Bank.open(private(careful, "south") / "own-entries")


def test_own_entries_change_no_figure_that_leaves(
    finished_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run once more, with institutions that learn nothing for themselves: the same replies."""
    for name, task in {"north": "polyp", "south": "histology", "west": "histology"}.items():
        assert task in Bank.open(private(finished_run(CAREFUL), name) / "own-entries")
    monkeypatch.setattr("client.release.permission.learn_alone", lambda institution, job: None)
    monkeypatch.setattr(
        "client.evaluation.overlays.known_entries", lambda institution, bank: KnownEntries(bank)
    )
    run_inprocess(Scenario.model_validate(CAREFUL), tmp_path / "run", None)
    with_own, without = summary_of(finished_run(CAREFUL)), summary_of(tmp_path / "run")
    for name in ("matrix", "zero_shot", "routing", "statistics", "last_iou"):
        assert with_own[name] == without[name], name


def test_training_for_itself_that_fails_is_the_same_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(*_: object) -> None:
        raise RunError("training diverged")

    monkeypatch.setattr("client.release.permission.learn_alone", diverges)
    failed = run(tmp_path, north=ADAPTER_AT_HOME)
    assert summary_of(failed)["privacy"]["north"]["refusals"] == {Outcome.ADAPTER_NOT_SHARED: 1}
    assert "training diverged" in (private(failed, "north") / "site.log").read_text()


QUIET = with_policies(tiny_table(), north={"metrics": "never"}, west=SPENT)
"""North tells no scores; no noise fits into west's budget."""


def test_scores_that_stay_at_home_leave_empty_cells(finished_run: FinishedRun) -> None:
    summary = summary_of(finished_run(QUIET))
    assert [row[0] for row in summary["matrix"]["iou"]] == [None, None]
    assert summary["complete"]["last_iou"] is False
    assert summary["privacy"]["north"]["refusals"] == {Outcome.METRICS_NOT_SHARED: 3}
    assert Bank.open(private(finished_run(QUIET), "north") / "bank").tasks == ("polyp", "histology")


def test_a_budget_that_no_noise_fits_is_a_refusal_and_no_failure(finished_run: FinishedRun) -> None:
    quiet = finished_run(QUIET)
    # A layer, three evaluations.
    assert summary_of(quiet)["privacy"]["west"]["refusals"] == {Outcome.BUDGET_SPENT: 4}
    assert '"affordable": 0' in (quiet / "events.jsonl").read_text()
    assert "histology" in Bank.open(private(quiet, "west") / "own-entries")


@pytest.mark.parametrize("name", ["north", "south", "west"])
def test_what_left_is_what_arrived(finished_run: FinishedRun, name: str) -> None:
    quiet = finished_run(QUIET)
    lines = read_log(private(quiet, name) / "audit.jsonl")
    server = quiet / "audit.jsonl"
    assert broken(lines) is None
    left = [line.release for line in lines if line.release.kind != "query.identify"]
    arrived = [release for release in read_arrivals(server) if release.institution == name]
    assert differences(left, arrived) == []
    assert sum(release.bytes for release in left) == summary_of(quiet)["bytes"]["up"][name]
    seen = [head for head in heads_of(server) if head.institution == name]
    assert [(h.sequence, h.head) for h in seen] == [
        (line.sequence, line.head) for line in lines if line.release.kind != "query.identify"
    ]


def test_who_takes_no_entries_of_others_is_sent_none(tmp_path: Path) -> None:
    choosy = run(tmp_path, north={"accept_entries": False})
    assert Bank.open(private(choosy, "north") / "bank").tasks == ("polyp",)
    assert Bank.open(private(choosy, "south") / "bank").tasks == ("polyp", "histology")


def test_rounds_and_bytes_are_counted_over_the_audit_log(tmp_path: Path) -> None:
    sparing = run(tmp_path, north={"max_rounds": 0}, west={"max_bytes": 3000})
    summary = summary_of(sparing)
    assert summary["privacy"]["north"]["refusals"] == {Outcome.ROUNDS_SPENT: 1}
    assert summary["holders"] == {"polyp": [], "histology": ["south"]}
    assert summary["privacy"]["west"]["refusals"][Outcome.BYTES_SPENT] >= 1
    sent = [line.release for line in read_log(private(sparing, "west") / "audit.jsonl")]
    assert sum(r.bytes for r in sent if r.outcome == "ok" and r.kind != "query.identify") <= 3000


@pytest.mark.slow
def test_a_vae_router_is_trained_with_noise_alone_and_with_others(tmp_path: Path) -> None:
    """North alone, west beside south who adds no noise; each pays for a layer, a network and its scores."""
    private_router = {
        "adapter": {"noise": "dp"},
        "router": {"noise": "dp"},
        "budget": {"epsilon": 8.0, "delta": 0.01},
    }
    table = tiny_table(
        router={"kind": "vae", "features": "attention", "epochs": 2},
        privacy={"steps": 3},
        admission={"canary_share": None},  # so little training tells nothing apart
    )
    table = with_policies(table, north=private_router, west=private_router)
    run_inprocess(Scenario.model_validate(table), tmp_path / "run", None)
    summary = summary_of(tmp_path / "run")
    for name, task in (("north", "polyp"), ("west", "histology")):
        facts = summary["privacy"][name]
        assert facts["refusals"] == {}
        assert 0 < facts["epsilon_train"] <= 8.0
        spends = Ledger(private(tmp_path / "run", name) / "ledger.jsonl").lines()
        assert [(s.kind, s.task, s.steps) for s in spends] == [
            ("align", task, 3),
            ("router", task, 3),
            ("scores", task, 1),
        ]
    bank = Bank.open(tmp_path / "run" / "bank")
    assert all(bank[task].threshold is not None for task in bank.tasks)
    assert bank["histology"].provenance.holders == ("south", "west")


def test_a_router_without_a_private_way_is_refused_by_name(tmp_path: Path) -> None:
    table = tiny_table(stream=["polyp"], router={"kind": "nearest_mean"}, privacy={"steps": 2})
    private_router = {"router": {"noise": "dp"}, "budget": {"epsilon": 8.0, "delta": 0.01}}
    table = with_policies(table, north=private_router)
    run_inprocess(Scenario.model_validate(table), tmp_path / "run", None)
    assert summary_of(tmp_path / "run")["privacy"]["north"]["refusals"] == {Outcome.NOISE_NOT_POSSIBLE: 1}
    assert Bank.open(tmp_path / "run" / "bank")["polyp"].threshold is None  # used by its name alone
