"""Ways of learning are trained by the product's own loop, and measured when their seconds are used up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from casam_bench.quality import layer_seconds
from casam_bench.quality.layer_seconds import (
    SPEC,
    alone,
    drawn_of,
    form,
    kept_or_learned,
    measured,
    start_of_library,
    trained,
)
from casam_core.config.named_parts import AlignmentSpec, BackboneSpec, LowRankSpec
from casam_core.model.backbones import Backbone
from casam_core.model.backbones.tiny import load_tiny
from casam_core.model.compute import Compute
from casam_core.model.examples import Example
from casam_core.model.forms import build_layer, weights_of
from casam_core.model.forms.affine import IdentityLayer
from casam_core.model.training import Learner
from casam_core.model.validation import validator
from client.data.dataset import Sample
from tests.casam_bench.surroundings import surroundings

SQUARE = np.zeros((64, 64), np.int32)
SQUARE[10:40, 10:40] = 1


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_tiny(BackboneSpec(name="tiny"), Compute(device="cpu", threads=1, precision="float32"))


@pytest.fixture
def example() -> Example:
    return Example(torch.randn(32, 8, 8, generator=torch.Generator().manual_seed(0)), SQUARE)


def test_a_way_may_start_from_the_best_layer_of_the_library(
    tiny: Backbone, example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer is one of the library's starts, and none is better on the validation images."""
    kept, moved = (build_layer(LowRankSpec(), 32, seed) for seed in (0, 1))
    with torch.no_grad():
        moved.shift_C.fill_(0.5)  # type: ignore[union-attr, operator]
    starts = {"identity": weights_of(kept), "joint": weights_of(moved)}
    library = SimpleNamespace(starts=lambda: starts)
    monkeypatch.setattr(layer_seconds, "shipped_library", lambda: library)
    way = form(LowRankSpec(start="library"))
    layer = way.build(tiny, 3)
    assert way.from_library
    assert start_of_library(layer, tiny, [example], 1) > 0
    judge = validator([example], tiny, SPEC, np.random.default_rng(0))
    assert judge is not None
    best = max((kept, moved), key=lambda one: judge(one).iou)
    assert all(map(np.array_equal, weights_of(layer).values(), weights_of(best).values()))
    assert not form(LowRankSpec()).from_library


def test_a_way_is_measured_when_its_seconds_are_used_up(
    tiny: Backbone, example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step takes a second by this clock, so budgets of 3 and 10 seconds are 3 and 10 steps."""
    ticks = iter(0.5 * i for i in range(10_000))
    monkeypatch.setattr(layer_seconds, "clock", lambda threads: lambda: next(ticks) * 2)
    layer = form(AlignmentSpec(form="scale_shift")).build(tiny, 0)
    learner = Learner(layer, tiny, [example], SPEC, 1e-2, np.random.default_rng(0))
    changes = [
        (budget, steps, float(layer.scale_C.detach().abs().sum()))  # type: ignore[union-attr, operator]
        for budget, steps in trained(learner, (3.0, 10.0), 1)
    ]
    assert [(budget, steps) for budget, steps, _ in changes] == [(3.0, 3), (10.0, 10)]
    assert changes[1][2] > changes[0][2] > 0


def test_seeds_divide_the_same_images_anew_and_keep_sequences_in_order() -> None:
    samples = tuple(
        sorted((Sample(str(i)) for i in range(84)), key=lambda sample: sample.id)
    )  # 0, 1, 10, 11, ...
    first, other = (drawn_of(samples, "wbc_jtsc", seed) for seed in (0, 1))
    assert first != other
    assert {sample.id for sample in first} == {sample.id for sample in other}
    assert len(first) == layer_seconds.POOL
    assert [sample.id for sample in drawn_of(samples, "dic_hela_cells", 1)[:8]] == [*"3456789", "10"]
    # A shorter sequence gives fewer images: a frame of training is no frame of the test.
    short = [sample.id for sample in drawn_of(samples[:30], "dic_hela_cells", 1)]
    assert sorted(short) == sorted(sample.id for sample in samples[:30])


def test_all_layers_are_measured_on_the_same_instances_and_jitter(tiny: Backbone, example: Example) -> None:
    frozen = IdentityLayer(32)
    first, again = (measured(frozen, tiny, example, 4, layer_seconds.PROMPTS) for _ in range(2))
    assert first == again
    assert first["jittered"] != first["tight"]
    assert [len(first[kind]) for kind in layer_seconds.PROMPTS] == [1, 1]


def test_a_cell_is_learned_once_and_only_by_one_process(
    tmp_path: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[str] = []

    def learn(around: object, backbone: object, way: str, task: str, seed: int) -> dict[str, Any]:
        learned.append(task)
        return {"way": way, "at": {}}

    monkeypatch.setattr(layer_seconds, "learn", learn)
    around = surroundings(tmp_path)
    cells = [kept_or_learned(around, tiny, "low_rank 8", "histology", 0) for _ in range(2)]
    assert learned == ["histology"]
    assert cells[0] == cells[1] == {"way": "low_rank 8", "at": {}}
    with alone(tmp_path / "lock") as free:
        assert free
