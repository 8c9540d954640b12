"""An institution leaves: what is deleted, what is learned anew, who signs, and what a receipt proves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

import casam_core.bank.bank
import server.stage
import server.stream
import server.unlearning
from casam_core.bank.bank import Bank
from casam_core.config.policy import Policy
from casam_core.errors import ScenarioError
from casam_core.protocol.messages import purge_statement
from casam_core.protocol.register import public_hex, signature_of
from scenarios.commands.cli import app
from tests.runs import events, result
from tests.server.defence.test_quarantine import with_a_hijacker
from tests.server.scripted import Scripted, refuses, says, scripted
from tests.server.test_stream import cut

LEAVES = Policy(leaves_at=2, on_leave="unlearn")
NEVER_CAME = Policy(joins_at=99)
KEEPS = Policy(keep_samples=True)
ANEW = ["histology", "polyp"]


def run(path: Path, policies: dict[str, Policy], **changes: Any) -> Scripted:
    """A finished run with these policies."""
    made = begun(path, policies, **changes)
    made.run()
    return made


def begun(path: Path, policies: dict[str, Policy], **changes: Any) -> Scripted:
    made = scripted(path, **changes)
    for name, policy in policies.items():
        made.sites[name].policy = policy
    return made


def files(run: Scripted) -> dict[str, bytes]:
    bank = run.path / "bank"
    return {str(p.relative_to(bank)): p.read_bytes() for p in bank.rglob("*") if p.is_file()}


def summary(run: Scripted) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run.path / "summary.json").read_text())
    return content


def test_what_it_made_alone_is_gone_to_the_last_byte(tmp_path: Path) -> None:
    left = run(tmp_path / "left", {"north": LEAVES})
    assert files(left) == files(run(tmp_path / "never", {"north": NEVER_CAME}))
    assert summary(left)["holders"]["polyp"] == []
    (facts,) = summary(left)["unlearned"]
    assert (facts["institution"], facts["stage"], facts["deleted"]) == ("north", 2, ["polyp"])
    assert facts["purged"] == ["south", "west"]
    assert facts["iou_before"]["polyp"] is not None
    assert facts["iou_after"]["polyp"] is None  # its test images went with it
    # Copies are sent anew, whole.
    (last,) = [p for k, p in left.sites["west"].asked if (k, p.config.get("stage")) == ("evaluate.stage", 2)]
    assert last.config["known"] == 0


@pytest.mark.parametrize("rounds", [1, 2])
def test_what_others_made_with_it_is_learned_anew_without_it(tmp_path: Path, rounds: int) -> None:
    changes: dict[str, Any] = {
        "stream": ANEW,
        "training": {"epochs": 1, "batch_images": 4, "fallback_to_identity": False, "rounds": rounds},
    }
    left = run(tmp_path / "left", {"south": LEAVES, "west": KEEPS}, **changes)
    never = run(tmp_path / "never", {"south": NEVER_CAME, "west": KEEPS}, **changes)
    assert files(left) == files(never)
    assert summary(left)["holders"]["histology"] == ["west"]
    assert summary(left)["unlearned"][0]["retrained"] == ["histology"]
    again = [payload.config["again"] for kind, payload in left.sites["west"].asked if kind == "train.align"]
    assert again == [False] * rounds + [True] * rounds


def test_where_the_scenario_says_drop_it_is_dropped(tmp_path: Path) -> None:
    left = run(tmp_path / "run", {"south": LEAVES}, stream=ANEW, unlearning="drop")
    assert Bank.open(left.path / "bank").tasks == ("polyp",)
    assert summary(left)["unlearned"][0]["deleted"] == ["histology"]
    assert summary(left)["holders"]["histology"] == []


def test_where_nobody_may_learn_it_anew_it_is_dropped(tmp_path: Path) -> None:
    left = begun(tmp_path / "run", {"south": LEAVES}, stream=ANEW)
    left.sites["west"].script["train.align"] = [lambda honest: honest, refuses("samples-not-kept")]
    left.run()
    assert Bank.open(left.path / "bank").tasks == ("polyp",)
    assert summary(left)["unlearned"][0]["deleted"] == ["histology"]
    assert summary(left)["holders"]["histology"] == []


def test_other_entries_keep_every_byte(tmp_path: Path) -> None:
    left, stays = run(tmp_path / "left", {"north": LEAVES}), run(tmp_path / "stays", {})
    banks = [Bank.open(made.path / "bank") for made in (left, stays)]
    assert banks[0].bytes_of("histology") == banks[1].bytes_of("histology")


def test_who_stays_with_on_leave_keep_leaves_its_entries_behind(tmp_path: Path) -> None:
    left = run(tmp_path / "run", {"north": Policy(leaves_at=2)})
    assert Bank.open(left.path / "bank").tasks == ("polyp", "histology")
    assert not (left.path / "receipts").exists()


def test_one_layer_for_all_tasks_cannot_forget_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"'sequential' keeps one layer .* north asks for on_leave"):
        run(tmp_path / "run", {"north": LEAVES}, method="sequential")


def test_a_signature_that_is_none_does_not_count(tmp_path: Path) -> None:
    left = begun(tmp_path / "run", {"north": LEAVES})
    left.sites["west"].script["query.forget"] = [says(signature="0" * 128)]
    left.run()
    assert [event["purged"] for event in events(left.path, "unlearned")] == [["south"]]


@pytest.mark.parametrize(
    ("module", "name", "at", "after"),
    [
        (server.stage, "learn_router", 2, False),
        (server.stream, "learn_stage", 2, False),
        (server.stream, "evaluate_stage", 2, False),
        (server.stream, "write_receipt", 1, True),
        # With the old entry in no manifest, and its file still there; the first call only looks.
        (casam_core.bank.bank, "keep_only", 2, False),
    ],
)
def test_an_unlearning_that_was_cut_is_finished(
    tmp_path: Path, module: Any, name: str, at: int, after: bool
) -> None:
    policies = {"south": LEAVES, "west": KEEPS}
    broken = begun(tmp_path / "cut", policies, stream=ANEW)
    cut(broken, module, name, at, after=after)
    broken.run(resume=True)
    whole = run(tmp_path / "whole", policies, stream=ANEW)
    assert result(broken.path) == result(whole.path)
    assert summary(broken)["unlearned"] == summary(whole)["unlearned"]
    assert (broken.path / "receipts" / "south-stage-2.json").exists()
    assert files(broken) == files(whole)


def test_who_asks_to_leave_when_the_task_is_learned_already_is_unlearned_a_stage_later(
    tmp_path: Path,
) -> None:
    late = begun(tmp_path / "run", {})
    cut(late, server.stream, "save", 2, after=True)
    late.sites["north"].policy = Policy(leaves_at=1, on_leave="unlearn")
    late.run(resume=True)
    (facts,) = summary(late)["unlearned"]
    assert (facts["institution"], facts["stage"], facts["deleted"]) == ("north", 2, ["polyp"])
    assert Bank.open(late.path / "bank").tasks == ("histology",)


ONE_EACH = {"north": ("polyp",), "south": ("histology",), "west": ("cardiac_mr",)}


def test_the_second_of_two_leavers_is_unlearned_in_a_repeated_stage_too(tmp_path: Path) -> None:
    leaves, stream = Policy(leaves_at=3, on_leave="unlearn"), ["polyp", "histology", "cardiac_mr"]
    broken, whole = (
        begun(tmp_path / name, {"north": leaves, "south": leaves}, tasks=ONE_EACH, stream=stream)
        for name in ("cut", "whole")
    )
    cut(broken, server.unlearning, "purge", 2, after=False)
    broken.run(resume=True)
    whole.run()
    assert summary(broken)["unlearned"] == summary(whole)["unlearned"]
    assert [facts["deleted"] for facts in summary(broken)["unlearned"]] == [["polyp"], ["histology"]]
    assert [facts["purged"] for facts in summary(broken)["unlearned"]] == [["west"]] * 2


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_quarantined_entry_goes_with_its_holder_and_stands_in_the_receipt(
    tmp_path: Path, interrupted: bool
) -> None:
    left = with_a_hijacker(tmp_path / "run", ["polyp", "cardiac_mr", "histology"])
    left.sites["west"].policy = Policy(leaves_at=3, on_leave="unlearn")
    if interrupted:
        cut(left, server.stream, "save", 7, after=False)
    left.run(resume=interrupted)
    assert summary(left)["unlearned"][0]["deleted"] == ["cardiac_mr"]
    assert not [*(left.path / "quarantine" / "entries").iterdir()]
    assert summary(left)["quarantine"] == []
    receipt = left.path / "receipts" / "west-stage-3.json"
    assert check(receipt)[0] == 0
    assert list(json.loads(receipt.read_text())["purged"]) == ["north", "south"]


# --- Receipts --------------------------------------------------------------------------------------------


@pytest.fixture
def receipt(tmp_path: Path) -> Path:
    return run(tmp_path / "run", {"north": LEAVES}).path / "receipts" / "north-stage-2.json"


def check(*arguments: str | Path) -> tuple[int, str]:
    register = ["--register", str(Path(arguments[0]).parents[1] / "register.json")]
    result = CliRunner().invoke(app, ["audit", "receipt", *map(str, arguments), *register])
    return result.exit_code, result.output


def test_a_receipt_is_signed_by_the_server_and_by_everybody_who_deleted(receipt: Path) -> None:
    code, said = check(receipt, "--bank", receipt.parents[1] / "bank")
    assert code == 0
    assert said.startswith(
        "consistent: north left at stage 2; deleted or retrained: polyp; signed by the server and 2 instit"
    )
    content = json.loads(receipt.read_text())
    assert content["bank_before"] != content["bank_after"]
    assert content["iou_before"]["polyp"] is not None


def test_a_forged_receipt_with_keys_of_its_own_is_found_out(receipt: Path) -> None:
    """Whoever makes up a receipt can also make up keys and sign it with them."""
    content = json.loads(receipt.read_text())
    made_up = {name: Ed25519PrivateKey.generate() for name in ("server", *content["purged"])}
    gone = sorted(content["deleted"].values())
    content["purged"] = {
        name: signature_of(made_up[name], purge_statement(name, content["run"], "north", gone))
        for name in content["purged"]
    }
    statement = {key: value for key, value in content.items() if key != "signature"}
    signed = {**statement, "signature": signature_of(made_up["server"], statement)}
    receipt.write_text(json.dumps({**signed, "public_key": public_hex(made_up["server"])}))
    code, said = check(receipt)
    assert code == 1
    assert said.count("tampered: ") == 3


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
        arguments += ["--bank", run(tmp_path / "stays", {}).path / "bank"]
    receipt.write_text(json.dumps(content))
    code, said = check(*arguments)
    assert code == 1
    assert said.startswith("tampered: ")
