"""What each method adds to the harness: who trains, what is penalised, which entry answers."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from casam_core.config.named_parts import BackboneSpec
from casam_core.errors import ScenarioError
from casam_core.methods import EWC_STRENGTH, METHODS, SHARED, Cohort, distillation, elastic, method_of
from casam_core.model.backbones import Backbone, load_backbone
from casam_core.model.backbones.window import whole
from casam_core.model.compute import Compute
from casam_core.model.forms import LowRankSpec, build_layer
from casam_core.model.frame import frame_of
from casam_core.model.prompts import Prompts
from casam_core.model.training import Batch, Drawn, decode_batch
from casam_core.routing.decision import Route

COHORT = Cohort(
    task="polyp",
    seen=("liver", "nuclei"),
    held={"a": ["polyp"], "b": ["liver", "polyp"], "c": ["nuclei"], "d": ["later"]},
    keeps=["b"],
)
ROUTED = Route(task="liver", nearest="liver", score=1.0)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(BackboneSpec(name="tiny"), Compute("cpu", 1, "float32"))


def batch_of(layer: nn.Module, backbone: Backbone) -> Batch:
    z_CHW = torch.randn(32, 8, 8, generator=torch.Generator().manual_seed(0))
    prompts = Prompts(boxes_N4=np.array([[4, 4, 40, 40]], np.float32))
    frame = frame_of(np.zeros((64, 64)), backbone.geometry.side)
    drawn = Drawn(z_CHW, prompts, torch.ones(1, 32, 32), [whole(8)], (), frame)
    return decode_batch(layer, backbone, [drawn])


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ScenarioError, match=r"expected one of casam, .*found 'magic'"):
        method_of("magic")


@pytest.mark.parametrize(
    ("name", "trainers"),
    [
        ("casam", {"a": ("polyp",), "b": ("polyp",)}),
        ("sequential", {"a": ("polyp",), "b": ("polyp",)}),
        # b may keep samples, c may not; tasks come in the order they were learned.
        ("replay", {"a": ("polyp",), "b": ("liver", "polyp")}),
        (
            "fedavg",
            # c let its nuclei go after their stage; d trains before its task's stage has come.
            {"a": ("polyp",), "b": ("liver", "polyp"), "d": ("later",)},
        ),
        ("joint", {"a": ("liver", "nuclei", "polyp")}),
    ],
)
def test_who_trains_on_what(name: str, trainers: dict[str, tuple[str, ...]]) -> None:
    assert METHODS[name].trainers(COHORT) == trainers


@pytest.mark.parametrize(
    ("name", "trainers"),
    [
        # c has learned all of its own.
        ("sequential", {"a": ("liver",), "b": ("polyp",)}),
        ("replay", {"a": ("liver",), "b": ("nuclei", "liver", "polyp")}),
        ("fedavg", {"a": ("liver",), "b": ("liver", "nuclei", "polyp")}),
    ],
)
def test_who_has_an_order_of_its_own_trains_on_the_task_of_its_turn(
    name: str, trainers: dict[str, tuple[str, ...]]
) -> None:
    everything = ["liver", "nuclei", "polyp"]
    cohort = replace(
        COHORT,
        held={"a": everything, "b": everything, "c": ["nuclei"]},
        streams={"a": ("polyp", "nuclei", "liver"), "b": ("nuclei", "liver", "polyp"), "c": ("nuclei",)},
    )
    assert METHODS[name].trainers(cohort) == trainers


@pytest.mark.parametrize(
    ("name", "known", "answer"),
    [
        ("casam", ["liver"], "liver"),
        ("oracle", ["liver", "polyp"], "polyp"),
        ("oracle", ["liver"], None),
        ("sequential", [SHARED], SHARED),
        ("sequential", [], None),
    ],
)
def test_which_entry_answers_for_a_polyp(name: str, known: list[str], answer: str | None) -> None:
    assert METHODS[name].route("polyp", known, lambda: ROUTED).task == answer


def test_only_ours_asks_the_router() -> None:
    assert [name for name, method in METHODS.items() if method.routes] == ["casam", "routed_lora"]


def test_pooling_is_marked() -> None:
    assert [name for name, method in METHODS.items() if method.pools] == ["joint"]


class TwoNumbers(nn.Module):
    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor([a])), nn.Parameter(torch.tensor([b]))


def test_elastic_penalty_by_hand(backbone: Backbone) -> None:
    layer = build_layer(LowRankSpec(), 32, seed=0)
    batch = batch_of(layer, backbone)
    importance = {"a": np.array([2.0], np.float32), "b": np.array([0.5], np.float32)}
    penalty = elastic(TwoNumbers(1.0, 1.0), backbone, importance)
    # 2 * (3 - 1)^2 + 0.5 * (0 - 1)^2 = 8.5
    assert penalty(TwoNumbers(3.0, 0.0), batch).item() == pytest.approx(EWC_STRENGTH / 2 * 8.5)
    assert penalty(TwoNumbers(1.0, 1.0), batch).item() == 0


def test_elastic_penalty_is_nothing_before_anything_was_learned(backbone: Backbone) -> None:
    layer = build_layer(LowRankSpec(), 32, seed=0)
    assert float(elastic(layer, backbone, None)(layer, batch_of(layer, backbone))) == 0


def test_distillation_is_least_where_nothing_changed(backbone: Backbone) -> None:
    start = build_layer(LowRankSpec(), 32, seed=0)
    moved = copy.deepcopy(start)
    with torch.no_grad():
        moved.shift_C += 1.0
    penalty = distillation(start, backbone, None)
    same = batch_of(start, backbone)
    probability = torch.sigmoid(same.logits[0])
    entropy = -(probability * probability.log() + (1 - probability) * (1 - probability).log()).mean()
    assert penalty(start, same).item() == pytest.approx(entropy.item(), rel=1e-4)
    assert penalty(moved, batch_of(moved, backbone)).item() > penalty(start, same).item()
