"""Seconds of a training epoch: from cached embeddings, compared with a loop that encodes in every epoch.

Both sides use the same training loop with the same random draws. The other side trains as the method's
authors do: it encodes every image at every step in float32 and decodes with SAM's own decoder. `loss_error`
shows that the losses agree with a float32 cache, if our decoder sees all far cells. ViT-B has random weights,
for speed only.

The decoder alone is compared on one batch of cached embeddings: a step, and a decode without gradients.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from casam_bench.bench import Figures, Surroundings, table_of
from casam_bench.models import SEED, as_released, cpu, learned, lite_medsam, phantoms, random_vit_b
from casam_bench.timing import clock, interleaved
from casam_core.bank.entries import rounded
from casam_core.config.scenario import TrainingSpec
from casam_core.model.backbones import Backbone
from casam_core.model.backbones.window import whole
from casam_core.model.embeddings import EmbeddingStore
from casam_core.model.examples import Example, Examples
from casam_core.model.forms import AlignmentLayer, LowRankSpec, build_layer, set_weights, weights_of
from casam_core.model.training import Drawn, TrainingResult, decode_batch, draw_batch
from casam_core.model.validation import validator
from casam_core.seeding import derive_seed, numpy_generator
from client.data.dataset import LoadedSample

MODALITY, INSTANCES, EPOCHS = "histology", 5, 24
REPEATS, VIT_REPEATS = 3, 2
STEP_IMAGES, STEP_INSTANCES, STEP_REPEATS = 2, 4, 5
LONG_TRAIN, LONG_VALIDATE, LONG_STEPS = 6, 4, 24
"""For the comparison of bfloat16 with float32: few steps on few images, from the same initial weights."""


def run(around: Surroundings) -> Figures:
    """Figures by backbone B: ratio_B (seconds of an epoch), ratio_24_B (of 24 epochs, the one encoding
    counted), ours_seconds_B, official_seconds_B (per image); ratio_bfloat16_B; loss_error (relative, float32
    cache), loss_error_float16 (the default store); iou_trained, and iou_change_bfloat16 and
    iou_change_float16_entry (points). SAM's own decoder over ours: step_ratio_all and step_ratio_means (by
    training.far_cells), decode_ratio; step_cosine, the gradient's with means."""
    columns = ("backbone", "official loop", "ours", "ours, bfloat16", "ratio", "24 epochs", "bfloat16")
    table = table_of(f"training, seconds an image and epoch ({INSTANCES} instances, low_rank 8)", columns)
    figures: Figures = {}
    models: dict[str, tuple[Callable[..., Backbone], int, int]] = {"lite_medsam": (lite_medsam, 2, REPEATS)}
    if not around.smoke:
        models["vit_b"] = (random_vit_b, 1, VIT_REPEATS)
    for name, (load, images, repeats) in models.items():
        around.say(f"train: {name}")
        found = measure(around, load, phantoms(MODALITY, images), repeats)
        if name == "lite_medsam":
            figures |= {key: found[key] for key in ("loss_error", "loss_error_float16")}
        figures |= {f"{key}_{name}": value for key, value in found.items() if not key.startswith("loss")}
        cells = (
            "official_seconds",
            "ours_seconds",
            "bfloat16_seconds",
            "ratio",
            "ratio_24",
            "ratio_bfloat16",
        )
        table.add_row(name, *(f"{found[key]:.2f}" for key in cells))
    if not around.smoke:
        around.say("train: the effect of bfloat16 on a layer")
        figures |= low_precision(around)
    figures |= decoders(around)
    around.show(table)
    around.say(
        "train: SAM's own decoder over ours: a step with all far cells {step_ratio_all:.1f}, with means "
        "{step_ratio_means:.1f} (cosine {step_cosine:.4f}), a decode {decode_ratio:.1f}".format(**figures)
    )
    around.say(
        f"train: losses differ by {figures['loss_error']:.1e} relative (float32 cache), "
        f"{figures['loss_error_float16']:.1e} (float16 cache)"
    )
    return figures


def measure(
    around: Surroundings, load: Callable[..., Backbone], samples: Sequence[LoadedSample], repeats: int
) -> Figures:
    """One backbone: epochs of both loops in turns, and the difference of their losses."""
    backbone = load(cpu(around.threads))
    faster = load(cpu(around.threads, precision="bfloat16"))
    with tempfile.TemporaryDirectory(prefix="casam-bench-") as folder:
        exact = EmbeddingStore(Path(folder), "float32")
        now = clock(around.threads)
        begun = now()
        keys = [exact.embed(item.image_HW3, backbone)[0] for item in samples]
        encoding = (now() - begun) / len(samples)

        def encoded(i: int) -> Example:
            return Example(backbone.encode([samples[i].image_HW3])[0], samples[i].labels_HW)

        def from_store(i: int) -> Example:
            return Example(exact.load(keys[i]), samples[i].labels_HW)

        def rounded(i: int) -> Example:
            return Example(exact.load(keys[i]).half().float(), samples[i].labels_HW)

        official = as_released(backbone)
        first, ours, half = (
            epoch(model, load_example, len(samples), far_cells="all")
            for model, load_example in ((official, encoded), (backbone, from_store), (backbone, rounded))
        )
        sides = {
            "official": lambda: epoch(official, encoded, len(samples)),
            "ours": lambda: epoch(backbone, from_store, len(samples)),
            "bfloat16": lambda: epoch(faster, from_store, len(samples)),
        }
        seconds = interleaved(sides, repeats=repeats, threads=around.threads, warm_up=False)
    per_image = {name: taken / len(samples) for name, taken in seconds.items()}
    return {
        "loss_error": difference(first, ours),
        "loss_error_float16": difference(first, half),
        "official_seconds": per_image["official"],
        "ours_seconds": per_image["ours"],
        "bfloat16_seconds": per_image["bfloat16"],
        "ratio": per_image["official"] / per_image["ours"],
        "ratio_24": EPOCHS * per_image["official"] / (encoding + EPOCHS * per_image["ours"]),
        "ratio_bfloat16": per_image["official"] / per_image["bfloat16"],
    }


@dataclass(frozen=True)
class Loaded:
    """Training images that `load` makes again at every step."""

    load: Callable[[int], Example]
    images: int

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, i: int) -> Example:
        return self.load(i)


def epoch(
    backbone: Backbone,
    load: Callable[[int], Example],
    images: int,
    far_cells: Literal["means", "all"] = "means",
) -> TrainingResult:
    """One epoch of the product's own loop over the images, always from the same initial weights."""
    spec = TrainingSpec(epochs=1, batch_images=1, instances=INSTANCES, far_cells=far_cells)
    return trained(backbone, Loaded(load, images), spec)[1]


def trained(
    backbone: Backbone, examples: Examples, spec: TrainingSpec
) -> tuple[AlignmentLayer, TrainingResult]:
    """A layer of the default form from the same initial weights and draws, and its losses."""
    rng = numpy_generator(SEED, "train")
    return learned(backbone, examples, spec, seed=derive_seed(SEED, "train"), rng=rng)


def decoders(around: Surroundings) -> Figures:
    """A training step and a decode with segment_anything's own decoder and with ours."""
    backbone = lite_medsam(cpu(around.threads))
    known = [Example(backbone.encode([s.image_HW3])[0], s.labels_HW) for s in phantoms(MODALITY, STEP_IMAGES)]
    layer = build_layer(LowRankSpec(), backbone.geometry.channels, derive_seed(SEED, "train"))

    def batch(far_cells: str) -> list[Drawn]:
        spec = TrainingSpec.model_validate({"instances": STEP_INSTANCES, "far_cells": far_cells})
        return draw_batch(
            np.arange(STEP_IMAGES), known, backbone, spec, numpy_generator(SEED, "train", "decoders")
        )

    def step(model: Backbone, drawn: list[Drawn]) -> Callable[[], Tensor]:
        def gradient() -> Tensor:
            layer.zero_grad()
            decode_batch(layer, model, drawn).loss(TrainingSpec()).backward()  # type: ignore[no-untyped-call]
            return torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])

        return gradient

    @torch.no_grad()
    def decode(model: Backbone) -> None:
        for example, drawn in zip(known, exact, strict=True):
            model.decode_in(
                [whole(backbone.geometry.cells)] * STEP_INSTANCES, example.seen_CHW, drawn.prompts
            )

    exact, means, official = batch("all"), batch("means"), as_released(backbone)
    sides: dict[str, Callable[[], object]] = {
        "official": step(official, exact),
        "all": step(backbone, exact),
        "means": step(backbone, means),
        "official_decode": lambda: decode(official),
        "decode": lambda: decode(backbone),
    }
    seconds = interleaved(sides, repeats=STEP_REPEATS, threads=around.threads)
    gradients = step(official, exact)(), step(backbone, means)()
    return {
        "step_ratio_all": seconds["official"] / seconds["all"],
        "step_ratio_means": seconds["official"] / seconds["means"],
        "step_cosine": float(torch.cosine_similarity(*gradients, dim=0)),
        "decode_ratio": seconds["official_decode"] / seconds["decode"],
    }


def difference(one: TrainingResult, other: TrainingResult) -> float:
    """The largest relative difference of two runs' losses, step by step."""
    pairs = zip(one.losses, other.losses, strict=True)
    return max(abs(a - b) / abs(a) for a, b in pairs)


def low_precision(around: Surroundings) -> Figures:
    """Changes of validation IoU in points, compared with a layer trained in float32: of a layer trained in
    bfloat16, and of the float32 layer rounded to float16 as in entries. All are measured in float32."""
    backbone, faster = (lite_medsam(cpu(around.threads, precision=p)) for p in ("float32", "bfloat16"))
    samples = phantoms(MODALITY, LONG_TRAIN + LONG_VALIDATE)
    known = [Example(backbone.encode([s.image_HW3])[0].half().float(), s.labels_HW) for s in samples]
    held_out = known[LONG_TRAIN:]
    spec = TrainingSpec(epochs=1000, max_steps=LONG_STEPS, batch_images=1, instances=2)
    validate = validator(held_out, backbone, TrainingSpec(), numpy_generator(SEED, "validate"))
    assert validate is not None  # every phantom has visible instances
    exact, low = (trained(model, known[:LONG_TRAIN], spec)[0] for model in (backbone, faster))
    iou = validate(exact).iou
    changes = {"iou_change_bfloat16": validate(low).iou - iou}
    set_weights(exact, rounded(weights_of(exact)))
    changes["iou_change_float16_entry"] = validate(exact).iou - iou
    return {"iou_trained": iou, **{name: 100 * abs(change) for name, change in changes.items()}}
