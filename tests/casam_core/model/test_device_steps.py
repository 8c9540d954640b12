"""Whole training steps on a device whose tensors have no numbers, and what institutions in turn hold.

torch's device `meta` has backward passes and optimisers, and an operation on tensors of two devices fails.
Whatever reads a number fails there, too: so a step that ends did not wait for its device.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import casam_core.model.examples
from casam_core.bank.inference import decode_masks
from casam_core.config.named_parts import BackboneSpec, LowRankSpec
from casam_core.config.scenario import TrainingSpec
from casam_core.methods import PenaltyBuilder, distillation, elastic
from casam_core.model.backbones import Backbone
from casam_core.model.backbones.tiny import load_tiny
from casam_core.model.compute import Compute
from casam_core.model.examples import Example, holding
from casam_core.model.forms import FORMS, build_layer, set_weights, weights_of
from casam_core.model.forms.base import AlignmentLayer
from casam_core.model.prompts import tight_boxes
from casam_core.model.training import Learner, OpenSteps, side_of, train_layer
from casam_core.routing.features import pool
from client.drift import ControlVariate, proximal

DEVICE = "meta"


@pytest.fixture
def backbone(monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """The tiny backbone on the device without numbers, which has no automatic precision either."""
    backbone = load_tiny(BackboneSpec(name="tiny"), Compute("cpu", 1, "float32"))
    for part in (backbone.image_encoder, backbone.prompt_encoder, backbone.mask_decoder):
        part.to(DEVICE)
    backbone.image_pe = backbone.image_pe.to(DEVICE)
    backbone.compute = Compute(DEVICE, 1, "float32")
    monkeypatch.setattr(Compute, "autocast", lambda compute: contextlib.nullcontext())
    return backbone


def taken(backbone: Backbone, layer: AlignmentLayer, spec: TrainingSpec, **how: Any) -> None:
    """Two epochs of steps on two images that are held on the device."""
    labels_HW = np.zeros((60, 48), np.int32)
    labels_HW[4:20, 4:20], labels_HW[30:55, 20:44] = 1, 2
    seen_CHW = torch.zeros(3, 64, 64) if layer.sees_pixels else torch.zeros(32, 8, 8)
    room = 1 << 30
    examples = holding([Example(seen_CHW, labels_HW)] * 2, backbone.compute, side_of(backbone, spec), room)
    layer.to(DEVICE).train()
    steps = list(OpenSteps(**how)(Learner(layer, backbone, examples, spec, 1e-3, np.random.default_rng(0))))
    assert [step.loss.device.type for step in steps if step.loss is not None] == 2 * [DEVICE]
    gradients = [value.grad for value in layer.parameters() if value.grad is not None]
    assert {gradient.device.type for gradient in gradients} == {DEVICE}


@pytest.mark.parametrize(
    "training",
    [{}, {"prompts": "point", "far_cells": "all"}, {"objective": "official", "far_cells": "all"}],
    ids=["means", "points", "official"],
)
@pytest.mark.parametrize("form", sorted(FORMS.keys() - {"identity"}))
def test_a_step_of_every_form_does_not_wait_for_its_device(
    backbone: Backbone, form: str, training: dict[str, str]
) -> None:
    if form == "lora":
        pytest.importorskip("peft", reason="the form lora needs peft")
    spec = TrainingSpec.model_validate({"epochs": 2, "batch_images": 2} | training)
    taken(backbone, build_layer(FORMS[form].section(form=form), 32, 0, backbone), spec)


def test_finder_drift_terms_and_their_gradients_are_there_too(backbone: Backbone) -> None:
    section = LowRankSpec(finder=True)
    before = build_layer(section, 32, 0)  # as the server sent it
    control, near = ControlVariate(weights_of(before)), proximal(before, 0.1)
    spec = TrainingSpec(epochs=2, batch_images=2)
    taken(backbone, build_layer(section, 32, 0), spec, penalty=near, corrected=control)


@pytest.mark.parametrize("penalty", [elastic, distillation])
def test_terms_against_forgetting_are_there_too(backbone: Backbone, penalty: PenaltyBuilder) -> None:
    section = LowRankSpec()
    start = build_layer(section, 32, 1)
    important = {name: np.ones_like(value) for name, value in weights_of(start).items()}
    start.requires_grad_(False).to(DEVICE)  # as an institution does
    spec = TrainingSpec(epochs=2, batch_images=2)
    taken(backbone, build_layer(section, 32, 0), spec, penalty=penalty(start, backbone, important))


def test_a_step_that_reads_a_number_is_found(backbone: Backbone) -> None:
    layer = build_layer(FORMS["low_rank"].section(form="low_rank"), 32, 0)

    def waits(layer: AlignmentLayer) -> None:
        float(next(layer.parameters()).detach().sum())

    with pytest.raises(RuntimeError, match="meta"):
        taken(backbone, layer, TrainingSpec(epochs=2, batch_images=2), corrected=waits)


# --- Memory


class Allocator(TorchDispatchMode):
    """Bytes of all tensors that operations inside the block made, while something still holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.peak = 0, 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, call: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = call(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, Tensor):
                self._take(x.untyped_storage())
        return made

    def _take(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self.held += storage.nbytes()
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.held -= self._known.pop(key)


def institution(turn: int, tiny: Backbone) -> AlignmentLayer:
    """What one does: encode, train on what lies on the device, send its weights, segment and route."""
    labels_HW = np.zeros((60, 48), np.int32)
    labels_HW[4:20, 4:20], labels_HW[30:55, 20:44] = 1, 2
    image_HW3 = np.full((60, 48, 3), turn, np.uint8)
    examples = [Example(tiny.encode([image_HW3])[0], labels_HW) for _ in range(2)]
    section = FORMS["low_rank"].section(form="low_rank")
    layer, spec = build_layer(section, 32, turn), TrainingSpec(epochs=1, batch_images=2)
    rng = np.random.default_rng(turn)
    train_layer(layer, tiny, examples, spec, learning_rate=1e-3, rng=rng, progress=lambda done, total: None)
    learned = build_layer(section, 32, 0)
    set_weights(learned, weights_of(layer))
    z_CHW, frame = examples[0].seen_CHW, tiny.frame(image_HW3)
    list(decode_masks(tiny, z_CHW, frame, tight_boxes(labels_HW, np.array([1, 2], np.int32)), learned))
    pool(z_CHW, "moments")
    return layer


@pytest.mark.parametrize(
    ("institutions", "keeps"),
    [
        pytest.param(5, False, id="freed"),
        pytest.param(3, True, id="kept"),  # what grows is seen
        pytest.param(20, False, id="twenty", marks=pytest.mark.slow),
    ],
)
def test_institutions_in_turn_hold_no_more_than_one(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch, institutions: int, keeps: bool
) -> None:
    monkeypatch.setattr(Compute, "accelerated", True)
    monkeypatch.setattr(casam_core.model.examples, "room_on", lambda device: 1 << 30)
    kept, held, peaks = [], [], []
    institution(0, tiny)  # what is made once
    with Allocator() as memory:
        for turn in range(institutions):
            memory.peak = memory.held
            layer = institution(turn, tiny)
            peaks.append(memory.peak)
            if keeps:
                kept.append(layer)
            del layer
            gc.collect()
            held.append(memory.held)
    if keeps:
        assert held[0] < held[1] < held[2]
    else:
        assert set(held) == {held[0]}
        assert max(peaks) == min(peaks[1:]) > held[0]
