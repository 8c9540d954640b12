"""Validation: what is measured, when training gives up, and whether a layer helps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from casam_core.config.named_parts import AlignmentSpec
from casam_core.config.scenario import TrainingSpec
from casam_core.errors import ScenarioError
from casam_core.model.backbones import Backbone
from casam_core.model.backbones.window import whole
from casam_core.model.examples import Example
from casam_core.model.forms import (
    AlignmentLayer,
    LowRankSpec,
    build_layer,
    learning_rate_of,
    set_weights,
    weights_of,
)
from casam_core.model.forms.affine import IdentityLayer, channels_in, identity_like
from casam_core.model.frame import frame_of
from casam_core.model.prompts import Prompts, tight_boxes
from casam_core.model.training import Drawn
from casam_core.model.validation import (
    BestEpoch,
    Validated,
    beats_identity,
    clearly_above_zero,
    iou_and_estimate,
    since_best,
    validator,
)

SPEC = TrainingSpec(instances=2)


def image(value: int) -> Example:
    labels = np.zeros((64, 64), np.int32)
    labels[8:30, 8:30], labels[40:60, 36:60] = 1, 2
    return Example(torch.full((32, 8, 8), float(value)), labels)


class Shift(AlignmentLayer):
    """Adds a number, for tests that need layers of known quality."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = torch.nn.Parameter(torch.tensor([by]))

    def forward(self, z_BCHW: Tensor) -> Tensor:
        return z_BCHW + self.by


def found_by(*iou: float, estimate: float = 0.0) -> Validated:
    return Validated(np.array(iou), np.full(len(iou), estimate))


def iou_is_the_shift(layer: AlignmentLayer) -> Validated:
    return found_by(float(layer.by.detach()) if isinstance(layer, Shift) else 0.5)


def test_the_iou_is_the_mean_over_instances_by_hand(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    # Instance 1: 2 of the 4 pixels of the union are shared; instance 2: all. Mean of 1/2 and 1.
    target = torch.tensor([[[1.0, 1, 1, 0]], [[0.0, 1, 0, 0]]])
    logits = torch.tensor([[[5.0, 5, -5, 5]], [[-1.0, 2, -1, -1]]])
    decoded = (logits, torch.tensor([0.9, 0.7]))
    monkeypatch.setattr(type(tiny), "decode", lambda self, z, prompts, decoder=None: decoded)
    prompts: Prompts = tight_boxes(image(0).labels_HW, np.array([1, 2], np.int32))
    frame = frame_of(image(0).labels_HW, tiny.geometry.side)
    drawn = Drawn(torch.zeros(32, 4, 4), prompts, target, [whole(1)] * 2, (), frame)
    assert iou_and_estimate(IdentityLayer(32), tiny, drawn) == pytest.approx((0.75, 0.8))


def test_the_correction_is_what_the_estimates_lack_on_the_mean() -> None:
    assert found_by(0.5, 0.9, estimate=0.8).correction == pytest.approx(-0.1)
    assert found_by(0.5, 0.9, estimate=0.8).iou == pytest.approx(0.7)


def test_every_layer_is_measured_on_the_same_instances(tiny: Backbone) -> None:
    validate = validator([image(i) for i in range(3)], tiny, SPEC, np.random.default_rng(0))
    assert validate is not None
    layer = build_layer(AlignmentSpec(form="residual"), 32, 0)
    # The residual form starts as the identity.
    first, again, frozen = validate(layer), validate(layer), validate(IdentityLayer(32))
    assert first.iou_N.tolist() == again.iou_N.tolist() == frozen.iou_N.tolist()
    assert first.estimate_N.tolist() == again.estimate_N.tolist()


def test_without_a_visible_instance_there_is_nothing_to_say(tiny: Backbone) -> None:
    empty = Example(torch.zeros(32, 8, 8), np.zeros((64, 64), np.int32))
    assert validator([empty] * 2, tiny, SPEC, np.random.default_rng(0)) is None
    assert validator([], tiny, SPEC, np.random.default_rng(0)) is None


def test_only_a_better_layer_beats_the_identity() -> None:
    """A single validation image has no scatter: its gain decides."""
    assert beats_identity(found_by(0.51), found_by(0.5))
    assert not beats_identity(found_by(0.5), found_by(0.5))
    assert not beats_identity(found_by(0.4), found_by(0.5))


def test_a_gain_within_the_scatter_of_the_images_is_not_kept() -> None:
    """Student's t with two degrees of freedom is above 0.617 with probability 0.3."""
    error = 0.01 * np.array([-1.0, 0.0, 1.0]) * 3**0.5  # of the mean of three images: 0.01
    assert not clearly_above_zero(error + 0.006)  # t = 0.6
    assert clearly_above_zero(error + 0.0063)
    assert not clearly_above_zero(error - 0.0063)


def test_equal_gains_of_all_images_need_no_test() -> None:
    assert clearly_above_zero(np.array([0.01, 0.01]))
    assert not clearly_above_zero(np.zeros(3))


def epochs(best: BestEpoch, layer: Shift, *ious: float) -> list[bool]:
    """The answers of `best` after epochs with these IoUs, until it says stop."""
    stopped = []
    for iou in ious:
        set_weights(layer, {"by": np.array([iou], np.float32)})
        stopped.append(best(layer))
        if stopped[-1]:
            break
    return stopped


def test_the_best_epoch_is_restored_the_first_of_equal_ones() -> None:
    best, layer = BestEpoch(iou_is_the_shift, patience=None), Shift(0.0)
    assert epochs(best, layer, 0.1, 0.3, 0.2, 0.1, 0.0) == [False] * 5
    best.restore(layer)
    assert weights_of(layer)["by"] == pytest.approx(0.3)


def test_patience_stops_after_that_many_epochs_without_a_better_one() -> None:
    best, layer = BestEpoch(iou_is_the_shift, patience=2), Shift(0.0)
    assert epochs(best, layer, 0.1, 0.3, 0.3, 0.2, 0.9) == [False, False, False, True]
    best.restore(layer)
    assert weights_of(layer)["by"] == pytest.approx(0.3)


def test_without_a_finished_epoch_the_layer_stays() -> None:
    layer = Shift(0.7)
    BestEpoch(iou_is_the_shift, patience=None).restore(layer)
    assert weights_of(layer)["by"] == pytest.approx(0.7)


def test_epochs_since_the_best_by_hand() -> None:
    assert since_best([0.5]) == 0
    assert since_best([0.5, 0.4, 0.5]) == 2
    assert since_best([0.1, 0.2]) == 0


def test_the_identity_changes_nothing_and_knows_its_channels() -> None:
    z = torch.randn(2, 5, 3, 3)
    assert IdentityLayer(5)(z) is z
    trained = weights_of(build_layer(LowRankSpec(rank=4), 5, 0))
    layer = build_layer(AlignmentSpec(form="identity"), channels_in(trained), 0)
    set_weights(layer, identity_like(trained))
    assert torch.equal(layer(z), z)


def test_a_layer_without_vectors_has_no_channels() -> None:
    with pytest.raises(ValueError, match="one value per channel"):
        identity_like({"weight": np.zeros((3, 3), np.float32)})


def test_a_scenario_cannot_ask_to_train_the_identity() -> None:
    with pytest.raises(ScenarioError, match=r"expected one that learns, found 'identity'.*method = 'frozen'"):
        learning_rate_of(AlignmentSpec(form="identity", learning_rate=0.1))


def test_validation_uses_tight_boxes_even_if_training_jitters_them(tiny: Backbone) -> None:
    iou = []
    for jitter in (0.0, 0.4):
        spec = TrainingSpec(instances=2, box_jitter=jitter)
        validate = validator([image(1)], tiny, spec, np.random.default_rng(0))
        assert validate is not None
        iou.append(validate(IdentityLayer(32)).iou)
    assert iou[0] == iou[1]
