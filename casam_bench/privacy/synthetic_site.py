"""A synthetic site with thousands of images, to measure attacks: no pictures, no SAM.

An image is a random embedding (32 channels, 8 x 8 cells) with one object. The object's cells are inside a
random box and have a positive value in one hidden direction of the embedding; three in ten cells are inverted
at random. A layer can learn the rule but can only memorise the exceptions. The decoder is a fixed read-out
per cell that does not see the hidden direction, so the frozen decoder segments by chance. The alignment
layers, the loss, the training loops, private training and the routers are the product's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from casam_core.config.named_parts import BackboneSpec
from casam_core.model.backbones import Backbone
from casam_core.model.backbones.sam import SamBackbone
from casam_core.model.backbones.tiny import load_tiny
from casam_core.model.backbones.window import PIXELS, Window
from casam_core.model.compute import Compute, prepare_process
from casam_core.model.examples import Example
from casam_core.model.prompts import Prompts
from casam_core.routing.features import moments_pool
from casam_core.seeding import derive_seed, numpy_generator

SEED = 11
CELLS, PIXELS_PER_CELL = 8, 8
EXCEPTIONS = 0.3
STRENGTH, OUTSIDE = 2.0, -6.0
READ_BY_DECODER, HIDDEN = 0, 1
"""Channels of the two directions."""


class SketchBackbone(SamBackbone):
    """The tiny backbone's geometry with a decoder that costs almost nothing."""

    def decode_in(
        self,
        windows: Sequence[Window],
        z_CHW: Tensor,
        prompts: Prompts,
        mask_decoder: nn.Module | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """(logits_hw, iou_N): one channel of the embedding inside the box, background outside."""
        low = self.geometry.low
        logits_hw = (
            STRENGTH
            * nn.functional.interpolate(z_CHW[None, READ_BY_DECODER : READ_BY_DECODER + 1], low)[0, 0]
        )
        centre_h = (torch.arange(low) + 0.5) * self.geometry.side / low
        x0, y0, x1, y1 = (side[:, None] for side in torch.as_tensor(prompts.xy).T)
        rows_Nh = (centre_h > y0) & (centre_h < y1 + 1)
        columns_Nw = (centre_h > x0) & (centre_h < x1 + 1)
        inside_Nhw = rows_Nh[:, :, None] & columns_Nw[:, None, :]
        logits_Nhw = torch.where(inside_Nhw, logits_hw, torch.tensor(OUTSIDE))
        logits = [window.of(whole_hw, PIXELS) for window, whole_hw in zip(windows, logits_Nhw, strict=True)]
        return logits, torch.full((len(logits),), 0.5)


def sketch_backbone(threads: int) -> Backbone:
    """The backbone on this machine's CPU."""
    compute = Compute(device="cpu", threads=threads, precision="float32")
    prepare_process(compute)
    tiny = load_tiny(BackboneSpec(name="tiny"), compute)
    return SketchBackbone(
        name="sketch",
        digest="sketch",
        geometry=tiny.geometry,
        image_encoder=tiny.image_encoder,
        prompt_encoder=tiny.prompt_encoder,
        mask_decoder=tiny.mask_decoder,
        compute=compute,
    )


def images_of(site: int, count: int) -> list[Example]:
    """The images of one site."""
    return [image_of(site, number) for number in range(count)]


def image_of(site: int, number: int) -> Example:
    """One image; it depends on (site, number) only."""
    rng = numpy_generator(SEED, "synthetic", site, number)
    z_CHW = torch.randn(32, CELLS, CELLS, generator=_torch_generator("synthetic", site, number))
    top, left = rng.integers(0, CELLS - 3, 2)
    height, width = rng.integers(4, CELLS + 1 - np.array([top, left]))
    object_hw = (z_CHW[HIDDEN].numpy() > 0) ^ (rng.random((CELLS, CELLS)) < EXCEPTIONS)
    box_hw = np.zeros((CELLS, CELLS), bool)
    box_hw[top : top + height, left : left + width] = True
    labels = np.kron(object_hw & box_hw, np.ones((PIXELS_PER_CELL, PIXELS_PER_CELL))).astype(np.int32)
    if not labels.any():  # by chance the object is empty: use one cell in the middle of the box
        y, x = (PIXELS_PER_CELL * (side + extent // 2) for side, extent in ((top, height), (left, width)))
        labels[y : y + PIXELS_PER_CELL, x : x + PIXELS_PER_CELL] = 1
    return Example(z_CHW, labels)


def features_of(site: int, count: int) -> Tensor:
    """f_NF: a router's features (moments) of a site's images. Sites differ in means and spreads."""
    z_NCHW = torch.stack([image_of(site, number).seen_CHW for number in range(count)])
    generator = _torch_generator("synthetic site", site)
    scale_C = torch.exp(0.3 * torch.randn(32, generator=generator))
    shift_C = torch.randn(32, generator=generator)
    # An image has a brightness and a contrast of its own.
    own_N2 = torch.randn(count, 2, 32, generator=generator) * 0.2
    z_NCHW = z_NCHW * (scale_C * torch.exp(own_N2[:, 0]))[:, :, None, None]
    return moments_pool(z_NCHW + (shift_C + own_N2[:, 1])[:, :, None, None])


def _torch_generator(*scope: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(SEED, *scope))
