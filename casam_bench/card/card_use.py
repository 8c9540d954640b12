"""The use of entries on a card: masks per second, and the route of an image."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from casam_bench.bench import Figures
from casam_bench.card.card import Card
from casam_bench.models import SMALL, phantoms, random_vit
from casam_bench.speed.route import DEFAULT, FEATURES, stacked, states_of
from casam_core.bank.inference import decode_masks
from casam_core.model.prompts import Prompts
from casam_core.routing.features import pool
from casam_core.routing.routers import build_router
from casam_use.router_stack import stack_of

PROMPTS = (1, 16, 64)


def decoding(card: Card, known: Figures) -> Figures:
    """By precision P and number N of boxes on an image: masks_P_N_per_second, at the image's size and back
    in the processor's memory."""
    figures: Figures = {}
    sample = phantoms("histology", 1)[0]
    for precision in ("float32", "bfloat16"):
        backbone = random_vit(SMALL if card.small else "vit_b", card.compute(precision))
        frame, (height, width) = backbone.frame(sample.image_HW3), sample.labels_HW.shape
        z_CHW = torch.randn(
            backbone.geometry.channels, backbone.geometry.cells, backbone.geometry.cells, device=card.device
        )
        for count in PROMPTS[: 2 if card.small else None]:
            box = np.array([0, 0, width // 3, height // 3], np.float32)
            boxes = Prompts(boxes_N4=np.tile(box, (count, 1)))
            decode = partial(decode_masks, backbone, z_CHW, frame, boxes)
            taken = card.seconds(lambda d=decode: list(d()))  # type: ignore[misc]
            figures[f"masks_{precision}_{count}_per_second"] = count / taken
    return figures


def routing(card: Card, known: Figures) -> Figures:
    """route_1000_ms: from an embedding on the card to the route among 1,000 entries, mean over images.
    Features are made on the card; the processor computes all scores in one product. route_feature_ms: the
    part of it that makes the feature."""
    entries, images = (100, 2) if card.small else (1000, 64)
    generator = torch.Generator().manual_seed(7)
    router = build_router(DEFAULT)
    states = states_of(router, 5 + torch.randn(entries, FEATURES, generator=generator), generator)
    stack = stack_of(router, states)
    z_BCHW = torch.randn(images, FEATURES // 2, 64, 64, device=card.device)

    def route() -> None:
        for z_CHW in z_BCHW:
            stacked(router, stack, states, pool(z_CHW, "moments"))

    def features() -> None:
        for z_CHW in z_BCHW:
            pool(z_CHW, "moments")

    return {
        "route_1000_ms": 1e3 * card.seconds(route) / images,
        "route_feature_ms": 1e3 * card.seconds(features) / images,
    }
