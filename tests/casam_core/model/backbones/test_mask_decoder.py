"""Our order of the mask decoder's products: SAM's own masks, estimates and gradients."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from casam_bench.models import random_vit_b
from casam_core.config.scenario import AlignmentSpec, BackboneSpec, TrainingSpec
from casam_core.model.backbones import Backbone, load_backbone
from casam_core.model.backbones.window import BLOCK, PIXELS, Window, whole
from casam_core.model.compute import Compute
from casam_core.model.examples import Example
from casam_core.model.forms import build_layer
from casam_core.model.losses import alignment_loss
from casam_core.model.prompts import Prompts, single_points
from casam_core.model.training import align, decode_batch, draw_instances
from client.data.phantoms import PHANTOMS
from tests.banks import tiny_backbone

Decoded = tuple[Tensor, Tensor]


def by_sam(backbone: Backbone, z_CHW: Tensor, prompts: Prompts, decoder: nn.Module | None = None) -> Decoded:
    """(logits_Nhw, iou_N) of segment_anything's own forward."""
    points = boxes = masks = None
    if prompts.points_NP2 is not None:
        xy_NP2 = torch.from_numpy(prompts.points_NP2)
        ones_NP = torch.ones(xy_NP2.shape[:2])
        points = xy_NP2, ones_NP if prompts.labels_NP is None else torch.from_numpy(prompts.labels_NP)
    if prompts.boxes_N4 is not None:
        boxes = torch.from_numpy(prompts.boxes_N4)
    if prompts.masks_Nhw is not None:
        masks = torch.from_numpy(prompts.masks_Nhw)[:, None]
    sparse_NTC, dense_NCHW = backbone.prompt_encoder(points=points, boxes=boxes, masks=masks)
    logits_N1hw, iou_N1 = (decoder or backbone.mask_decoder)(
        image_embeddings=z_CHW[None],
        image_pe=backbone.image_pe,
        sparse_prompt_embeddings=sparse_NTC,
        dense_prompt_embeddings=dense_NCHW,
        multimask_output=False,
    )
    return logits_N1hw[:, 0], iou_N1[:, 0]


def embedding(backbone: Backbone, seed: int) -> Tensor:
    """z_CHW that takes gradients: of a picture with a bright disc and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :128]
    disc = (y - rng.integers(30, 66)) ** 2 + (x - rng.integers(30, 98)) ** 2 < rng.integers(8, 30) ** 2
    picture = np.where(disc, 190, 60)[..., None] + rng.integers(-30, 30, (96, 128, 3))
    return backbone.encode([picture.astype(np.uint8)])[0].requires_grad_()


def some_prompts(backbone: Backbone, kind: str, count: int, seed: int) -> Prompts:
    """Prompts at random places of the frame; kind: any of the words box, point, clicks and mask."""
    rng, side, low = np.random.default_rng(seed), backbone.geometry.side, backbone.geometry.low
    first, size = rng.uniform(0, 0.7 * side, (count, 2)), rng.uniform(0.05 * side, 0.3 * side, (count, 2))
    if kind == "point":
        return single_points(first)
    parts: dict[str, NDArray[Any]] = {}
    if "box" in kind:
        parts["boxes_N4"] = np.hstack([first, first + size]).astype(np.float32)
    if "clicks" in kind:  # three, of both labels
        parts["points_NP2"] = rng.uniform(0, side, (count, 3, 2)).astype(np.float32)
        parts["labels_NP"] = np.hstack([rng.integers(0, 2, (count, 1)), np.tile([1, 0], (count, 1))])
    if "mask" in kind:
        parts["masks_Nhw"] = rng.normal(0, 8, (count, low, low)).astype(np.float32)
    return Prompts(**parts)


def compared(backbone: Backbone, kind: str, count: int, seed: int) -> None:
    """Logits and estimates to 1e-5 of their range, the gradient of the loss to 1e-4 of its norm."""
    prompts, found = some_prompts(backbone, kind, count, seed), []
    target_Nhw = torch.zeros(count, backbone.geometry.low, backbone.geometry.low)
    target_Nhw[:, 3:9, 4:14] = 1
    for decode in (by_sam, Backbone.decode):
        z_CHW = embedding(backbone, seed)
        logits_Nhw, iou_N = decode(backbone, z_CHW, prompts)
        alignment_loss(logits_Nhw, iou_N, target_Nhw).backward()  # type: ignore[no-untyped-call]
        assert z_CHW.grad is not None
        found.append((logits_Nhw.detach(), iou_N.detach(), z_CHW.grad))
    (logits, iou, gradient), (our_logits, our_iou, our_gradient) = found
    assert our_logits.shape == (count, backbone.geometry.low, backbone.geometry.low)
    assert float((our_logits - logits).abs().max()) <= 1e-5 * max(1.0, float(logits.abs().max()))
    torch.testing.assert_close(our_iou, iou, rtol=1e-5, atol=1e-5)
    assert float((our_gradient - gradient).norm()) <= 1e-4 * float(gradient.norm())


KINDS = [
    "box",
    "point",
    "clicks",
    "box and clicks",
    "box and mask",
    "clicks and mask",
    "box, clicks, mask",
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_estimates_and_gradients_are_sams(kind: str, count: int, seed: int) -> None:
    compared(tiny_backbone(), kind, count, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", KINDS)
def test_so_they_are_with_trained_weights_and_the_real_size(kind: str, seed: int) -> None:
    backbone = load_backbone(BackboneSpec(name="lite_medsam"), Compute("cpu", 1, "float32"))
    compared(backbone, kind, 3, seed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_so_they_are_with_the_shapes_of_vit_b(kind: str) -> None:
    backbone = random_vit_b(Compute("cpu", 1, "float32"))
    z_CHW, prompts = (
        torch.randn(256, 64, 64, generator=torch.Generator().manual_seed(0)),
        some_prompts(backbone, kind, 2, 0),
    )
    with torch.no_grad():
        (logits, iou), (our_logits, our_iou) = (
            f(backbone, z_CHW, prompts) for f in (by_sam, Backbone.decode)
        )
    assert float((our_logits - logits).abs().max()) <= 1e-5 * max(1.0, float(logits.abs().max()))
    torch.testing.assert_close(our_iou, iou, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_accelerators_order_gives_the_same_masks(kind: str) -> None:
    backbone = tiny_backbone()
    z_BCHW = torch.stack([embedding(backbone, seed).detach() for seed in (0, 1)])
    prompts = [some_prompts(backbone, kind, count, count) for count in (2, 3)]
    windows = [[whole(8)] * len(some) for some in prompts]
    wanted, wanted_iou_N = backbone.decode_images(windows, z_BCHW, prompts)
    found, iou_N = backbone.decode_together(windows, z_BCHW, prompts)
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(iou_N, wanted_iou_N, rtol=1e-5, atol=1e-5)


def test_a_decoder_that_is_trained_gets_sams_gradients() -> None:
    backbone, gradients = tiny_backbone(), []
    z_CHW, prompts = embedding(backbone, 0).detach(), some_prompts(backbone, "box", 3, 0)
    for decode in (by_sam, Backbone.decode):
        decoder = copy.deepcopy(backbone.mask_decoder).requires_grad_(True)
        logits_Nhw, iou_N = decode(backbone, z_CHW, prompts, decoder)
        (logits_Nhw.sigmoid().sum() + iou_N.sum()).backward()  # type: ignore[no-untyped-call]
        gradients.append({name: p.grad for name, p in decoder.named_parameters() if p.grad is not None})
    want, got = gradients
    # SAM computes four masks and returns one: the other three get only zeros. A bias of the keys changes no
    # attention over them: apart from rounding its gradient is zero.
    unused = {name for name, gradient in want.items() if gradient.abs().max() < 1e-5}
    assert all(name.endswith("k_proj.bias") or "output_hypernetworks" in name for name in unused)
    assert want.keys() - unused <= got.keys()
    for name in want.keys() - unused:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=2e-5, msg=name)


# --- Windows -----------------------------------------------------------------------------------------


def test_the_logits_in_a_window_are_those_of_the_whole_mask() -> None:
    backbone = tiny_backbone()
    z_CHW, prompts = embedding(backbone, 2).detach(), some_prompts(backbone, "box", 3, 2)
    logits_Nhw, iou_N = backbone.decode(z_CHW, prompts)
    windows = [Window(0, 3, 2, 8), Window(7, 8, 0, 1), whole(8)]
    near, near_iou_N = backbone.decode_in(windows, z_CHW, prompts)
    assert [tuple(logits_hw.shape) for logits_hw in near] == [(12, 24), (4, 4), (32, 32)]
    for window, whole_hw, near_hw in zip(windows, logits_Nhw, near, strict=True):
        torch.testing.assert_close(near_hw, window.of(whole_hw, PIXELS), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(near_iou_N, iou_N, rtol=1e-5, atol=1e-5)


def test_means_of_equal_cells_stand_for_these_cells_exactly() -> None:
    backbone = copy.deepcopy(tiny_backbone())
    backbone.image_pe = F.interpolate(F.avg_pool2d(backbone.image_pe, BLOCK), scale_factor=BLOCK)
    z_CHW = F.interpolate(F.avg_pool2d(embedding(backbone, 3).detach(), BLOCK)[None], scale_factor=BLOCK)[0]
    prompts = some_prompts(backbone, "box", 2, 3)
    every, means = ([Window(0, 4, 4, 8, pooled)] * 2 for pooled in (False, True))
    wanted, wanted_iou_N = backbone.decode_in(every, z_CHW, prompts)
    found, iou_N = backbone.decode_in(means, z_CHW, prompts)
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(iou_N, wanted_iou_N, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("far_cells", "cosine"), [("all", 1 - 1e-9), ("means", 0.98)])
@pytest.mark.parametrize("modality", ["histology", "polyp"])
def test_near_a_real_mask_the_gradient_is_that_of_the_whole_mask(
    modality: str, far_cells: str, cosine: float
) -> None:
    backbone = load_backbone(BackboneSpec(name="lite_medsam"), Compute("cpu", 1, "float32"))
    painted = PHANTOMS[modality](np.random.default_rng(0), 256)
    example = Example(backbone.encode([painted.image_HW3])[0], painted.labels_HW)
    spec = TrainingSpec.model_validate({"instances": 2, "far_cells": far_cells})
    drawn = draw_instances(example, backbone, spec, "box", np.random.default_rng(0))
    assert drawn is not None
    layer, gradients = build_layer(AlignmentSpec(form="scale_shift"), 256, 0), []
    near = decode_batch(layer, backbone, [drawn])
    assert all(logits_hw.numel() < near.pixels / 2 for logits_hw in near.logits)
    whole_masks, iou_N = backbone.decode(align(layer, backbone, [drawn])[0], drawn.prompts)
    for loss in (near.loss(spec), alignment_loss(whole_masks, iou_N, drawn.target_Nhw)):
        layer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients.append(torch.cat([p.grad for p in layer.parameters() if p.grad is not None]).double())
    assert float(torch.cosine_similarity(*gradients, dim=0)) >= cosine
