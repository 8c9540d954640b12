"""What an instance is prompted with when its institution is evaluated."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from casam_core.bank.bank import Bank
from casam_core.bank.clicking import masks_by_clicks
from casam_core.bank.entry_file import Entry
from casam_core.bank.finding import find
from casam_core.bank.inference import align, entry_layer
from casam_core.config.scenario import EvaluationSpec, Scenario
from casam_core.metrics.segmentation import iou
from casam_core.model.backbones import Backbone
from casam_core.model.forms.finder import Finder
from casam_core.model.prompts import Prompts
from casam_core.routing.decision import Route
from client.evaluation.evaluator import ROUTES
from client.evaluation.own_entries import KnownEntries
from client.evaluation.results import Results
from client.institution import Institution
from client.site import hosted_sites
from tests.banks import tiny_backbone, tiny_entry
from tests.conftest import tiny_table


@pytest.mark.parametrize(("prompts", "box"), [("clicks", False), ("box_clicks", True)])
def test_an_instance_is_scored_after_its_last_click(tmp_path: Path, prompts: str, box: bool) -> None:
    table = tiny_table(evaluation={"prompts": prompts, "clicks": 2, "max_instances": 99})
    scenario = Scenario.model_validate(table)
    sites = hosted_sites(scenario, "run", {"partition-id": 0, "num-partitions": 1}, {"out": str(tmp_path)})
    south = Institution(next(s for s in sites if s.institution == "south"), scenario, tiny_backbone())
    data, (sample, *_) = south.encoded("histology", "test")
    loaded, seen_CHW = data.load(sample), data.seen(sample, south.backbone, False)
    scores = south.evaluator().score("histology", sample, loaded, seen_CHW, None)
    by_hand = []
    for number in np.unique(loaded.labels_HW[loaded.labels_HW > 0]):
        true_HW = loaded.labels_HW == number
        masks = list(masks_by_clicks(south.backbone, seen_CHW, None, true_HW, 2, box=box))
        assert len(masks) == 3
        assert masks[0].any() == box
        by_hand.append(iou(masks[-1], true_HW))
    assert scores.n_instances == len(by_hand) > 2
    assert scores.total.iou == pytest.approx(sum(by_hand))


@pytest.fixture
def south(tmp_path: Path) -> Institution:
    scenario = Scenario.model_validate(tiny_table())
    sites = hosted_sites(scenario, "run", {"partition-id": 0, "num-partitions": 1}, {"out": str(tmp_path)})
    return Institution(next(s for s in sites if s.institution == "south"), scenario, tiny_backbone())


def entry(task: str, number: int) -> Entry:
    """An entry with a random router state; some score nothing, and some entries no router can choose."""
    drawn = np.random.default_rng(number)
    state = {name: drawn.normal(size=a.shape).astype(a.dtype) for name, a in tiny_entry(task).router.items()}
    if number % 7 == 0:
        state = {name: np.full_like(array, np.nan) for name, array in state.items()}
    threshold = None if number % 5 == 0 else float(drawn.uniform(-1, 1))
    return replace(tiny_entry(task), router=state, threshold=threshold)


def test_routes_are_those_of_scoring_all_entries_whatever_happens_to_the_bank(south: Institution) -> None:
    """Entries come, leave and are replaced; images know only the nearest one of before."""
    data, samples = south.encoded("histology", "test")
    bank = Bank.open(south.site.private / "bank", create=True)
    random = np.random.default_rng(0)
    for step in range(1, 60):
        task = f"task-{random.integers(12)}"
        if task in bank:
            bank.remove(task)
        if random.random() < 0.7:
            bank.add(entry(task, step))
        known = KnownEntries(bank)
        fresh = replace(south.evaluator(), routes=Results(south.site.private / f"fresh-{step}.jsonl"))
        for sample in samples:
            kept = south.evaluator().route(sample, data, known)
            assert repr(kept) == repr(fresh.route(sample, data, known))


def test_a_stage_scores_the_new_entry_alone_and_one_line_an_image_is_kept(
    south: Institution, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, samples = south.encoded("histology", "test")
    bank = Bank.open(south.site.private / "bank", create=True)
    scored: list[object] = []
    score = type(south.router).score
    monkeypatch.setattr(
        type(south.router), "score", lambda self, *asked: (scored.append(asked), score(self, *asked))[1]
    )
    for number in (1, 2, 3):
        bank.add(entry(f"task-{number}", number))
        for sample in samples:
            south.evaluator().route(sample, data, KnownEntries(bank))
        assert len(scored) == number * len(samples)
    assert len(Results(south.site.private / ROUTES)._values) == len(samples)


def scaled(entry: Entry, factor: float) -> Entry:
    """The entry with its updates of the mask decoder multiplied."""
    weights = {n: factor * a if n.startswith("decoder_up.") else a for n, a in entry.layer.items()}
    return replace(entry, layer=weights)


def retrained(backbone: Backbone, entry: Entry) -> Backbone:
    """A backbone whose own mask decoder is the sum of both."""
    changed = copy.deepcopy(backbone)
    for name, weight in changed.mask_decoder.transformer.named_parameters():
        key = name.removesuffix(".weight").replace(".", "/")
        if f"decoder_up.{key}" in entry.layer:
            up, down = (torch.from_numpy(entry.layer[f"decoder_{of}.{key}"].copy()) for of in ("up", "down"))
            weight.data = torch.addmm(weight.data, up, down)
    return changed


@pytest.mark.parametrize("prompts", ["box", "point", "clicks", "box_clicks"])
def test_an_entry_that_adapts_the_mask_decoder_is_scored_with_its_decoder(
    south: Institution, prompts: str
) -> None:
    """From the bank's file to the score."""
    adapting = scaled(tiny_entry("histology", "low_rank_decoder"), 20)
    data, samples = south.encoded("histology", "test")
    spec = EvaluationSpec.model_validate({"prompts": prompts, "max_instances": 99})

    def total(name: str, entry: Entry, backbone: Backbone) -> float:
        bank = Bank.open(south.site.private / name, create=True)
        bank.add(entry)
        known, route = KnownEntries(bank), Route(task="histology", nearest="histology", score=0.0)
        masks = Results(south.site.private / f"{name}.jsonl")
        evaluator = replace(south.evaluator(), spec=spec, backbone=backbone, masks=masks)
        images = [evaluator.segment("histology", sample, data, known, route) for sample in samples]
        return sum(image.total.iou for image in images)

    by_hand = total("by-hand", scaled(adapting, 0), retrained(south.backbone, adapting))
    assert total("adapting", adapting, south.backbone) == by_hand
    assert total("frozen", scaled(adapting, 0), south.backbone) != by_hand


def test_what_a_finder_finds_is_decoded_with_the_entrys_decoder(
    south: Institution, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, one = Prompts(boxes_N4=np.array([[2, 3, 30, 40]], np.float32)), np.ones(1, np.float32)
    centre = SimpleNamespace(boxes=box, score_N=one, kind_N=np.zeros(1, np.int64))
    monkeypatch.setattr("casam_core.bank.finding.found", lambda *_: centre)
    adapting = scaled(tiny_entry("histology", "low_rank_decoder"), 20)
    data, (sample, *_) = south.encoded("histology", "test")
    z_CHW, frame = data.seen(sample, south.backbone, False), south.backbone.frame(data.load(sample).image_HW3)

    def estimate(entry: Entry, backbone: Backbone) -> list[float]:
        layer = entry_layer(entry, 32)
        aligned_CHW = align(z_CHW, layer, backbone.compute)
        return find(backbone, Finder(32), layer, z_CHW, aligned_CHW, frame).iou_N.tolist()

    by_hand = estimate(scaled(adapting, 0), retrained(south.backbone, adapting))
    assert len(by_hand) == 1
    assert estimate(adapting, south.backbone) == by_hand
    assert estimate(scaled(adapting, 0), south.backbone) != by_hand


def test_the_clicks_of_earlier_scenarios_keep_their_digest() -> None:
    assert "clicks" not in EvaluationSpec().model_dump()
    assert EvaluationSpec(clicks=5).model_dump()["clicks"] == 5
    with pytest.raises(ValidationError):
        EvaluationSpec(clicks=0)
