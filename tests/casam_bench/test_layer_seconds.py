"""Ways of learning are trained by the product's own loop, and measured when their seconds are used up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from casam_bench.quality import layer_seconds
from casam_bench.quality.layer_seconds import (
    Trial,
    Way,
    alone,
    drawn_of,
    form,
    kept_or_learned,
    measured,
    trained,
)
from casam_bench.quality.rival_layers import DecoderLoraLayer
from casam_core.config.named_parts import AlignmentSpec, BackboneSpec
from casam_core.model.backbones import Backbone
from casam_core.model.backbones.tiny import load_tiny
from casam_core.model.compute import Compute
from casam_core.model.examples import Example
from casam_core.model.forms.affine import IdentityLayer
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
    """Every step takes a second by this clock, so budgets of 3 and 10 seconds are 3 and 10 steps."""
    ticks = iter(0.5 * i for i in range(10_000))
    monkeypatch.setattr(layer_seconds, "clock", lambda threads: lambda: next(ticks) * 2)
    way = Way(TINY_WAY.build, 1e-2)
    layer = way.build(tiny, 0)
    changes = [
        (budget, steps, float(layer.scale_C.detach().abs().sum()))  # type: ignore[union-attr, operator]
        for budget, steps, _ in trained(layer, tiny, [example], way, (3.0, 10.0), 0, 1)
    ]
    assert [(budget, steps) for budget, steps, _ in changes] == [(3.0, 3), (10.0, 10)]
    assert changes[1][2] > changes[0][2] > 0


def test_averaged_weights_lag_behind(tiny: Backbone, example: Example) -> None:
    way = Way(TINY_WAY.build, 1e-2, average=0.9)
    layer = way.build(tiny, 0)
    _, _, averaged = next(iter(trained(layer, tiny, [example], way, (3.0,), 0, 1)))
    assert averaged is not layer
    assert 0 < averaged.scale_C.abs().sum() < layer.scale_C.abs().sum()  # type: ignore[operator, union-attr]


def test_a_falling_rate_moves_less_at_the_end(
    tiny: Backbone, example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(0.5 * i for i in range(10_000))
    monkeypatch.setattr(layer_seconds, "clock", lambda threads: lambda: next(ticks) * 2)
    way = Way(TINY_WAY.build, 1e-2, decays=True)
    layer = way.build(tiny, 0)
    assert layer is not None
    places = [
        layer.scale_C.detach().clone()  # type: ignore[operator, union-attr]
        for _ in trained(layer, tiny, [example], way, (1.0, 9.0, 10.0), 0, 1)
    ]
    first, last = places[0].abs().max(), (places[2] - places[1]).abs().max()
    assert first == pytest.approx(1e-2, rel=1e-3)  # Adam's first step is the learning rate
    assert last <= 2e-3


def test_seeds_divide_the_same_images_anew_and_keep_sequences_in_order() -> None:
    first, other = (drawn_of(100, "wbc_jtsc", seed) for seed in (0, 1))
    assert first.tolist() != other.tolist()
    assert sorted(first) == sorted(other)
    assert len(first) == layer_seconds.POOL
    assert drawn_of(84, "dic_hela_cells", 1)[:3].tolist() == [3, 4, 5]


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

    def learn(around: object, backbone: object, trial: Trial, task: str, seed: int) -> dict[str, Any]:
        learned.append(task)
        return {"way": trial.way, "at": {}}

    monkeypatch.setattr(layer_seconds, "learn", learn)
    around = surroundings(tmp_path)
    cells = [kept_or_learned(around, tiny, Trial("lora", "phantom"), "histology", 0) for _ in range(2)]
    assert learned == ["histology"]
    assert cells[0] == cells[1] == {"way": "lora", "at": {}}
    with alone(tmp_path / "lock") as free:
        assert free
