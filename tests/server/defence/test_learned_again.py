"""An entry that is learned again after a leaver passes the same admission as any new entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from casam_core.bank.bank import Bank
from casam_core.config.policy import Policy
from casam_core.protocol.payload import Payload
from server.defence.quarantine import Quarantine, admit_by_hand
from tests.runs import events
from tests.server.defence.test_quarantine import canary_fails, honest
from tests.server.scripted import Scripted, boosts, scripted

TASKS = {"north": ("polyp",), "south": ("histology",), "west": ("histology",), "east": ("cardiac_mr",)}
STREAM = ["polyp", "histology", "cardiac_mr"]


def left_at_three(path: Path, **changes: Any) -> Scripted:
    """south leaves at stage 3, so that west learns histology again, alone, while east learns its own task."""
    run = scripted(path, TASKS, stream=STREAM, **changes)
    run.sites["south"].policy = Policy(leaves_at=3, on_leave="unlearn")
    run.sites["west"].policy = Policy(keep_samples=True)
    return run


def test_the_canaries_are_asked_about_it(tmp_path: Path) -> None:
    run = left_at_three(tmp_path / "run")
    run.run()
    asked = [p for kind, p in run.sites["north"].asked if kind == "evaluate.stage"]
    assert [p.config.get("candidates", "[]") for p in asked] == [
        "[]",
        '["polyp"]',
        '["histology"]',
        '["histology", "cardiac_mr"]',
    ]
    assert [event["tasks"] for event in events(run.path, "canary")][-1] == ["histology", "cardiac_mr"]
    assert set(Bank.open(run.path / "bank").tasks) == set(STREAM)


def test_a_router_that_claims_others_images_is_held_back(tmp_path: Path) -> None:
    """One bit is about both new entries: both wait for a person, and the old entry does not come back."""
    run = left_at_three(tmp_path / "run")
    run.sites["north"].script["evaluate.stage"] = [honest, honest, honest, canary_fails]
    summary = run.run()
    assert Bank.open(run.path / "bank").tasks == ("polyp",)
    assert {held["task"] for held in summary["quarantine"]} == {"histology", "cardiac_mr"}
    (facts,) = summary["unlearned"]
    assert (facts["deleted"], facts["retrained"]) == (["histology"], [])
    assert summary["routing"]["confusion"]["histology"] == {"identity": 6}
    last = [p for kind, p in run.sites["west"].asked if kind == "evaluate.stage"][-1]
    assert (last.config["known"], len(last.arrays.get("entries", {}))) == (1, 0)
    assert admit_by_hand(run.path, "cardiac_mr").admitted


def test_a_copy_is_held_back(tmp_path: Path) -> None:
    run = left_at_three(tmp_path / "run")
    stolen: dict[str, Any] = {}

    def notes(payload: Any) -> Payload:
        stolen.update(payload.arrays)
        return payload  # type: ignore[no-any-return]

    run.sites["north"].script["train.router"] = [notes]
    run.sites["west"].script["train.router"] = [
        honest,  # type: ignore[list-item]
        lambda p: Payload(p.config, {"router": stolen["router"]}, p.metrics),  # type: ignore[union-attr]
    ]
    (held,) = run.run()["quarantine"]
    assert (held["task"], held["reasons"]) == ("histology", ["its router is a copy of polyp's"])
    assert Bank.open(run.path / "bank").tasks == ("polyp", "cardiac_mr")
    assert Quarantine(run.path).held_back()[0].task == "histology"


@pytest.mark.parametrize("place", [0, 1])
def test_an_entry_taken_from_the_middle_is_taken_from_every_copy(tmp_path: Path, place: int) -> None:
    stream = ["histology", "polyp", "cardiac_mr"] if place == 0 else STREAM
    run = scripted(tmp_path / "run", TASKS, stream=stream)
    run.sites["south"].policy = Policy(leaves_at=3, on_leave="unlearn")
    run.sites["west"].policy = Policy(keep_samples=True)
    run.sites["north"].script["evaluate.stage"] = [honest, honest, honest, canary_fails]
    run.run()
    assert list(run.sites["west"].copy) == list(run.sites["east"].copy) == ["polyp"]


def test_a_layer_that_moved_too_far_is_rejected(tmp_path: Path) -> None:
    run = left_at_three(tmp_path / "run", admission={"norm_factor": 3.0})
    run.sites["west"].script["train.align"] = [honest, boosts(1e4)]
    run.run()
    assert "histology" not in Bank.open(run.path / "bank")
    assert [event["institution"] for event in events(run.path, "rejected")] == ["west"]
