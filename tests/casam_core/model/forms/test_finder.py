"""The finder: what it should say about boxes, what it makes of that, and that it leaves the layer alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

from casam_core.config.named_parts import AlignmentSpec, LowRankSpec
from casam_core.config.scenario import PrivacySpec, Scenario, TrainingSpec
from casam_core.errors import ScenarioError
from casam_core.model.backbones import Backbone
from casam_core.model.examples import Example
from casam_core.model.forms import AlignmentLayer, build_layer, set_weights, weights_of
from casam_core.model.forms.affine import channels_in, identity_like
from casam_core.model.forms.finder import (
    Finder,
    finder_loss,
    finds,
    found,
    kinds_of,
    targets_of,
    without_finder,
)
from casam_core.model.frame import frame_of
from casam_core.model.prompts import tight_boxes
from casam_core.model.training import train_layer
from casam_core.model.validation import BestEpoch, Validated
from casam_core.privacy.layer_steps import PrivateSteps
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.units import units_of
from casam_core.seeding import Draws
from tests.casam_core.model.test_training import discs

STRIDE = 4.0
TWO = np.array([[4, 8, 20, 16], [40, 30, 60, 58]], np.float32)
"""Two boxes in a frame of 64 pixels, 16 cells of 4."""


@pytest.fixture(scope="module")
def examples(tiny: Backbone) -> list[Example]:
    return [Example(tiny.encode([image])[0], labels) for image, labels in discs(4)]


def with_finder() -> AlignmentLayer:
    return build_layer(LowRankSpec(finder=True), 32, 0)


def trained(layer: AlignmentLayer, tiny: Backbone, examples: list[Example], **how: object) -> AlignmentLayer:
    spec, rng = TrainingSpec(epochs=10), np.random.default_rng(0)
    train_layer(
        layer, tiny, examples, spec, learning_rate=3e-3, rng=rng, progress=lambda done, total: None, **how
    )
    return layer


def said(boxes_N4: np.ndarray) -> Tensor:
    """out_NHW of a finder that knows the boxes."""
    out_NHW, kind_N = torch.full((10, 16, 16), -9.0), kinds_of(boxes_N4)
    for kind in set(kind_N.tolist()):
        heat_HW, box_4HW = targets_of(boxes_N4[kind_N == kind], 16, STRIDE)
        logit_HW = torch.logit(heat_HW.clamp(1e-4, 1 - 1e-4))
        out_NHW[5 * kind : 5 * kind + 5] = torch.cat([logit_HW[None], box_4HW])
    return out_NHW


def test_the_target_is_one_at_the_cell_of_each_centre() -> None:
    heat_HW, box_4HW = targets_of(TWO, 16, STRIDE)
    # (12, 12) is a corner of cells and counts to cell (3, 3); (50, 44) is in column 12, row 11.
    assert (heat_HW == 1).nonzero().tolist() == [[3, 3], [11, 12]]
    assert_allclose(box_4HW[:2, 3, 3], [-0.5, -0.5])
    assert_allclose(box_4HW[2:, 3, 3].exp(), [4, 2], rtol=1e-6)


def test_boxes_are_found_again_the_surest_first() -> None:
    out_NHW = said(TWO)
    out_NHW[0, 11, 12] = 9.5
    centres = found(out_NHW, STRIDE, least=0.5, most=9)
    assert_allclose(centres.boxes.xy, TWO[::-1], atol=1e-4)
    assert centres.score_N[0] > centres.score_N[1] > 0.99
    assert len(found(out_NHW, STRIDE, least=0.5, most=1).boxes) == 1


NESTED = np.array([[20, 20, 43, 43], [12, 16, 48, 50], [2, 2, 9, 9]], np.float32)
"""The second box holds the first, and their centres are near; the third stands alone."""


def test_an_instance_around_another_one_is_of_a_kind_of_its_own() -> None:
    assert kinds_of(NESTED).tolist() == [0, 1, 0]
    corner = np.array([[13, 17, 20, 24], [12, 16, 48, 50]], np.float32)
    assert kinds_of(corner).tolist() == [0, 0]  # the small one lies in a corner of the large one
    assert kinds_of(NESTED[[0, 0]]).tolist() == [0, 0]  # neither is larger
    assert kinds_of(NESTED[:0]).tolist() == []


def test_both_of_two_instances_with_one_centre_are_found() -> None:
    centres = found(said(NESTED), STRIDE, least=0.5, most=9)
    order_N = np.lexsort((centres.boxes.xy[:, 0], centres.kind_N))
    assert centres.kind_N[order_N].tolist() == [0, 0, 1]
    assert_allclose(centres.boxes.xy[order_N], NESTED[[2, 0, 1]], atol=1e-3)


def test_a_finder_of_an_earlier_version_finds_what_it_found() -> None:
    """It knew one kind: its last layer had five rows."""
    layer, z_BCHW = with_finder(), torch.randn(1, 32, 16, 16)
    assert layer.finder is not None
    torch.nn.init.normal_(layer.finder.out.weight)
    weights = weights_of(layer)
    earlier = weights | {name: weights[name][:5] for name in ("finder.out.weight", "finder.out.bias")}
    later = with_finder()
    set_weights(later, earlier)
    assert later.finder is not None
    with torch.no_grad():
        own_NHW, want_NHW = later.finder(z_BCHW)[0], layer.finder(z_BCHW)[0]
    assert torch.equal(own_NHW[:5], want_NHW[:5])
    assert set(found(own_NHW, STRIDE, least=0.2, most=99).kind_N) == {0}


def test_cells_around_a_centre_have_a_say_in_its_box() -> None:
    """The centre (3, 3) says (1, 2) to (5, 4) in cells, its right neighbour the same, moved by half a cell.

    Their IoU is 7 / 9, so with scores 0.9 and 0.6 the box moves by 0.5 * 0.6 * 7 / 9 / (0.9 + 0.6 * 7 / 9)
    of a cell. A third cell says another box, whose IoU is too small.
    """
    out_NHW = torch.zeros(10, 16, 16)
    out_NHW[[0, 5]] = -9
    for column, score, way in ((3, 0.9, -0.5), (4, 0.6, -1.0), (2, 0.8, 2.5)):
        out_NHW[:5, 3, column] = torch.tensor([score, way, -0.5, np.log(4), np.log(2)])
        out_NHW[0, 3, column] = torch.logit(torch.tensor(score))
    moved = 0.5 * 0.6 * 7 / 9 / (0.9 + 0.6 * 7 / 9)
    centres = found(out_NHW, STRIDE, least=0.5, most=9)
    assert_allclose(centres.boxes.xy, STRIDE * np.array([[1 + moved, 2, 5 + moved, 4]]), rtol=1e-5)
    assert_allclose(centres.score_N, [0.9], rtol=1e-6)


def test_the_loss_is_smallest_where_the_boxes_are() -> None:
    right, moved = said(TWO), said(TWO + 8)
    assert finder_loss(right, TWO, STRIDE) < 0.5 < finder_loss(moved, TWO, STRIDE)


def test_a_new_finder_finds_nothing() -> None:
    finder = Finder(32)
    centres = found(finder(torch.randn(1, 32, 16, 16))[0], STRIDE, least=0.1, most=9)
    assert len(centres.boxes) == len(centres.score_N) == len(centres.kind_N) == 0
    assert not finds(weights_of(with_finder()))


def test_a_finder_learns_where_the_instances_are(tiny: Backbone, examples: list[Example]) -> None:
    layer = trained(with_finder(), tiny, examples)
    assert layer.finder is not None
    assert finds(weights_of(layer))
    frame = frame_of(examples[0].labels_HW, tiny.geometry.side)
    stride = tiny.geometry.side / tiny.geometry.cells
    boxes_N4 = tight_boxes(examples[0].labels_HW, np.array([1, 2], np.int32)).into(frame).xy
    with torch.no_grad():
        old, new = (
            finder_loss(finder(examples[0].seen_CHW[None])[0], boxes_N4, stride)
            for finder in (Finder(32), layer.finder)
        )
    assert new < 0.7 * old


def test_the_layer_has_the_same_bits_with_and_without_a_finder(
    tiny: Backbone, examples: list[Example]
) -> None:
    alone = weights_of(trained(build_layer(LowRankSpec(), 32, 0), tiny, examples))
    beside = without_finder(weights_of(trained(with_finder(), tiny, examples)))
    assert alone.keys() == beside.keys()
    assert all(np.array_equal(alone[name], beside[name]) for name in alone)


@pytest.mark.parametrize("private", [False, True])
def test_a_frozen_finder_stays_as_it_came(tiny: Backbone, examples: list[Example], private: bool) -> None:
    layer = with_finder()
    assert layer.finder is not None
    layer.finder.requires_grad_(False)
    before = weights_of(layer)
    ids = [str(i) for i in range(len(examples))]
    how = PrivateSteps(
        units_of(ids, ids, "image", 1), PrivacySpec(steps=3), 1.0, NoiseSource.seeded(0, "x"), Draws(0, ())
    )
    trained(layer, tiny, examples, steps=how if private else None)
    after = weights_of(layer)
    assert all(np.array_equal(before[name], after[name]) == name.startswith("finder.") for name in before)


def test_noise_reaches_every_number_of_a_finder(tiny: Backbone, examples: list[Example]) -> None:
    layer = with_finder()
    before = weights_of(layer)
    ids = [str(i) for i in range(len(examples))]
    how = PrivateSteps(
        units_of(ids, ids, "image", 1), PrivacySpec(steps=1), 1.0, NoiseSource.seeded(0, "x"), Draws(0, ())
    )
    trained(layer, tiny, examples, steps=how)
    after = weights_of(layer)
    assert all((before[name] != after[name]).mean() > 0.99 for name in before if name.startswith("finder."))


def test_the_best_epoch_of_the_layer_leaves_the_finder_as_it_is_at_the_end() -> None:
    layer, scores = with_finder(), iter([0.9, 0.1])
    best = BestEpoch(lambda _: Validated(np.array([next(scores)]), np.zeros(1)), None)
    best(layer)
    first = weights_of(layer)
    set_weights(layer, {name: value + 1 for name, value in first.items()})
    best(layer)
    best.restore(layer)
    now = weights_of(layer)
    assert all(np.array_equal(now[name], first[name] + name.startswith("finder.")) for name in first)


def test_a_task_that_keeps_frozen_sam_keeps_its_finder() -> None:
    weights = weights_of(with_finder())
    kept = identity_like(weights)
    assert kept.keys() - {"unchanged_C"} == {name for name in weights if name.startswith("finder.")}
    assert channels_in(kept) == 32


def test_a_form_that_changes_sam_has_no_finder(tiny: Backbone) -> None:
    with pytest.raises(ScenarioError, match=r"alignment\.finder: expected false with form 'decoder'"):
        build_layer(AlignmentSpec(form="decoder", finder=True), 32, 0, tiny)


@pytest.mark.parametrize(
    "clash", [{"privacy": {"method": "public_start"}}, {"alignment": {"finder": True, "start": "library"}}]
)
def test_a_library_of_layers_is_refused_by_name(clash: dict[str, object]) -> None:
    table = {
        "name": "x",
        "stream": ["a"],
        "institutions": [{"name": "s", "data": {"a": {"reader": "phantom", "phantom": "polyp"}}}],
        "alignment": {"finder": True},
    }
    with pytest.raises(ScenarioError, match=r"alignment\.finder: expected false"):
        Scenario.from_dict(table | clash)
