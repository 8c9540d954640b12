"""A hostile institution among honest ones, in whole runs: what it sends does not count, or is held back.

The weights of the tiny backbone are random, so no score says how much a wrong layer harms: that stands in
docs/reliability.md, measured with the real one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from casam_core.bank.bank import Bank
from casam_core.config.scenario import Scenario
from client.simulation.adversaries import ATTACKS
from scenarios.engines.inprocess import run_inprocess
from tests.casam_command import Casam
from tests.conftest import phantom, tiny_table, with_policies
from tests.runs import FinishedRun, events, summary_of

HONEST = ("polyp", "histology")


def stream_with_a_stranger(attack: str | None) -> dict[str, Any]:
    """Two honest institutions, then `west`, each with a task of its own."""
    sites = [
        {"name": "north", "data": {"polyp": phantom("polyp", 24)}},
        {"name": "south", "data": {"histology": phantom("histology", 24)}},
        {"name": "west", "data": {"cardiac_mr": phantom("cardiac_mr", 24)}, "faults": {"attack": attack}},
    ]
    return tiny_table(stream=[*HONEST, "cardiac_mr"], institutions=sites, admission={"megabytes": 2})


def run(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    run_inprocess(Scenario.model_validate(table), folder, None)
    return summary_of(folder)


def test_a_router_that_claims_others_images_is_held_back_until_it_is_admitted(
    tmp_path: Path, casam: Casam
) -> None:
    summary = run(stream_with_a_stranger("hijack"), tmp_path / "run")
    (held,) = summary["quarantine"]
    assert held["task"] == "cardiac_mr"
    assert held["reasons"] == ["it claims images of other tasks, north says"]
    assert summary["canary"]["cardiac_mr"] == {"north": True, "south": False, "west": None}
    # Everybody was asked anew without it: nobody's images go to it.
    assert summary["routing"]["confusion"]["polyp"] == {"polyp": 9}
    assert summary["holders"]["cardiac_mr"] == []
    bank = tmp_path / "run" / "bank"
    assert Bank.open(bank).tasks == HONEST
    assert "cardiac_mr" in casam("bank", "admit", "run").out
    assert Bank.open(bank).tasks == HONEST
    assert casam("bank", "admit", "run", "cardiac_mr").status == 0
    assert Bank.open(bank).tasks == (*HONEST, "cardiac_mr")
    assert [event["task"] for event in events(tmp_path / "run", "admitted")] == ["cardiac_mr"]
    assert casam("bank", "verify", bank).status == 0
    assert "holds no entry of task 'knee'" in casam("bank", "admit", "run", "knee").refusal


def test_a_canary_that_may_not_sing_leaves_the_entry_unchecked(tmp_path: Path) -> None:
    silent = {name: {"canaries": 0} for name in ("north", "south", "west")}
    summary = run(with_policies(stream_with_a_stranger("hijack"), **silent), tmp_path / "run")
    assert summary["quarantine"] == []
    assert set(summary["canary"]["cardiac_mr"].values()) == {None}
    assert "cardiac_mr" in summary["routing"]["confusion"]["polyp"]  # what the canary would have told


def test_an_entry_cannot_be_admitted_before_the_run_has_ended(tmp_path: Path, casam: Casam) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "scenario.json").write_text("{}")
    assert "expected the folder of a finished run" in casam("bank", "admit", "run", "polyp").refusal


OUTCOMES = {
    "nan": ("train.align", "rejected"),
    "infinite": ("train.align", "rejected"),
    "wrong-shape": ("train.align", "rejected"),
    "wrong-dtype": ("train.align", "rejected"),
    "boosted": ("train.align", "rejected"),
    "many-images": ("train.align", "rejected"),
    "oversized": ("train.align", "rejected"),
    "garbage": ("train.align", "rejected"),
    "infinite-threshold": ("train.router", "rejected"),
    "wide-threshold": ("train.router", "rejected"),  # the default router has none
    "impossible-metrics": ("evaluate.stage", "rejected"),
    "copied-router": ("entry", "quarantined"),
    "hijack": ("entry", "quarantined"),
    "scaled": ("", "accepted"),
    "sign-flipped": ("", "accepted"),
    "random": ("", "accepted"),
    "flattering-metrics": ("", "accepted"),
}
"""By attack: where it ends. What is accepted harms the attacker's own task alone, its own figures, or
unknown images."""


def test_every_attack_has_its_outcome() -> None:
    assert OUTCOMES.keys() == ATTACKS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("attack", OUTCOMES)
def test_an_attack_ends_where_the_table_says_and_harms_nobody_else(
    tmp_path: Path, finished_run: FinishedRun, attack: str
) -> None:
    honest = summary_of(finished_run(stream_with_a_stranger(None)))
    summary = run(stream_with_a_stranger(attack), tmp_path / "run")
    where, outcome = OUTCOMES[attack]
    assert (where in summary["privacy"]["west"]["rejections"]) == (outcome == "rejected")
    assert bool(summary["quarantine"]) == (outcome == "quarantined")
    for task in HONEST:
        assert summary["routing"]["confusion"][task] == honest["routing"]["confusion"][task]
        assert summary["holders"][task] == honest["holders"][task]
    learned = summary["matrix"]["iou"][-1][:2], honest["matrix"]["iou"][-1][:2]
    assert learned[0] == learned[1]
