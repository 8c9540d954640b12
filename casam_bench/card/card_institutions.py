"""Institutions in turn on one card, and the way from files to stored embeddings."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from casam_bench.bench import Figures
from casam_bench.card.card import Card
from casam_bench.models import SEED, SMALL, lite_medsam, phantoms, random_vit
from casam_core.config.scenario import TrainingSpec
from casam_core.model.compute import forget_peak, peak_bytes
from casam_core.model.embeddings import EmbeddingStore
from casam_core.model.examples import Example
from casam_core.model.forms import FORMS, build_layer
from casam_core.model.training import train_layer
from casam_core.seeding import numpy_generator
from client.data.pixels import read_image


def growth(card: Card, known: Figures) -> Figures:
    """100 institutions, one after the other: encode two images, train an epoch of the default form.
    institution_seconds; institution_peak_mib: the most that one of them held, the backbone included;
    growth_mib: what is held after the last one, less what was held after the first."""
    backbone, samples = lite_medsam(card.compute(encoder="fast")), phantoms("histology", 2)
    institutions, spec = 3 if card.small else 100, TrainingSpec(epochs=1, batch_images=1)
    held, peaks = [], []

    def institution(turn: int) -> None:
        z_BCHW = backbone.encode([s.image_HW3 for s in samples]).cpu()
        examples = [Example(z_CHW, s.labels_HW) for z_CHW, s in zip(z_BCHW, samples, strict=True)]
        layer = build_layer(FORMS["low_rank"].section(form="low_rank"), backbone.geometry.channels, turn)
        rng = numpy_generator(SEED, "gpu", str(turn))
        train_layer(layer, backbone, examples, spec, learning_rate=3e-3, rng=rng)

    def all_in_turn() -> None:
        for turn in range(institutions):
            forget_peak()
            institution(turn)
            peaks.append(peak_bytes() / 2**20)
            card.free()
            held.append(torch.cuda.memory_allocated(card.device) / 2**20 if card.cuda else 0.0)

    institution(0)  # what is made once: the encoder, libraries' own memory
    taken = card.once(all_in_turn)
    return {
        "institution_seconds": taken / institutions,
        "institution_peak_mib": max(peaks),
        "growth_mib": held[-1] - held[0],
    }


def stored_rates(card: Card, known: Figures) -> Figures:
    """stored_images_per_second: from PNG files of 1024 pixels to embeddings in a store, vit_b, as an
    institution does it; stored_over_encoder: that over the encoder's own rate, if it is known."""
    backbone = random_vit(SMALL if card.small else "vit_b", card.compute(encoder="fast"))
    count, side = (4, 64) if card.small else (160, 1024)
    together = backbone.compute.together
    with tempfile.TemporaryDirectory(prefix="casam-") as folder:
        files = [Path(folder) / f"{i}.png" for i in range(count + together)]
        rng = np.random.default_rng(0)
        for file in files:
            coarse = rng.integers(0, 255, (side // 8, side // 8, 3), np.uint8)
            Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(file)

        def image(file: Path) -> NDArray[np.uint8]:
            return read_image(file)

        store = EmbeddingStore(Path(folder) / "store")

        def fill(some: list[Path]) -> None:
            list(store.fill([partial(image, file) for file in some], backbone))

        fill(files[count:])  # the encoder is made at its first call
        rate = count / card.once(lambda: fill(files[:count]))
    figures = {"stored_images_per_second": rate}
    if (encoder := known.get("vit_b_folded_16_images_per_second")) is not None:
        figures["stored_over_encoder"] = rate / encoder
    return figures
