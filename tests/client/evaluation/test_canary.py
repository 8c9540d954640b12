"""The canary: one word about a new entry, as often as the policy says, with noise where metrics have it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from casam_core.bank.bank import Bank
from casam_core.bank.entry_file import Entry
from casam_core.config.scenario import Scenario
from casam_core.protocol.messages import EvaluateRequest, RouterRequest
from casam_core.protocol.payload import Job
from client.evaluation.canary import canary
from client.evaluation.own_entries import KnownEntries, own_entries
from client.institution import Institution
from client.release.ledger import Ledger
from client.site import hosted_sites
from tests.banks import tiny_backbone, tiny_entry
from tests.conftest import phantom, tiny_table

NOISY = {"metrics": "noisy", "budget": {"epsilon_metrics": 20.0, "delta": 0.01}}


@pytest.fixture
def north(tmp_path: Path, request: pytest.FixtureRequest) -> Institution:
    """Holds polyp (24 images, some of them for validation); its policy is the test's."""
    site = {"name": "north", "data": {"polyp": phantom("polyp", 24)}, "policy": request.param}
    other = {"name": "south", "data": {"histology": phantom("histology")}}
    scenario = Scenario.model_validate(tiny_table(institutions=[site, other]))
    node = {"partition-id": 0, "num-partitions": 2}
    (hosted,) = hosted_sites(scenario, "run", node, {"out": str(tmp_path)})
    return Institution(hosted, scenario, tiny_backbone())


def with_policy(**values: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("north", [values], indirect=True)


def own_entry(north: Institution) -> Entry:
    """What north's own training describes its task by."""
    described = north.fit_router(RouterRequest(Job("north", 1, "polyp"), alone=True).job)
    return replace(
        tiny_entry("polyp"), router=dict(described.router), threshold=north.scenario.router.constant
    )


def asked(north: Institution, candidate: Entry, stage: int = 2, bank: str = "b") -> bool | None:
    """What north says of a bank of its own entry and the candidate."""
    folder = north.site.private / f"bank-{bank}"
    known = Bank.open(folder, create=True)
    if not len(known):
        known.add(own_entry(north))
        known.add(candidate)
    request = EvaluateRequest(Job("north", stage), 0, [], bank, (candidate.task,))
    return canary(north, request, KnownEntries(known, own_entries(north)))


def thief(north: Institution) -> Entry:
    """A copy of north's router that claims noise, under another task's name."""
    entry = own_entry(north)
    router = {**entry.router, "noise": np.float32([0.01])}
    return replace(entry, task="histology", router=router, threshold=1e9)


@with_policy()
def test_an_entry_of_other_images_passes_and_a_thief_fails(north: Institution) -> None:
    assert asked(north, tiny_entry("histology"), bank="honest") is False
    assert asked(north, thief(north), stage=3, bank="stolen") is True


@with_policy(canaries=1)
def test_it_sings_once_a_stage_and_again_for_the_same_question(north: Institution) -> None:
    assert asked(north, tiny_entry("histology"), bank="one") is False
    assert asked(north, tiny_entry("histology"), bank="two") is None
    assert asked(north, tiny_entry("histology"), bank="one") is False
    assert asked(north, tiny_entry("histology"), stage=3, bank="two") is False


@with_policy(canaries=1)
def test_a_power_cut_gives_no_second_answer(north: Institution, monkeypatch: pytest.MonkeyPatch) -> None:
    """The question is on the disk before it is answered."""
    synced: list[str] = []
    monkeypatch.setattr("client.evaluation.canary.sync", lambda path: synced.append(path.read_text()))
    asked(north, tiny_entry("histology"))
    assert "stage 2" in synced[0]


@with_policy()
def test_one_bit_answers_for_several_new_entries(north: Institution) -> None:
    """The thief is found beside an honest entry, and beside a new entry of the task that it robs."""
    known = Bank.open(north.site.private / "several", create=True)
    for entry in (own_entry(north), tiny_entry("cardiac_mr"), thief(north)):
        known.add(entry)

    def says(stage: int, *candidates: str) -> bool | None:
        request = EvaluateRequest(Job("north", stage), 0, [], "b", candidates)
        return canary(north, request, KnownEntries(known, own_entries(north)))

    assert says(2, "cardiac_mr") is False
    assert says(3, "cardiac_mr", "histology") is True
    assert says(4, "polyp", "histology") is True
    assert says(5, "polyp") is None, "nobody else could claim its images"


@with_policy(canaries=0)
def test_it_may_be_forbidden(north: Institution) -> None:
    assert asked(north, thief(north)) is None


@with_policy()
def test_nobody_speaks_of_images_it_does_not_hold(north: Institution) -> None:
    known = Bank.open(north.site.private / "strangers", create=True)
    known.add(tiny_entry("histology"))
    request = EvaluateRequest(Job("north", 2), 0, [], "b", ("histology",))
    assert canary(north, request, KnownEntries(known, own_entries(north))) is None


@with_policy(**NOISY)
def test_a_noisy_word_is_paid_for_once_on_the_validation_images(north: Institution) -> None:
    first = asked(north, tiny_entry("histology"))
    assert first is not None
    assert asked(north, tiny_entry("histology")) is first
    (spend,) = Ledger(north.site.ledger).lines()
    assert (spend.kind, spend.split, spend.task) == ("canary", "val", "polyp")


@with_policy(metrics="noisy", budget={"epsilon_metrics": 1e-6, "delta": 1e-9})
def test_without_budget_it_says_nothing_rather_than_refusing_all(north: Institution) -> None:
    assert asked(north, thief(north)) is None
