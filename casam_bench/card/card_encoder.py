"""SAM's encoders on a card: images per second, and the share of the card's peak. Random weights, speed
only."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from casam_bench.bench import Figures
from casam_bench.card.card import Card
from casam_bench.models import SMALL, gflop_of, random_vit
from casam_core.model.backbones.fast_encoder import FastEncoder

BATCHES = {"vit_b": (1, 16, 32), "vit_l": (16,), "vit_h": (16,)}
WAYS = {"vit_b": ("folded", "narrow"), "vit_l": ("folded",), "vit_h": ("folded",)}


def encoder_rates(name: str, card: Card, known: Figures) -> Figures:
    """By model M, way to attend W and batch N: M_W_N_images_per_second and M_W_N_share of the peak in
    bfloat16; M_plain_images_per_second in float32; M_W_error: relative difference of embeddings from the
    plain ones. M_gflop of an image: those of SAM's own encoder, whatever the way."""
    model = SMALL if card.small else name
    backbone, gflop = random_vit(model, card.compute()), gflop_of(model)
    figures = {f"{name}_gflop": gflop}
    x_B3SS = frames(2 if card.small else max(BATCHES[name]), backbone.geometry.side, card)
    wanted = plain(backbone.image_encoder, x_B3SS[:1])
    taken = card.seconds(lambda: plain(backbone.image_encoder, x_B3SS[:1]))
    figures[f"{name}_plain_images_per_second"] = 1 / taken
    for way in WAYS[name]:
        fast = FastEncoder(backbone.image_encoder, card.compute(encoder="fast"), way)
        figures[f"{name}_{way}_error"] = float((fast(x_B3SS[:1]) - wanted).norm() / wanted.norm())
        for batch in (2,) if card.small else BATCHES[name]:
            rate = batch / card.seconds(lambda f=fast, x=x_B3SS[:batch]: f(x))  # type: ignore[misc]
            figures |= rated(f"{name}_{way}_{batch}", rate, gflop, known)
        del fast
        card.free()
    return figures


def compiled_encoder(card: Card, known: Figures) -> Figures:
    """vit_b with a compiler (compute.encoder = "compiled"). vit_b_compiled_seconds: of the first call.

    A rehearsal without a card takes "fast": a processor's compiler may be missing, and takes minutes.
    """
    model = SMALL if card.small else "vit_b"
    backbone, gflop, batch = random_vit(model, card.compute()), gflop_of(model), 2 if card.small else 16
    x_B3SS = frames(batch, backbone.geometry.side, card)
    wanted = plain(backbone.image_encoder, x_B3SS[:1])
    compute = card.compute(encoder="compiled" if card.cuda else "fast")
    encoder = FastEncoder(backbone.image_encoder, compute)
    figures = {"vit_b_compiled_seconds": card.once(lambda: encoder(x_B3SS))}
    figures["vit_b_compiled_error"] = float((encoder(x_B3SS)[:1] - wanted).norm() / wanted.norm())
    rate = batch / card.seconds(lambda: encoder(x_B3SS))
    return figures | rated(f"vit_b_compiled_{batch}", rate, gflop, known)


def rated(name: str, rate: float, gflop: float, known: Figures) -> Figures:
    """The rate, and its share of the measured peak if that is known."""
    figures = {f"{name}_images_per_second": rate}
    if (peak := known.get("gemm_bfloat16_tflops")) is not None:
        figures[f"{name}_share"] = rate * gflop / 1e3 / peak
    return figures


def frames(count: int, side: int, card: Card) -> Tensor:
    """x_B3SS of noise on the card."""
    noise = np.random.default_rng(0).standard_normal((1, 3, side, side), np.float32)
    return torch.from_numpy(noise).to(card.device).repeat(count, 1, 1, 1)


@torch.no_grad()
def plain(encoder: torch.nn.Module, x_B3SS: Tensor) -> Tensor:
    """SAM's own encoder in float32."""
    z_BCHW: Tensor = encoder(x_B3SS)
    return z_BCHW
