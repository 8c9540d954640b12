"""No tensor stays behind on the processor: what encodes and trains runs on an accelerator that only exists as
a device name. torch's fake tensors have shapes, types and devices but no numbers, and an operation on tensors
of two devices fails, as it would on a real card. So machines without a card find most device errors, too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from casam_core.config.named_parts import BackboneSpec
from casam_core.config.scenario import TrainingSpec
from casam_core.model import frame
from casam_core.model.backbones import Backbone
from casam_core.model.backbones.tiny import load_tiny
from casam_core.model.backbones.window import Window
from casam_core.model.compute import Compute, Halved
from casam_core.model.examples import Example, Shown
from casam_core.model.forms import FORMS, build_layer, weights_of
from casam_core.model.forms.base import AlignmentLayer
from casam_core.model.forms.finder import Finder, finder_loss
from casam_core.model.frame import Frame
from casam_core.model.prompts import Prompts
from casam_core.model.training import DECODED, Batch, decode_batch, draw_batch
from casam_core.privacy.dp_training import parts_of
from casam_core.routing import features
from casam_core.routing.features import FEATURES, pool
from client.drift import ControlVariate, proximal

CARD = torch.device("cuda:0")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    """Inside `with card`, tensors have no numbers; memory cannot be pinned without a driver."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda x: x)
    rows = Window.rows

    def computed(window: Window, cells: int) -> tuple[Tensor, Tensor]:
        with unset_fake_temporarily():  # their number depends on numbers, which fake tensors do not have
            return rows(window, cells)

    monkeypatch.setattr(Window, "rows", computed)
    monkeypatch.setattr(frame, "bilinear", frame.bilinear.__wrapped__)  # nothing fake stays in its cache
    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)


def moved(module: nn.Module, card: FakeTensorMode) -> None:
    """Turn the weights of a real module into fake ones on the card."""

    def fake(value: Tensor) -> Tensor:
        with card:
            return card.from_tensor(value.detach()).to(CARD)

    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            part.register_parameter(name, nn.Parameter(fake(weight), weight.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            part.register_buffer(name, fake(buffer))


def backbone_on(card: FakeTensorMode, encoder: str = "plain") -> Backbone:
    """The tiny backbone, as if it were loaded onto the card."""
    backbone = load_tiny(BackboneSpec(name="tiny"), Compute("cpu", 1, "float32", encoder))
    if encoder != "plain":
        moved(backbone._fast_encoder, card)
    moved(backbone, card)
    backbone.compute = Compute("cuda", 1, "float32", encoder)
    with card:
        backbone.image_pe = backbone.prompt_encoder.get_dense_pe()
    return backbone


def layer_on(card: FakeTensorMode, form: str) -> AlignmentLayer:
    real = load_tiny(BackboneSpec(name="tiny"), Compute("cpu", 1, "float32"))
    layer = build_layer(FORMS[form].section(form=form), 32, 0, real)
    moved(layer, card)
    return layer


def labels() -> Any:
    labels_HW = np.zeros((60, 48), np.int32)
    labels_HW[4:20, 4:20], labels_HW[30:55, 20:44] = 1, 2
    return labels_HW


@pytest.mark.parametrize("encoder", ["plain", "fast"])
def test_images_are_encoded_on_the_card(card: FakeTensorMode, encoder: str) -> None:
    backbone = backbone_on(card, encoder)
    with card:
        z_BCHW = backbone.encode([np.zeros((60, 48, 3), np.uint8)] * 2)
    assert (z_BCHW.device, tuple(z_BCHW.shape)) == (CARD, (2, 32, 8, 8))


def batch_on(
    card: FakeTensorMode,
    layer: AlignmentLayer,
    spec: TrainingSpec,
    left_behind: bool = False,
    halves: bool = False,
    held: bool = False,
) -> tuple[Tensor, Batch]:
    """(loss, batch) of a step on two images; embeddings come from the processor's memory, as from a store."""
    backbone = backbone_on(card)
    backbone.halved = Halved([DECODED] if halves else [])
    seen_CHW = torch.zeros(3, 64, 64) if layer.sees_pixels else torch.zeros(32, 8, 8)
    with card:
        example = Example(seen_CHW, labels())
        if held:
            places, visible_N = example.shown(32).places, np.array([1, 2], np.int32)
            shown = Shown(torch.zeros(32, 32, dtype=torch.uint8).to(CARD), visible_N, places)
            example = Example(seen_CHW.half().to(CARD), labels(), shown)
        drawn = draw_batch(np.arange(2), [example] * 2, backbone, spec, np.random.default_rng(0))
        assert len(drawn) == 2
        if left_behind:
            drawn = [replace(item, target_Nhw=item.target_Nhw.cpu()) for item in drawn]
        batch = decode_batch(layer, backbone, drawn)
        return batch.loss(spec), batch


# lora holds a copy of the encoder, and fake tensors cannot be copied.
@pytest.mark.parametrize("form", sorted(FORMS.keys() - {"lora"}))
def test_a_training_step_of_every_form_stays_on_the_card(card: FakeTensorMode, form: str) -> None:
    loss, batch = batch_on(card, layer_on(card, form), TrainingSpec())
    assert {loss.device, batch.iou_N.device, *(logits_hw.device for logits_hw in batch.logits)} == {CARD}


@pytest.mark.parametrize(
    "training",
    [
        {"prompts": "point"},
        {"prompts": "box", "far_cells": "all"},
        {"prompts": "point", "far_cells": "all", "objective": "official"},
    ],
    ids=lambda training: "-".join(training.values()),
)
def test_a_training_step_of_every_kind_stays_on_the_card(
    card: FakeTensorMode, training: dict[str, str]
) -> None:
    loss, _ = batch_on(card, layer_on(card, "low_rank"), TrainingSpec.model_validate(training))
    assert loss.device == CARD


def test_in_halves_a_training_step_stays_on_the_card(card: FakeTensorMode) -> None:
    loss, _ = batch_on(card, layer_on(card, "low_rank"), TrainingSpec(), halves=True)
    assert loss.device == CARD


def test_a_step_on_images_that_are_held_there_stays_on_the_card(card: FakeTensorMode) -> None:
    loss, _ = batch_on(card, layer_on(card, "low_rank"), TrainingSpec(), held=True)
    assert loss.device == CARD


@pytest.mark.parametrize("kind", sorted(FEATURES))
def test_a_feature_is_made_on_the_card_and_leaves_it_as_a_few_numbers(
    card: FakeTensorMode, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Tensor] = []

    def watched(z_BCHW: Tensor) -> Tensor:
        made.append(FEATURES[kind](z_BCHW))
        return made[-1]

    with card:
        monkeypatch.setitem(features.FEATURES, "watched", watched)
        feature_F = pool(torch.zeros(32, 8, 8).to(CARD), "watched")
    assert (made[0].device, feature_F.device) == (CARD, torch.device("cpu"))


# Fake tensors have no backward pass on a card, so losses and gradients are looked at one by one.
def test_the_loss_of_a_finder_stays_on_the_card(card: FakeTensorMode) -> None:
    finder = Finder(32)
    moved(finder, card)
    with card:
        out_BNHW = finder(torch.zeros(1, 32, 8, 8).to(CARD))
        loss = finder_loss(out_BNHW[0], np.array([[2, 3, 20, 30]], np.float32), 8.0)
    assert loss.device == CARD


def test_a_proximal_term_is_where_the_layer_is(card: FakeTensorMode) -> None:
    layer = layer_on(card, "low_rank")
    before = build_layer(FORMS["low_rank"].section(form="low_rank"), 32, 0)  # as the server sent it
    term = proximal(before, 0.1)
    loss, batch = batch_on(card, layer, TrainingSpec())
    with card:
        assert (loss + term(layer, batch)).device == CARD


def test_a_control_variate_corrects_gradients_on_the_card(card: FakeTensorMode) -> None:
    layer = layer_on(card, "low_rank")
    control = ControlVariate(weights_of(build_layer(FORMS["low_rank"].section(form="low_rank"), 32, 0)))
    with card:
        for value in layer.parameters():
            value.grad = torch.zeros_like(value)
        control(layer)
        control(layer)
    assert {value.grad.device for value in layer.parameters() if value.grad is not None} == {CARD}


def test_a_noisy_gradient_goes_back_to_the_card(card: FakeTensorMode) -> None:
    layer = layer_on(card, "low_rank")
    parameters = list(layer.parameters())
    with card:
        parts = parts_of(np.zeros(sum(p.numel() for p in parameters)), parameters)
    assert {(part.device, part.dtype) for part in parts} == {(CARD, torch.float32)}
    assert [part.shape for part in parts] == [p.shape for p in parameters]


THREE = np.array([[2, 3, 20, 30]] * 3, np.float32)


@pytest.mark.parametrize(
    "prompts",
    [
        Prompts(boxes_N4=THREE),
        Prompts(points_NP2=THREE[:, None, :2]),
        Prompts(boxes_N4=THREE, points_NP2=THREE[:, None, :2], labels_NP=np.array([[0], [1], [1]])),
        Prompts(boxes_N4=THREE, masks_Nhw=np.zeros((3, 32, 32), np.float32)),
    ],
    ids=["boxes", "points", "boxes and points", "boxes and earlier masks"],
)
def test_masks_of_all_prompts_come_back_at_the_images_size(card: FakeTensorMode, prompts: Prompts) -> None:
    backbone = backbone_on(card)
    with card:
        logits_Nhw, iou_N = backbone.decode(torch.zeros(32, 8, 8).to(CARD), prompts)
        masks_NHW = Frame(60, 48, 64).restore(logits_Nhw)
    assert (masks_NHW.device, tuple(masks_NHW.shape), iou_N.device) == (CARD, (3, 60, 48), CARD)


def test_a_tensor_that_stays_behind_is_found(card: FakeTensorMode) -> None:
    with pytest.raises(RuntimeError, match="two devices, c"):
        batch_on(card, layer_on(card, "low_rank"), TrainingSpec(), left_behind=True)
