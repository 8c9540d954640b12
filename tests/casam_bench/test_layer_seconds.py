"""Ways of learning are trained by the product's own loop, and measured when their seconds are used up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from casam_bench.quality import layer_seconds
from casam_bench.quality.layer_seconds import Way, alone, form, kept_or_learned, measured, trained
from casam_bench.quality.layer_tables import image_iou, interval, kept, pareto
from casam_bench.quality.rival_layers import DecoderLoraLayer
from casam_core.config.named_parts import AlignmentSpec, BackboneSpec
from casam_core.model.backbones import Backbone
from casam_core.model.backbones.tiny import load_tiny
from casam_core.model.compute import Compute
from casam_core.model.forms.affine import IdentityLayer
from casam_core.model.training import Example
from tests.casam_bench.surroundings import surroundings

SQUARE = np.zeros((64, 64), np.int32)
SQUARE[10:40, 10:40] = 1
TINY_WAY = form(AlignmentSpec(form="scale_shift"))


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_tiny(BackboneSpec(name="tiny"), Compute(device="cpu", threads=1, precision="float32"))


@pytest.fixture
def example() -> Example:
    return Example(torch.randn(32, 8, 8, generator=torch.Generator().manual_seed(0)), SQUARE)


def test_a_way_is_measured_when_its_seconds_are_used_up(
    tiny: Backbone, example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step takes a second by this clock, so the budgets of 3 and 10 seconds are 3 and 10 steps."""
    ticks = iter(0.5 * i for i in range(10_000))
    monkeypatch.setattr(layer_seconds, "clock", lambda threads: lambda: next(ticks) * 2)
    way = Way(TINY_WAY.build, 1e-2, most=10.0)
    layer = way.build(tiny, 0)
    changes = [
        (budget, steps, float(layer.scale_C.detach().abs().sum()))  # type: ignore[union-attr, operator]
        for budget, steps, _ in trained(layer, tiny, [example], way, 0, 1)
    ]
    assert [(budget, steps) for budget, steps, _ in changes] == [(3.0, 3), (10.0, 10)]
    assert changes[1][2] > changes[0][2] > 0


def test_averaged_weights_lag_behind(tiny: Backbone, example: Example) -> None:
    way = Way(TINY_WAY.build, 1e-2, most=3.0, average=0.9)
    layer = way.build(tiny, 0)
    _, _, averaged = next(iter(trained(layer, tiny, [example], way, 0, 1)))
    assert averaged is not layer
    assert 0 < averaged.scale_C.abs().sum() < layer.scale_C.abs().sum()  # type: ignore[operator, union-attr]


def test_all_layers_are_measured_on_the_same_instances_and_jitter(tiny: Backbone, example: Example) -> None:
    frozen = IdentityLayer(32)
    first, again = (measured(frozen, tiny, example, 4, layer_seconds.PROMPTS) for _ in range(2))
    assert first == again
    assert first["jittered"] != first["tight"]
    assert [len(first[kind]) for kind in layer_seconds.PROMPTS] == [1, 1]


def test_an_update_of_the_decoder_starts_as_frozen_sam(tiny: Backbone, example: Example) -> None:
    layer = DecoderLoraLayer(tiny, 0)
    frozen = measured(IdentityLayer(32), tiny, example, 0, ("tight",))
    np.testing.assert_allclose(measured(layer, tiny, example, 0, ("tight",))["tight"], frozen["tight"])
    moved = next(value for name, value in layer.named_parameters() if name.endswith("up_O"))
    torch.nn.init.ones_(moved)
    assert measured(layer, tiny, example, 0, ("tight",))["tight"] != frozen["tight"]
    assert not any("mask_decoder" in name or "original" in name for name, _ in layer.named_parameters())


def test_a_cell_is_learned_once_and_only_by_one_process(
    tmp_path: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[str] = []

    def learn(around: object, backbone: object, way: object, task: str, seed: int) -> dict[str, Any]:
        learned.append(task)
        return {"at": {}}

    monkeypatch.setattr(layer_seconds, "learn", learn)
    cells = [kept_or_learned(surroundings(tmp_path), tiny, "lora", "histology", 0) for _ in range(2)]
    assert learned == ["histology"]
    assert cells[0] == cells[1] == {"way": "lora", "task": "histology", "seed": 0, "at": {}}
    with alone(tmp_path / "lock") as free:
        assert free


def cell(way: str, seed: int, val: float, test: float) -> dict[str, Any]:
    frozen = {
        "val": [[[0.0, 0.6]]],
        "test": [[[0.0, 0.7]]],
        "jittered": [[[0.0, 0.7]]],
    }
    found = {**frozen, "steps": 5, "val": [[[0.0, val]]], "test": [[[0.0, test]]]}
    return {"way": way, "task": "t", "seed": seed, "bytes": 8, "frozen": frozen, "at": {"3": found}}


def test_what_validation_finds_worse_than_frozen_sam_is_not_kept() -> None:
    assert kept(cell("a", 0, val=0.5, test=0.9), 3) == 0.7
    assert kept(cell("a", 0, val=0.8, test=0.9), 3) == 0.9
    assert kept(cell("a", 0, val=0.8, test=0.9), 2) == 0.7  # the budget is too small


def test_differences_are_paired_by_task_and_seed() -> None:
    cells = [cell("a", 0, 0.8, 0.8), cell("a", 1, 0.8, 0.6), cell("b", 0, 0.8, 0.9), cell("b", 1, 0.8, 0.7)]
    figures = pareto(cells, "a", "phantom", lambda table: None)
    assert figures["iou_phantom_b_3s"] == pytest.approx(0.8)
    assert figures["points_phantom_b_3s"] == pytest.approx(10)
    assert figures["worst_phantom_a_3s"] == pytest.approx(-10)
    assert figures["iou_phantom_frozen"] == pytest.approx(0.7)


def test_an_interval_needs_two_values_and_an_image_its_instances() -> None:
    assert np.isnan(interval([0.1])[1])
    # Two values 1 apart: standard error 0.5, Student's t with one degree of freedom 12.71.
    assert interval([0.0, 1.0]) == pytest.approx((0.5, 6.353), abs=1e-3)
    assert image_iou([[[0.0, 0.2], [0.0, 0.4]], []]).tolist() == pytest.approx([0.3])
