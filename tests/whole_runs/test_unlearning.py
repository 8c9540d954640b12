"""An institution leaves and takes its part with it: as if it had never been there, as far as anybody can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from casam_core.bank.bank import Bank
from casam_core.config.scenario import Scenario
from casam_core.errors import ScenarioError
from client.release.ledger import Ledger
from scenarios.commands.cli import app
from scenarios.engines.inprocess import run_inprocess
from tests.conftest import tiny_table
from tests.runs import events

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
    table = tiny_table(**changes)
    for site in table["institutions"]:
        site["policy"] = policies.get(site["name"], {})
    run_inprocess(Scenario.model_validate(table), folder, None)
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content


def files(bank: Path) -> dict[str, bytes]:
    return {str(p.relative_to(bank)): p.read_bytes() for p in bank.rglob("*") if p.is_file()}


def private(folder: Path, name: str) -> Path:
    return folder / "institutions" / name / "private"


def test_what_it_made_alone_is_gone_to_the_last_byte(tmp_path: Path) -> None:
    left = run(tmp_path / "left", {"north": LEAVES})
    run(tmp_path / "never", {"north": NEVER_CAME})
    assert files(tmp_path / "left" / "bank") == files(tmp_path / "never" / "bank")
    assert Bank.open(tmp_path / "left" / "bank").tasks == ("histology",)
    assert left["holders"]["polyp"] == []
    (facts,) = left["unlearned"]
    assert (facts["institution"], facts["stage"], facts["deleted"]) == ("north", 2, ["polyp"])
    assert facts["purged"] == ["south", "west"]
    assert facts["iou_before"]["polyp"] is not None
    assert facts["iou_after"]["polyp"] is None  # its test images went with it


@pytest.mark.parametrize("rounds", [1, 2])
def test_what_others_made_with_it_is_learned_anew_without_it(tmp_path: Path, rounds: int) -> None:
    changes: dict[str, Any] = {
        "stream": ["histology", "polyp"],
        "training": {"epochs": 1, "batch_images": 4, "floor": False, "rounds": rounds},
    }
    left = run(tmp_path / "left", {"south": LEAVES, "west": KEEPS}, **changes)
    run(tmp_path / "never", {"south": NEVER_CAME, "west": KEEPS}, **changes)
    assert files(tmp_path / "left" / "bank") == files(tmp_path / "never" / "bank")
    assert left["holders"]["histology"] == ["west"]
    assert left["unlearned"][0]["retrained"] == ["histology"]


@pytest.mark.parametrize(("west", "rule"), [({}, "retrain"), (KEEPS, "drop")])
def test_where_nobody_can_or_may_learn_it_anew_it_is_dropped(
    tmp_path: Path, west: dict[str, Any], rule: str
) -> None:
    policies = {"south": LEAVES, "west": west}
    left = run(tmp_path / "run", policies, stream=["histology", "polyp"], unlearning=rule)
    assert Bank.open(tmp_path / "run" / "bank").tasks == ("polyp",)
    assert left["unlearned"][0]["deleted"] == ["histology"]
    assert left["holders"]["histology"] == []


def test_other_entries_keep_every_byte(tmp_path: Path) -> None:
    run(tmp_path / "left", {"north": LEAVES})
    run(tmp_path / "stays", {})
    left, stays = (Bank.open(tmp_path / name / "bank") for name in ("left", "stays"))
    assert left.bytes_of("histology") == stays.bytes_of("histology")


def test_who_stays_with_on_leave_keep_leaves_its_entries_behind(tmp_path: Path) -> None:
    run(tmp_path / "run", {"north": {"leaves_at": 2}})
    assert Bank.open(tmp_path / "run" / "bank").tasks == ("polyp", "histology")
    assert not (tmp_path / "run" / "receipts").exists()


def test_copies_and_what_was_computed_with_them_are_deleted_elsewhere(tmp_path: Path) -> None:
    run(tmp_path / "stays", {})
    gone = Bank.open(tmp_path / "stays" / "bank").digest_of("polyp")
    assert (
        gone
        in (private(tmp_path / "stays", "south") / "masks.jsonl").read_text()
        + (private(tmp_path / "stays", "south") / "scores.jsonl").read_text()
    )
    run(tmp_path / "left", {"north": LEAVES})
    for name in ("south", "west"):
        for path in private(tmp_path / "left", name).rglob("*"):
            if path.is_file() and path.name != "audit.jsonl":
                assert gone not in path.name
                assert gone.encode() not in path.read_bytes()


def test_noise_that_was_paid_for_is_sent_again_and_costs_nothing(tmp_path: Path) -> None:
    policies = {"south": LEAVES, "west": PRIVATE}
    summary = run(tmp_path / "left", policies, stream=["histology", "polyp"], privacy={"steps": 2})
    spends = Ledger(private(tmp_path / "left", "west") / "ledger.jsonl").lines()
    assert [spend.kind for spend in spends] == ["align", "router", "scores"]
    assert not events(tmp_path / "left", "refusal")
    assert summary["unlearned"][0]["retrained"] == ["histology"]
    assert summary["privacy"]["west"]["epsilon_train"] <= 8.0


def test_one_layer_for_all_tasks_cannot_forget_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"'sequential' keeps one layer .* north asks for on_leave"):
        run(tmp_path / "run", {"north": LEAVES}, method="sequential")


@pytest.fixture
def receipt(tmp_path: Path) -> Path:
    run(tmp_path / "run", {"north": LEAVES})
    return tmp_path / "run" / "receipts" / "north-stage-2.json"


def check(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["audit", "receipt", *map(str, arguments)])
    return result.exit_code, result.output


def test_a_receipt_is_signed_by_the_server_and_by_everybody_who_deleted(receipt: Path) -> None:
    code, said = check(receipt, "--bank", receipt.parents[1] / "bank")
    assert code == 0
    assert said.startswith(
        "consistent: north left at stage 2; deleted or learned anew: polyp; signed by the server and 2 instit"
    )
    content = json.loads(receipt.read_text())
    assert content["bank_before"] != content["bank_after"]
    assert content["iou_before"]["polyp"] is not None


@pytest.mark.parametrize("change", ["stage", "purged", "bank"])
def test_a_receipt_that_says_more_than_was_signed_is_found_out(
    receipt: Path, tmp_path: Path, change: str
) -> None:
    content = json.loads(receipt.read_text())
    arguments: list[str | Path] = [receipt]
    if change == "stage":
        content["stage"] = 1
    elif change == "purged":
        content["purged"]["south"] = content["purged"]["west"]
    else:  # a bank that kept what it should have forgotten
        run(tmp_path / "stays", {})
        arguments += ["--bank", tmp_path / "stays" / "bank"]
    receipt.write_text(json.dumps(content))
    code, said = check(*arguments)
    assert code == 1
    assert said.startswith("tampered: ")
