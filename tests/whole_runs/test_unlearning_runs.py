"""An institution leaves and takes its part with it: as if it had never been there, as far as anybody can."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from casam_core.bank.bank import Bank
from casam_core.config.scenario import Scenario
from casam_core.protocol.register import REGISTER, read_register
from client.dp import noisy_metrics
from client.evaluation.evaluator import MASKS, ROUTES
from client.release.ledger import Ledger
from scenarios.engines.inprocess import run_inprocess
from scenarios.inspection.verify import faults_in_receipt
from tests.banks import files_of
from tests.conftest import phantom, tiny_table, with_policies
from tests.runs import FinishedRun, events, private, summary_of

LEAVES = {"leaves_at": 2, "on_leave": "unlearn"}
NEVER_CAME = {"joins_at": 99}
KEEPS = {"keep_samples": True}
PRIVATE = {
    "adapter": {"noise": "dp"},
    "router": {"noise": "dp"},
    "budget": {"epsilon": 8.0, "delta": 0.01},
    "keep_samples": True,
}


def run(folder: Path, policies: dict[str, dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Summary of the tiny scenario with these policies."""
    run_inprocess(Scenario.model_validate(with_policies(tiny_table(**changes), **policies)), folder, None)
    return summary_of(folder)


NORTH_LEAVES = with_policies(tiny_table(), north=LEAVES)


def test_what_it_made_alone_is_gone_to_the_last_byte(tmp_path: Path, finished_run: FinishedRun) -> None:
    run(tmp_path / "never", {"north": NEVER_CAME})
    folder = finished_run(NORTH_LEAVES)
    left = summary_of(folder)
    assert files_of(folder / "bank") == files_of(tmp_path / "never" / "bank")
    assert Bank.open(folder / "bank").tasks == ("histology",)
    assert left["holders"]["polyp"] == []
    (facts,) = left["unlearned"]
    assert (facts["institution"], facts["stage"], facts["deleted"]) == ("north", 2, ["polyp"])
    assert facts["purged"] == ["south", "west"]
    receipt = json.loads((folder / "receipts" / "north-stage-2.json").read_text())
    assert faults_in_receipt(receipt, read_register(folder / REGISTER)) == []
    assert facts["iou_before"]["polyp"] is not None
    assert facts["iou_after"]["polyp"] is None  # its test images went with it


def test_what_others_made_with_it_is_learned_anew_without_it(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "stream": ["histology", "polyp"],
        "training": {"epochs": 1, "batch_images": 4, "fallback_to_identity": False, "rounds": 2},
    }
    left = run(tmp_path / "left", {"south": LEAVES, "west": KEEPS}, **changes)
    run(tmp_path / "never", {"south": NEVER_CAME, "west": KEEPS}, **changes)
    assert files_of(tmp_path / "left" / "bank") == files_of(tmp_path / "never" / "bank")
    assert left["holders"]["histology"] == ["west"]
    assert left["unlearned"][0]["retrained"] == ["histology"]


def test_copies_and_what_was_computed_with_them_are_deleted_elsewhere(finished_run: FinishedRun) -> None:
    stays, left = finished_run(tiny_table()), finished_run(NORTH_LEAVES)
    gone = Bank.open(stays / "bank").digest_of("polyp")
    computed = [private(stays, "south") / name for name in (MASKS, ROUTES)]
    assert any(gone in path.read_text() for path in computed)
    for name in ("south", "west"):
        for path in private(left, name).rglob("*"):
            if path.is_file() and path.name != "audit.jsonl":
                assert gone not in path.name
                assert gone.encode() not in path.read_bytes()


def test_noise_that_was_paid_for_is_sent_again_and_costs_nothing(tmp_path: Path) -> None:
    policies = {"south": LEAVES, "west": PRIVATE}
    summary = run(tmp_path / "left", policies, stream=["histology", "polyp"], privacy={"steps": 2})
    spends = Ledger(private(tmp_path / "left", "west") / "ledger.jsonl").lines()
    assert [spend.kind for spend in spends] == ["align", "router"]
    assert not events(tmp_path / "left", "refusal")
    assert summary["unlearned"][0]["retrained"] == ["histology"]
    assert summary["privacy"]["west"]["epsilon_train"] <= 8.0


EVIDENCE = ("audit.jsonl", "ledger.jsonl", "site.log", "work.jsonl")
"""Files that stay: what a site sent, spent and could not do, by name only, and the seconds of its work."""


def test_a_sites_folder_holds_nothing_of_a_leaver_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file, searched for the digest of the deleted entry and for the name of its task."""
    honest = noisy_metrics.noisy_result

    def with_a_route(*about: Any) -> Any:
        """The noise makes a route to the leaver's entry or not; here it always does."""
        result, known = honest(*about), any("histology" in part for part in about if isinstance(part, list))
        return replace(result, routes={"histology": 1}) if known else result

    monkeypatch.setattr(noisy_metrics, "noisy_result", with_a_route)
    noisy = {"metrics": "noisy", "budget": {"epsilon_metrics": 40.0, "delta": 0.01}}
    changes = {"stream": ["histology", "polyp"], "institutions": three()}
    kept = run(tmp_path / "stays", {"north": noisy, "west": {}}, **changes)
    assert kept["unlearned"] == []
    entry = Bank.open(tmp_path / "stays" / "bank").digest_of("histology")
    assert len(found(private(tmp_path / "stays", "north") / "releases", "histology")) == 2
    run(tmp_path / "left", {"north": noisy, "south": LEAVES, "west": {}}, **changes)
    for name in ("north", "west"):
        assert found(private(tmp_path / "left", name), "histology", entry) == set()
        assert list(private(tmp_path / "left", name).rglob("*.bin")) or name == "west"


def three() -> list[dict[str, Any]]:
    """Only south holds histology."""
    held = {"north": "polyp", "south": "histology", "west": "polyp"}
    return [{"name": name, "data": {task: phantom(task, 24)}} for name, task in held.items()]


def found(folder: Path, *words: str) -> set[str]:
    """The files below a folder that hold one of the words, in their names or their bytes."""
    return {
        path.name
        for path in folder.rglob("*")
        if path.is_file() and path.name not in EVIDENCE
        if any(word in path.name or word.encode() in path.read_bytes() for word in words)
    }


# --- Secure sums -----------------------------------------------------------------------------------------

SECRET = {"adapter": {"aggregation": "secagg"}, "router": {"aggregation": "secagg"}, "keep_samples": True}


def run_in_sums(folder: Path, names: str, leavers: str) -> dict[str, Any]:
    """Summary of a run in which all hold one task, and some leave after it was learned in secure sums."""
    other = {"histology": phantom("histology", 8)}
    sites = [
        {
            "name": name,
            "data": {"polyp": phantom("polyp", 8), **(other if name == "a" else {})},
            "policy": {**SECRET, **(LEAVES if name in leavers else {})},
        }
        for name in names
    ]
    table = tiny_table(stream=["polyp", "histology"], institutions=sites)
    run_inprocess(Scenario.model_validate(table), folder, None)
    return summary_of(folder)


def test_sums_with_and_without_a_leaver_are_never_both_there(tmp_path: Path) -> None:
    """Their difference would be the leaver's own layer and the mean of its images."""
    left = run_in_sums(tmp_path / "run", "abcd", "d")
    (facts,) = left["unlearned"]
    assert (facts["deleted"], facts["retrained"]) == (["polyp"], [])
    assert "polyp" not in Bank.open(tmp_path / "run" / "bank").tasks
    for name in "abc":
        assert left["privacy"][name]["refusals"]["other-members"] == 1
    assert left["privacy"]["d"]["anonymity"] == {
        "adapter": {"server": 4, "co_holder": 3},
        "router": {"server": 4, "co_holder": 3},
    }
    rounds = [event for event in events(tmp_path / "run", "align") if event["task"] == "polyp"]
    assert [event["summed"] for event in rounds] == [["a", "b", "c", "d"]]
