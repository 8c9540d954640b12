"""Personal entries at one institution: which weights are chosen, and that nothing else changes them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from casam_core.bank.bank import Bank
from casam_core.bank.entries import rounded
from casam_core.bank.entry_file import Entry
from casam_core.config.scenario import Scenario
from casam_core.model.forms import AlignmentLayer, weights_of
from casam_core.model.validation import Validated
from casam_core.protocol.messages import (
    AlignReply,
    AlignRequest,
    EvaluateReply,
    ForgetRequest,
    TaskResult,
)
from casam_core.protocol.payload import Job
from casam_core.routing.decision import Route
from client.evaluation.own_entries import KnownEntries, forget, learn_alone, own_entries
from client.evaluation.personal import (
    between,
    personal_entries,
    personal_entry,
    tell_personal,
    with_better_router,
)
from client.institution import Institution
from client.site import hosted_sites
from tests.banks import tiny_backbone
from tests.conftest import phantom, tiny_table

Weights = dict[str, np.ndarray]


def hosted(folder: Path, images: int = 24) -> Institution:
    """North holds polyp, with 4 validation images of 24, and wants a personal entry."""
    site = {"name": "north", "data": {"polyp": phantom("polyp", images)}}
    table = tiny_table(stream=["polyp"], institutions=[site], alignment={"personal": True})
    scenario = Scenario.model_validate(table)
    (found,) = hosted_sites(scenario, "run", {"partition-id": 0, "num-partitions": 1}, {"out": str(folder)})
    return Institution(found, scenario, tiny_backbone())


@pytest.fixture
def north(tmp_path: Path) -> Institution:
    return hosted(tmp_path)


def shared_entry(north: Institution) -> Entry:
    """What north's own round teaches, as the entry that it receives."""
    learn_alone(north, Job("north", 1, "polyp"))
    entry = own_entries(north)["polyp"]
    shutil.rmtree(north.site.private / "own-entries")
    return entry


def received(north: Institution) -> Bank:
    bank = Bank.open(north.site.private / "bank", create=True)
    bank.add(shared_entry(north))
    return bank


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[Weights]]:
    """Validation images that like the layers best which lie at one share of the way; the layers they saw."""

    def at(best: float) -> list[Weights]:
        seen: list[Weights] = []
        ways = [0.0, 0.25, 0.5, 0.75, 1.0]

        def validate(layer: AlignmentLayer) -> Validated:
            seen.append({name: value.copy() for name, value in weights_of(layer).items()})
            worth = 0.6 - abs(ways[len(seen) - 1] - best)
            return Validated(np.array([worth, worth + 0.1]), np.array([worth, worth]))

        monkeypatch.setattr(Institution, "validator", lambda *_: validate)
        return seen

    return at


def taught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training adds one to every weight."""

    def align(north: Institution, request: AlignRequest) -> AlignReply:
        assert request.layer is not None
        assert request.job.round == north.scenario.training.rounds + 1
        return AlignReply({name: value + np.float32(1) for name, value in request.layer.items()}, 3)

    monkeypatch.setattr(Institution, "align", align)


@pytest.mark.parametrize("best", [0.25, 0.5, 1.0])
def test_the_weights_that_validation_likes_best_are_kept(
    north: Institution, scored: Callable[[float], list[Weights]], monkeypatch: pytest.MonkeyPatch, best: float
) -> None:
    shared = shared_entry(north)
    seen = scored(best)
    taught(monkeypatch)
    personal = personal_entry(north, shared)
    start = seen[0]
    kept = rounded(between(start, {name: value + 1 for name, value in start.items()}, best))
    assert all(np.array_equal(personal.layer[name], kept[name]) for name in kept)
    assert personal.router.keys() == shared.router.keys()
    assert (personal.threshold, personal.provenance) == (shared.threshold, shared.provenance)
    assert personal.correction == 0.05  # of the images' IoU, 0 and 0.1 above the estimate


def test_the_shared_entry_stays_unless_others_are_clearly_better(
    north: Institution, scored: Callable[[float], list[Weights]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = shared_entry(north)
    scored(0.0)
    taught(monkeypatch)
    assert personal_entry(north, shared) is shared


def merged(shared: Entry, further: float) -> Entry:
    """The entry as two institutions would have made it: its mean lies `further` away from north's images."""
    router = dict(shared.router) | {"mean_K": shared.router["mean_K"] + np.float32(further)}
    return replace(shared, router=router, provenance=replace(shared.provenance, holders=("north", "south")))


def test_a_router_of_its_own_answers_where_the_common_one_knows_fewer_of_its_images(
    north: Institution,
) -> None:
    alone = shared_entry(north)
    common, far = merged(alone, 0.0), merged(alone, 100.0)
    assert with_better_router(north, common) is common
    own = with_better_router(north, far)
    assert np.array_equal(own.router["mean_K"], alone.router["mean_K"])
    assert (own.threshold, own.provenance) == (far.threshold, far.provenance)


def test_its_own_router_sends_its_images_to_the_entry_and_its_figure_says_so(north: Institution) -> None:
    bank = Bank.open(north.site.private / "bank", create=True)
    bank.add(merged(shared_entry(north), 100.0))
    known = KnownEntries(bank, *personal_entries(north, bank))
    evaluator, data = north.evaluator(), north.task("polyp")
    routes = [
        [evaluator.route(sample, data, entries).task for sample in data.split.test]
        for entries in (KnownEntries(bank), known)
    ]
    assert routes == [[None] * len(data.split.test), ["polyp"] * len(data.split.test)]
    segmented = [
        evaluator.segment("polyp", sample, data, known, Route("polyp", "polyp", 0.0)).mean.iou
        for sample in data.split.test
    ]
    told = tell_personal(north, EvaluateReply({"polyp": RESULT}), bank).results["polyp"].personal
    assert told == pytest.approx(np.mean(segmented))


def test_the_router_of_a_single_holder_is_its_own_already(north: Institution) -> None:
    far = merged(shared_entry(north), 100.0)
    alone = replace(far, provenance=replace(far.provenance, holders=("north",)))
    assert with_better_router(north, alone) is alone


def test_a_personal_entry_is_made_once_and_again_with_the_same_bits(north: Institution) -> None:
    bank = received(north)
    (first,) = personal_entries(north, bank)
    made = first.file_of("polyp").stat().st_mtime_ns
    (second,) = personal_entries(north, bank)
    assert second.file_of("polyp").stat().st_mtime_ns == made
    shutil.rmtree(north.site.private / "personal")
    (third,) = personal_entries(north, bank)
    assert third.digest == first.digest


def test_one_validation_image_chooses_nothing(tmp_path: Path) -> None:
    north = hosted(tmp_path, images=8)
    assert north.task("polyp").holding.val == 1
    assert personal_entries(north, received(north)) == []


RESULT = TaskResult(
    images=4,
    instances=4,
    iou=0.5,
    dice=0.5,
    biou=0.5,
    biou_official=0.5,
    iou_instance=0.5,
    hd95=None,
    routes={},
)


def test_training_that_fails_costs_the_figure_and_no_more(
    north: Institution, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, reply = received(north), EvaluateReply({"polyp": RESULT})
    assert tell_personal(north, reply, bank).results["polyp"].personal is not None
    shutil.rmtree(north.site.private / "personal")

    def diverges(*_: object) -> None:
        raise RuntimeError("training diverged")

    monkeypatch.setattr(Institution, "align", diverges)
    assert tell_personal(north, reply, bank) == reply
    assert "training diverged" in north.site.log.read_text()


def test_forgetting_deletes_what_began_with_the_entry_and_its_scores(
    north: Institution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.evaluation.own_entries.sign_as", lambda *_: "b" * 128)
    bank = received(north)
    shared = bank.digest_of("polyp")
    tell_personal(north, EvaluateReply({"polyp": RESULT}), bank)
    (personal,) = personal_entries(north, bank)
    mine = personal.digest_of("polyp")
    masks = north.site.private / "masks.jsonl"
    assert mine in masks.read_text()
    forget(north, ForgetRequest(Job("north", 2), "south", ("../bank", "b" * 64)))
    assert [folder.name for folder in (north.site.private / "personal").iterdir()] == [shared]
    forget(north, ForgetRequest(Job("north", 2), "south", (shared,)))
    assert list((north.site.private / "personal").iterdir()) == []
    assert mine not in masks.read_text()
