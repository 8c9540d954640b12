"""Policies in whole runs: who refuses what, what the others see of it, and what stays at home."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from casam_core.bank.bank import Bank
from casam_core.config.scenario import Scenario
from casam_core.errors import RunError
from casam_core.protocol.audit import broken, differences, read_log
from casam_core.protocol.outcomes import Outcome
from client.evaluation.own_entries import KnownEntries
from client.release.ledger import Ledger
from scenarios.engines.inprocess import run_inprocess
from server.run.run_folder import heads_of, read_arrivals
from tests.conftest import tiny_table


def run(folder: Path, **policies: dict[str, Any]) -> dict[str, Any]:
    """Summary of the tiny scenario with these policies."""
    table = tiny_table()
    for site in table["institutions"]:
        site["policy"] = policies.get(site["name"], {})
    run_inprocess(Scenario.model_validate(table), folder / "run", None)
    content: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text())
    return content


def private(folder: Path, name: str) -> Path:
    return folder / "run" / "institutions" / name / "private"


def test_a_layer_that_stays_at_home_leaves_the_task_to_frozen_sam_elsewhere(tmp_path: Path) -> None:
    summary = run(tmp_path, north={"adapter": {"share": "never"}})
    assert Bank.open(tmp_path / "run" / "bank").tasks == ("histology",)
    assert summary["holders"] == {"polyp": [], "histology": ["south", "west"]}
    assert summary["privacy"]["north"]["refusals"] == {Outcome.ADAPTER_NOT_SHARED: 1}
    own = Bank.open(private(tmp_path, "north") / "own-entries")
    assert own.tasks == ("polyp",)
    assert own["polyp"].provenance.holders == ("north",)
    assert not any("polyp" in routes for routes in summary["routing"]["confusion"].values())


def test_its_own_entry_is_the_one_that_it_would_have_shared(tmp_path: Path) -> None:
    run(tmp_path / "closed", north={"adapter": {"share": "never"}})
    run(tmp_path / "open")
    own = Bank.open(private(tmp_path / "closed", "north") / "own-entries")["polyp"]
    shared = Bank.open(tmp_path / "open" / "run" / "bank")["polyp"]
    assert own.threshold == shared.threshold
    assert all((own.layer[name] == shared.layer[name]).all() for name in shared.layer)


SPENT = {
    "adapter": {"noise": "dp"},
    "router": {"noise": "dp"},
    "budget": {"epsilon": 1e-6, "delta": 1e-5},
}


@pytest.mark.parametrize("policy", [{"adapter": {"share": "never"}}, SPENT, {"router": {"share": "never"}}])
def test_an_own_entry_changes_no_figure_that_leaves(
    tmp_path: Path, policy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run once more, with an institution that learns nothing for itself: the same replies."""
    figures = ("matrix", "zero_shot", "routing", "per_institution")
    with_own = run(tmp_path / "with", north=policy)
    assert "polyp" in Bank.open(private(tmp_path / "with", "north") / "own-entries")
    monkeypatch.setattr("client.release.permission.learn_alone", lambda institution, job: None)
    monkeypatch.setattr(
        "client.evaluation.overlays.known_entries", lambda institution, bank: KnownEntries(bank)
    )
    without = run(tmp_path / "without", north=policy)
    for name in set(figures) & with_own.keys():
        assert with_own[name] == without[name], name


def test_training_for_itself_that_fails_is_the_same_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(*_: object) -> None:
        raise RunError("training diverged")

    monkeypatch.setattr("client.release.permission.learn_alone", diverges)
    summary = run(tmp_path, north={"adapter": {"share": "never"}})
    assert summary["privacy"]["north"]["refusals"] == {Outcome.ADAPTER_NOT_SHARED: 1}
    assert "training diverged" in (private(tmp_path, "north") / "site.log").read_text()


def test_one_of_two_holders_can_stay_out(tmp_path: Path) -> None:
    summary = run(tmp_path, west={"adapter": {"share": "never"}})
    assert summary["holders"]["histology"] == ["south"]
    assert "histology" in Bank.open(private(tmp_path, "west") / "own-entries")


def test_without_its_router_an_entry_is_used_by_its_name_alone(tmp_path: Path) -> None:
    summary = run(tmp_path, north={"router": {"share": "never"}})
    entry = Bank.open(tmp_path / "run" / "bank")["polyp"]
    assert (entry.threshold, entry.router) == (None, {})
    assert summary["holders"]["polyp"] == ["north"]
    assert "polyp" not in summary["routing"]["confusion"]["histology"]
    assert "polyp" not in summary["routing"]["confusion"]["polyp"]  # known at home, and in no figure
    assert "polyp" in Bank.open(private(tmp_path, "north") / "own-entries")


def test_scores_that_stay_at_home_leave_empty_cells(tmp_path: Path) -> None:
    summary = run(tmp_path, north={"metrics": "never"})
    assert [row[0] for row in summary["matrix"]["iou"]] == [None, None]
    assert summary["complete"]["last_iou"] is False
    assert summary["privacy"]["north"]["refusals"] == {Outcome.METRICS_NOT_SHARED: 3}
    assert Bank.open(private(tmp_path, "north") / "bank").tasks == ("polyp", "histology")


def test_who_takes_no_entries_of_others_is_sent_none(tmp_path: Path) -> None:
    run(tmp_path, north={"accept_entries": False})
    assert Bank.open(private(tmp_path, "north") / "bank").tasks == ("polyp",)
    assert Bank.open(private(tmp_path, "south") / "bank").tasks == ("polyp", "histology")


def test_rounds_and_bytes_are_counted_over_the_audit_log(tmp_path: Path) -> None:
    summary = run(tmp_path, north={"max_rounds": 0}, west={"max_bytes": 3000})
    assert summary["privacy"]["north"]["refusals"] == {Outcome.ROUNDS_SPENT: 1}
    assert summary["holders"] == {"polyp": [], "histology": ["south"]}
    assert summary["privacy"]["west"]["refusals"][Outcome.BYTES_SPENT] >= 1
    sent = [line.release for line in read_log(private(tmp_path, "west") / "audit.jsonl")]
    assert sum(r.bytes for r in sent if r.outcome == "ok" and r.kind != "query.identify") <= 3000


@pytest.mark.parametrize("name", ["north", "south", "west"])
def test_what_left_is_what_arrived(tmp_path: Path, name: str) -> None:
    summary = run(tmp_path, west={"metrics": "never"})
    lines = read_log(private(tmp_path, name) / "audit.jsonl")
    server = tmp_path / "run" / "audit.jsonl"
    assert broken(lines) is None
    left = [line.release for line in lines if line.release.kind != "query.identify"]
    arrived = [release for release in read_arrivals(server) if release.institution == name]
    assert differences(left, arrived) == []
    assert sum(release.bytes for release in left) == summary["bytes"]["up"][name]
    seen = [head for head in heads_of(server) if head.institution == name]
    assert [(h.sequence, h.head) for h in seen] == [
        (line.sequence, line.head) for line in lines if line.release.kind != "query.identify"
    ]


def test_a_budget_that_no_noise_fits_is_a_refusal_and_no_failure(tmp_path: Path) -> None:
    tight = {
        "adapter": {"noise": "dp"},
        "router": {"noise": "dp"},
        "metrics": "noisy",
        "budget": {"epsilon": 1e-6, "epsilon_metrics": 1e-6, "delta": 1e-5},
    }
    summary = run(tmp_path, north=tight)
    assert summary["privacy"]["north"]["refusals"] == {Outcome.BUDGET_SPENT: 4}  # a layer, three evaluations
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert '"affordable": 0' in events
    assert "polyp" in Bank.open(private(tmp_path, "north") / "own-entries")


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
    for site in table["institutions"]:
        site["policy"] = private_router if site["name"] != "south" else {}
    run_inprocess(Scenario.model_validate(table), tmp_path / "run", None)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for name, task in (("north", "polyp"), ("west", "histology")):
        facts = summary["privacy"][name]
        assert facts["refusals"] == {}
        assert 0 < facts["epsilon_train"] <= 8.0
        spends = Ledger(private(tmp_path, name) / "ledger.jsonl").lines()
        assert [(s.kind, s.task, s.steps) for s in spends] == [
            ("align", task, 3),
            ("router", task, 3),
            ("scores", task, 1),
        ]
    bank = Bank.open(tmp_path / "run" / "bank")
    assert all(bank[task].threshold is not None for task in bank.tasks)
    assert bank["histology"].provenance.holders == ("south", "west")


def test_a_router_without_a_private_way_is_refused_by_name(tmp_path: Path) -> None:
    table = tiny_table(router={"kind": "nearest_mean"}, privacy={"steps": 2})
    table["institutions"][0]["policy"] = {
        "router": {"noise": "dp"},
        "budget": {"epsilon": 8.0, "delta": 0.01},
    }
    run_inprocess(Scenario.model_validate(table), tmp_path / "run", None)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["privacy"]["north"]["refusals"] == {Outcome.NOISE_NOT_POSSIBLE: 1}
    assert Bank.open(tmp_path / "run" / "bank")["polyp"].threshold is None  # used by its name alone
