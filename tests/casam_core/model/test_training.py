"""The training loop: how many steps, which images, the same bits, and that it learns."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

import casam_core.model.examples
from casam_core.config.named_parts import AlignmentSpec, LowRankSpec
from casam_core.config.scenario import TrainingSpec
from casam_core.errors import RunError
from casam_core.model.backbones import Backbone
from casam_core.model.compute import Compute, Halved
from casam_core.model.examples import Example, HeldExamples, held, holding, numbers_in, size_of
from casam_core.model.forms import build_layer, weights_of
from casam_core.model.losses import alignment_loss, official_loss
from casam_core.model.training import (
    DECODED,
    Drawn,
    OpenSteps,
    TrainingResult,
    batches,
    decode_batch,
    draw_batch,
    draw_instances,
    groups_of,
    importance_of,
    planned_steps,
    rates_of,
    train_layer,
)
from casam_core.model.validation import validator


def discs(count: int, seed: int = 0) -> list[tuple[NDArray[np.uint8], NDArray[np.int32]]]:
    """64 x 64 pictures of two bright discs on a dark ground, and their labels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    drawn = []
    for _ in range(count):
        labels = np.zeros((64, 64), np.int32)
        for instance, left in ((1, 16), (2, 46)):
            top, radius = rng.integers(18, 46), rng.integers(8, 13)
            labels[(y - top) ** 2 + (x - left) ** 2 < radius**2] = instance
        image = np.where(labels > 0, 200, 40)[..., None] + rng.integers(-20, 20, (64, 64, 3))
        drawn.append((image.astype(np.uint8), labels))
    return drawn


@pytest.fixture(scope="module")
def examples(tiny: Backbone) -> list[Example]:
    """Four pictures of discs, encoded."""
    return [Example(seen_CHW=tiny.encode([image])[0], labels_HW=labels) for image, labels in discs(4)]


def residual(seed: int = 0) -> nn.Module:
    return build_layer(AlignmentSpec(form="residual"), 32, seed)


def train(
    layer: nn.Module,
    tiny: Backbone,
    images: list[Example],
    *,
    seed: int = 0,
    learning_rate: float = 1e-3,
    **spec: int | str | None,
) -> tuple[TrainingResult, list[tuple[int, int]]]:
    """(result, what progress was told)."""
    told: list[tuple[int, int]] = []
    result = train_layer(
        layer,
        tiny,
        images,
        TrainingSpec.model_validate(spec),
        learning_rate=learning_rate,
        rng=np.random.default_rng(seed),
        progress=lambda done, total: told.append((done, total)),
    )
    return result, told


# --- Warm-up, progress, stopping ---------------------------------------------------------------------


def test_without_epochs_few_images_get_many_passes_and_many_images_few() -> None:
    """About 240 steps in all rounds of a task, whatever the number of images."""
    assert [TrainingSpec().passes(images) for images in (0, 1, 8, 24, 100, 1000)] == [240, 240, 30, 10, 2, 1]
    assert TrainingSpec(batch_images=6).passes(24) == 60
    assert TrainingSpec(rounds=4).passes(24) == 2
    assert TrainingSpec(epochs=3).passes(1000) == 3
    assert planned_steps(24, TrainingSpec()) == 240


def test_the_learning_rate_rises_over_the_warm_up(tiny: Backbone, examples: list[Example]) -> None:
    # Adam's first step moves every weight with a gradient by the learning rate: here a quarter of 4e-3.
    layer = build_layer(AlignmentSpec(form="scale_shift"), 32, 0)
    before = weights_of(layer)
    train(layer, tiny, examples, epochs=1, max_steps=1, warmup=3, learning_rate=4e-3)
    moved = np.concatenate([np.abs(weights_of(layer)[name] - before[name]) for name in before])
    assert moved.max() == pytest.approx(1e-3, rel=1e-3)


def test_the_rate_of_a_finder_falls_to_zero_at_the_end_and_the_layers_stays() -> None:
    optimiser = torch.optim.Adam(groups_of(build_layer(LowRankSpec(finder=True), 32, 0)), lr=1.0)
    rates, seen = rates_of(optimiser, warmup=1, total=10), list[list[float]]()
    for _ in range(10):
        seen.append([round(group["lr"], 6) for group in optimiser.param_groups])
        optimiser.step()
        rates.step()
    assert [layer for layer, _ in seen] == [0.5, *[1.0] * 9]
    assert [finder for _, finder in seen] == [0.005, *[0.01] * 7, 0.006667, 0.003333]


def test_progress_reaches_its_total_even_if_no_instance_is_visible(tiny: Backbone) -> None:
    empty = Example(
        seen_CHW=torch.zeros(tiny.encode([discs(1)[0][0]])[0].shape), labels_HW=np.zeros((64, 64), np.int32)
    )
    result, told = train(residual(), tiny, [empty] * 3, epochs=2, batch_images=1)
    assert result.steps == 0
    assert told == [(done, 6) for done in range(1, 7)]


def test_training_can_be_ended_after_any_epoch(tiny: Backbone, examples: list[Example]) -> None:
    told: list[tuple[int, int]] = []
    result = train_layer(
        residual(),
        tiny,
        examples,
        TrainingSpec(epochs=10, batch_images=2),
        learning_rate=1e-3,
        rng=np.random.default_rng(0),
        progress=lambda done, total: told.append((done, total)),
        steps=OpenSteps(finished_epoch=lambda layer: len(told) >= 3),
    )
    assert result.steps == 4  # two steps an epoch; asked after the second epoch, with three told
    assert told[-1] == (20, 20)


def test_the_last_epoch_counts_though_the_step_limit_cuts_it_short(
    tiny: Backbone, examples: list[Example]
) -> None:
    asked: list[int] = []
    told: list[tuple[int, int]] = []
    train_layer(
        residual(),
        tiny,
        examples,
        TrainingSpec(epochs=10, max_steps=5, batch_images=2),
        learning_rate=1e-3,
        rng=np.random.default_rng(0),
        progress=lambda done, total: told.append((done, total)),
        steps=OpenSteps(finished_epoch=lambda layer: bool(asked.append(len(told) + 1))),
    )
    assert asked == [2, 4, 5]


# --- Steps and batches -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "epochs", "batch", "most", "steps"),
    [
        (12, 24, 6, None, 48),
        (13, 24, 6, None, 72),
        (1, 3, 6, None, 3),
        (12, 24, 6, 10, 10),
        (12, 1, 6, 10, 2),
    ],
)
def test_the_planned_steps_by_hand(
    images: int, epochs: int, batch: int, most: int | None, steps: int
) -> None:
    assert planned_steps(images, TrainingSpec(epochs=epochs, batch_images=batch, max_steps=most)) == steps


@given(images=st.integers(1, 30), epochs=st.integers(1, 4), batch=st.integers(1, 8), seed=st.integers(0, 99))
def test_every_epoch_sees_every_image_once(images: int, epochs: int, batch: int, seed: int) -> None:
    spec = TrainingSpec(epochs=epochs, batch_images=batch)
    found = list(batches(images, spec, np.random.default_rng(seed)))
    assert len(found) == planned_steps(images, spec)
    assert all(1 <= len(one) <= batch for one in found)
    order = np.concatenate(found).reshape(epochs, images)
    assert all(sorted(epoch) == list(range(images)) for epoch in order)


def test_every_epoch_has_a_new_order() -> None:
    found = np.concatenate(list(batches(20, TrainingSpec(epochs=2), np.random.default_rng(0)))).reshape(2, 20)
    assert not np.array_equal(found[0], found[1])


@given(images=st.integers(1, 20), most=st.integers(1, 15))
def test_a_step_limit_cuts_the_round_short(images: int, most: int) -> None:
    spec = TrainingSpec(epochs=2, batch_images=3, max_steps=most)
    full = list(batches(images, spec.model_copy(update={"max_steps": None}), np.random.default_rng(0)))
    cut = list(batches(images, spec, np.random.default_rng(0)))
    assert len(cut) == min(most, len(full))
    assert all(np.array_equal(one, other) for one, other in zip(cut, full, strict=False))


# --- Instances -------------------------------------------------------------------------------------


def test_at_most_the_wished_instances_are_drawn_each_with_its_own_target(
    tiny: Backbone, examples: list[Example]
) -> None:
    spec, rng = TrainingSpec(instances=1), np.random.default_rng(0)
    kinds = set()
    for _ in range(20):
        drawn = draw_instances(examples[0], tiny, spec, "box", rng)
        assert drawn is not None
        assert drawn.target_Nhw.shape == (1, 32, 32)
        x0, y0, x1, y1 = drawn.prompts.xy[0]
        ys, xs = np.nonzero(drawn.target_Nhw[0].numpy())
        low = 32 / 64  # the prompt is in the frame's 64 pixels, the target has 32
        assert x0 * low - 1 <= xs.min() <= xs.max() <= x1 * low + 1
        assert y0 * low - 1 <= ys.min() <= ys.max() <= y1 * low + 1
        kinds.add(x0 < 32)
    assert kinds == {True, False}  # either disc is drawn at some time


def test_points_lie_on_their_instance(tiny: Backbone, examples: list[Example]) -> None:
    drawn = draw_instances(examples[1], tiny, TrainingSpec(), "point", np.random.default_rng(0))
    assert drawn is not None
    labels = examples[1].labels_HW
    assert [labels[int(y), int(x)] for x, y in drawn.prompts.xy] == [1, 2]


@pytest.mark.parametrize("kind", ["box", "point"])
def test_prompts_lie_in_the_frame_and_each_beside_its_own_target(
    tiny: Backbone, examples: list[Example], kind: str
) -> None:
    # 96 x 128 pixels: half that in the frame of 64, a quarter at the decoder's 32.
    labels = np.zeros((96, 128), np.int32)
    labels[8:40, 16:48] = 1
    labels[56:88, 80:112] = 4
    wide = Example(seen_CHW=examples[0].seen_CHW, labels_HW=labels)
    drawn = draw_instances(wide, tiny, TrainingSpec(), kind, np.random.default_rng(0))
    assert drawn is not None
    targets = [np.argwhere(target.numpy()) for target in drawn.target_Nhw]
    assert [(t.min(0).tolist(), t.max(0).tolist()) for t in targets] == [
        ([2, 4], [9, 11]),
        ([14, 20], [21, 27]),
    ]
    if kind == "box":
        assert drawn.prompts.xy.tolist() == [[8, 4, 23.5, 19.5], [40, 28, 55.5, 43.5]]
    else:
        inside = [
            target[int(y / 2), int(x / 2)]
            for (x, y), target in zip(drawn.prompts.xy, drawn.target_Nhw, strict=True)
        ]
        assert inside == [1, 1]


def test_an_image_that_is_all_instance_keeps_it(tiny: Backbone, examples: list[Example]) -> None:
    full = Example(seen_CHW=examples[0].seen_CHW, labels_HW=np.ones((64, 64), np.int32))
    drawn = draw_instances(full, tiny, TrainingSpec(), "box", np.random.default_rng(0))
    assert drawn is not None
    assert drawn.target_Nhw.all()


def vanishing(examples: list[Example]) -> Example:
    """One pixel of 640 x 640: nothing of it is left at the decoder's resolution."""
    labels = np.zeros((640, 640), np.int32)
    labels[0, 0] = 1
    return Example(seen_CHW=examples[0].seen_CHW, labels_HW=labels)


def test_instances_that_vanish_are_left_out(tiny: Backbone, examples: list[Example]) -> None:
    lost = vanishing(examples)
    assert draw_instances(lost, tiny, TrainingSpec(), "box", np.random.default_rng(0)) is None
    lost.labels_HW[200:500, 200:500] = 2
    drawn = draw_instances(lost, tiny, TrainingSpec(), "box", np.random.default_rng(0))
    assert drawn is not None
    assert len(drawn.prompts) == 1


def test_a_round_in_which_everything_vanishes_changes_nothing(
    tiny: Backbone, examples: list[Example]
) -> None:
    layer = residual()
    before = weights_of(layer)
    result, _ = train(layer, tiny, [vanishing(examples)] * 3, epochs=2)
    assert result == TrainingResult(steps=0, losses=())
    assert all(np.array_equal(value, before[name]) for name, value in weights_of(layer).items())


def test_an_image_whose_instances_vanish_does_not_stop_the_others(
    tiny: Backbone, examples: list[Example]
) -> None:
    mixed = [examples[0], vanishing(examples)]
    result, _ = train(residual(), tiny, mixed, epochs=3)
    assert result.steps == 3
    assert np.isfinite(result.losses).all()


# --- Training --------------------------------------------------------------------------------------


def test_the_batch_loss_is_the_mean_over_all_instances(tiny: Backbone, examples: list[Example]) -> None:
    layer, rng = residual(), np.random.default_rng(0)
    drawn = [draw_instances(e, tiny, TrainingSpec(), "box", rng) for e in examples[:2]]
    items = [item for item in drawn if isinstance(item, Drawn)]
    single = []
    for item in items:
        logits, iou = tiny.decode(layer(item.seen_CHW[None])[0], item.prompts)
        single += [
            alignment_loss(logits[k : k + 1], iou[k : k + 1], item.target_Nhw[k : k + 1])
            for k in range(len(item.prompts))
        ]
    found = decode_batch(layer, tiny, items).loss(TrainingSpec())
    torch.testing.assert_close(found, torch.stack(single).mean())


OFFICIAL = TrainingSpec(objective="official", far_cells="all", instances=5)


@pytest.mark.parametrize("kind", ["box", "point"])
def test_the_official_objective_compares_whole_masks_of_the_whole_batch_at_the_input_size(
    tiny: Backbone, examples: list[Example], kind: str
) -> None:
    layer, rng, side = residual(), np.random.default_rng(0), tiny.geometry.side
    drawn = [draw_instances(e, tiny, OFFICIAL, kind, rng) for e in examples[:2]]
    items = [item for item in drawn if isinstance(item, Drawn)]
    assert len(items) == 2
    assert all(item.target_Nhw.shape == (5, side, side) for item in items)
    decoded = [tiny.decode(layer(item.seen_CHW[None])[0], item.prompts) for item in items]
    logits, iou = torch.cat([d[0] for d in decoded]), torch.cat([d[1] for d in decoded])
    expected = official_loss(logits, iou, torch.cat([item.target_Nhw for item in items]))
    found = decode_batch(layer, tiny, items).loss(OFFICIAL)
    torch.testing.assert_close(found, expected)


def test_the_official_objective_repeats_instances_of_an_image_that_has_few(tiny: Backbone) -> None:
    labels_HW = np.zeros((64, 64), np.int32)
    labels_HW[4:20, 4:20], labels_HW[30:60, 30:60] = 1, 2
    example = Example(
        torch.zeros(tiny.geometry.channels, tiny.geometry.cells, tiny.geometry.cells), labels_HW
    )
    counts = set()
    for seed in range(20):
        drawn = draw_instances(example, tiny, OFFICIAL, "box", np.random.default_rng(seed))
        assert drawn is not None
        assert len(drawn.prompts) == 5
        counts.add(len(np.unique(drawn.prompts.xy, axis=0)))
    assert counts == {1, 2}


def test_validation_of_the_official_objective_is_that_of_ours(
    tiny: Backbone, examples: list[Example]
) -> None:
    layer, scores = residual(), []
    for spec in (TrainingSpec(far_cells="all"), OFFICIAL):
        validate = validator(examples, tiny, spec, np.random.default_rng(0))
        assert validate is not None
        scores.append(validate(layer).iou)
    assert scores[0] == scores[1]


def test_importance_is_the_mean_squared_gradient_of_single_images(
    tiny: Backbone, examples: list[Example]
) -> None:
    layer, spec = residual(), TrainingSpec(prompts="box", instances=9)
    found = importance_of(layer, tiny, examples[:2], spec, np.random.default_rng(0))
    expected = {name: torch.zeros_like(value) for name, value in layer.named_parameters()}
    rng = np.random.default_rng(0)
    for example in examples[:2]:
        item = draw_instances(example, tiny, spec, "box", rng)
        assert item is not None
        layer.zero_grad()
        decode_batch(layer, tiny, [item]).loss(spec).backward()  # type: ignore[no-untyped-call]
        for name, value in layer.named_parameters():
            if value.grad is not None:
                expected[name] += value.grad.square() / 2
    for name, value in expected.items():
        torch.testing.assert_close(torch.from_numpy(found[name]), value)


def test_training_lowers_the_loss(tiny: Backbone, examples: list[Example]) -> None:
    result, _ = train(residual(), tiny, examples, epochs=40, batch_images=4, prompts="box")
    assert result.steps == 40
    assert np.mean(result.losses[-5:]) < 0.95 * np.mean(result.losses[:5])


def test_a_layer_that_is_no_number_any_more_is_an_error(tiny: Backbone, examples: list[Example]) -> None:
    """Its masks would all be empty: a run that completes with an IoU of zero."""
    with pytest.raises(RunError, match=r"diverged .* set a lower alignment.learning_rate"):
        train(residual(), tiny, examples, epochs=3, learning_rate=1e30)


def test_equal_generators_train_equal_bits_and_the_backbone_stays_as_it_was(
    tiny: Backbone, examples: list[Example]
) -> None:
    frozen = {name: value.clone() for name, value in tiny.state_dict().items()}
    layers = []
    for seed, global_seed in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(global_seed)
        layer = residual()
        train(layer, tiny, examples, seed=seed, epochs=2, batch_images=2)
        layers.append(weights_of(layer))
    one, same, other = layers
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)
    assert all(torch.equal(value, frozen[name]) for name, value in tiny.state_dict().items())


def test_embeddings_are_not_changed_by_training(tiny: Backbone, examples: list[Example]) -> None:
    before = examples[0].seen_CHW.clone()
    train(residual(), tiny, examples, epochs=1)
    assert torch.equal(examples[0].seen_CHW, before)


def test_progress_counts_every_step_and_the_layer_is_left_ready_to_use(
    tiny: Backbone, examples: list[Example]
) -> None:
    layer = residual()
    result, told = train(layer, tiny, examples, epochs=2, batch_images=3)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert result.steps == len(result.losses) == 4
    assert not layer.training


@pytest.mark.parametrize(("wish", "kinds"), [("box", {4}), ("point", {2}), ("mixed", {2, 4})])
def test_each_step_uses_one_kind_of_prompt_and_mixed_tosses_a_coin(
    tiny: Backbone, examples: list[Example], wish: str, kinds: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    decode = tiny.decode_in
    monkeypatch.setattr(
        tiny, "decode_in", lambda w, z, p, own: (used.append(p.xy.shape[1]), decode(w, z, p, own))[1]
    )
    train(residual(), tiny, examples[:2], epochs=10, batch_images=2, prompts=wish)
    steps = [set(used[i : i + 2]) for i in range(0, len(used), 2)]
    assert all(len(step) == 1 for step in steps)
    assert set().union(*steps) == kinds


def test_boxes_are_jittered_in_training_only_if_the_scenario_says_so(
    tiny: Backbone, examples: list[Example]
) -> None:
    def box(jitter: float) -> NDArray[np.float32]:
        spec = TrainingSpec(instances=1, box_jitter=jitter)
        drawn = draw_instances(examples[0], tiny, spec, "box", np.random.default_rng(0))
        assert drawn is not None
        return drawn.prompts.xy[0]

    x0, y0, x1, y1 = box(0.0)
    side = max(x1 - x0, y1 - y0) + 1
    moved = np.abs(box(0.1) - box(0.0))
    assert 0 < moved.max() <= 0.1 * side
    np.testing.assert_array_equal(box(0.1), box(0.1))  # drawn from the generator of the round


# --- As on an accelerator --------------------------------------------------------------------------


def loss_and_gradient(
    backbone: Backbone, examples: list[Example], spec: TrainingSpec
) -> tuple[Tensor, Tensor]:
    """Of the residual form on one batch."""
    torch.manual_seed(0)
    layer = residual()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    drawn = draw_batch(np.arange(len(examples)), examples, backbone, spec, np.random.default_rng(1))
    loss = decode_batch(layer, backbone, drawn).loss(spec)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])


KINDS = [
    TrainingSpec(),
    TrainingSpec(far_cells="all", prompts="point"),
    TrainingSpec(far_cells="all"),
    OFFICIAL,
]


@pytest.mark.parametrize("spec", KINDS, ids=["means", "points", "all", "official"])
@pytest.mark.parametrize("halves", [False, True], ids=["whole", "halves"])
def test_all_images_and_prompts_together_have_the_loss_and_the_gradient_of_one_by_one(
    tiny: Backbone,
    examples: list[Example],
    spec: TrainingSpec,
    halves: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted, wanted_gradient = loss_and_gradient(tiny, examples[:3], spec)
    monkeypatch.setattr(Compute, "accelerated", True)
    monkeypatch.setattr(tiny, "halved", Halved([DECODED] if halves else []))
    loss, gradient = loss_and_gradient(tiny, examples[:3], spec)
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    assert float((gradient - wanted_gradient).norm()) < 1e-4 * float(wanted_gradient.norm())


class Room:
    """A decoder that has memory for so many images at once."""

    def __init__(self, backbone: Backbone, images: int) -> None:
        self.decode, self.images, self.asked = backbone.decode_images, images, list[int]()

    def __call__(self, windows: list[Any], *rest: Any) -> Any:
        self.asked.append(len(windows))
        if len(windows) > self.images:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.decode(windows, *rest)


def test_a_step_that_does_not_fit_is_taken_in_halves_with_the_same_result(
    tiny: Backbone, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers, losses = [], []
    for room in (4, 2):
        decoder = Room(tiny, room)
        with monkeypatch.context() as patch:
            patch.setattr(tiny, "decode_images", decoder)
            patch.setattr(tiny, "halved", Halved())
            layers.append(residual())
            losses.append(train(layers[-1], tiny, examples, epochs=2, batch_images=4)[0].losses)
            assert tiny.halved.names == ([] if room == 4 else [DECODED])
    assert decoder.asked == [4, 2, 2, 2, 2, 2, 2, 2, 2]  # two halves forward, and again for the gradient
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for one, other in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_step_that_does_not_fit_in_halves_either_is_an_error(
    tiny: Backbone, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "decode_images", Room(tiny, 1))
    monkeypatch.setattr(tiny, "halved", Halved())
    with pytest.raises(RunError, match="expected device memory for 2 at once"):
        train(residual(), tiny, examples, epochs=1, batch_images=4)


def test_examples_on_the_device_train_the_same_layer(
    tiny: Backbone, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(residual(), tiny, examples, epochs=2, batch_images=2, prompts="mixed")[0]
    read: list[int] = []

    class Stored(list[Example]):
        def __getitem__(self, i: Any) -> Any:
            read.append(i)
            return super().__getitem__(i)

    stored = [replace(e, seen_CHW=e.seen_CHW.half().float()) for e in examples]
    each = size_of(holding(stored, tiny.compute, 32, 1 << 30).held[0])
    for room, again in ((1 << 30, 0), (2 * each, 4)):  # room for all, or for half of them
        read.clear()
        with monkeypatch.context() as patch:
            patch.setattr(casam_core.model.examples, "room_on", lambda device, room=room: room)
            result = train(residual(), tiny, Stored(stored), epochs=2, batch_images=2, prompts="mixed")[0]
        assert len(read) >= 4 + again  # at the beginning, and in two epochs
        assert result.losses == pytest.approx(whole.losses, rel=1e-2)


def test_it_holds_no_more_when_others_fill_the_device(
    tiny: Backbone, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter([1000, 800, 499, 100])  # at the beginning, then before each image
    monkeypatch.setattr(casam_core.model.examples, "room_on", lambda device: next(left))
    assert list(holding(examples, tiny.compute, 32, 1 << 30).held) == [0]


def test_what_is_held_is_compact_and_exact(tiny: Backbone, examples: list[Example]) -> None:
    stored = replace(examples[0], seen_CHW=examples[0].seen_CHW.half().float())
    one, other = holding([stored, examples[1]], tiny.compute, 32, 1 << 30).held.values()
    assert (one.seen_CHW.dtype, other.seen_CHW.dtype) == (torch.float16, torch.float32)
    assert torch.equal(one.seen_CHW.float(), stored.seen_CHW)
    assert torch.equal(other.seen_CHW, examples[1].seen_CHW)
    assert one.labels_HW.dtype == one.shown(32).labels_SS.numpy().dtype == np.uint8
    assert np.array_equal(one.shown(32).labels_SS, stored.shown(32).labels_SS)
    assert np.array_equal(one.shown(64).labels_SS, stored.shown(64).labels_SS)


def test_what_is_held_already_is_not_held_again(
    tiny: Backbone, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(casam_core.model.examples, "room_on", lambda device: 1 << 30)
    on_device = held(examples, tiny, 32)
    assert held(on_device, tiny, 32) is on_device


def test_what_is_held_is_freed_with_the_round(
    tiny: Backbone, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_device: list[weakref.ref[Tensor]] = []
    holds = casam_core.model.examples.holding

    def watched(*arguments: Any) -> HeldExamples:
        found = holds(*arguments)
        on_device.extend(weakref.ref(example.seen_CHW) for example in found.held.values())
        return found

    monkeypatch.setattr(casam_core.model.examples, "room_on", lambda device: 1 << 30)
    monkeypatch.setattr(casam_core.model.examples, "holding", watched)
    half = [replace(e, seen_CHW=e.seen_CHW.half().float()) for e in examples]
    for _ in range(5):  # institutions in turn
        train(residual(), tiny, half, epochs=1, batch_images=2)
        gc.collect()
    assert len(on_device) == 5 * len(examples)
    assert not [reference for reference in on_device if reference() is not None]


def test_large_instance_numbers_are_found_too() -> None:
    labels_HW = np.array([[0, 70_000], [3, 70_000]], np.int32)
    assert numbers_in(labels_HW).tolist() == [3, 70_000]
    assert numbers_in(labels_HW % 100).tolist() == [3]
