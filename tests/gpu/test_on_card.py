"""On a CUDA card: the same answers as on the processor within stated tolerances, the same bits in every run,
and memory that does not grow. CASAM_GPU=cpu rehearses the tests on the processor; without it and without a
card they are skipped."""

from __future__ import annotations

import gc
import os
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from casam_bench.models import SMALL, lite_medsam, phantoms, random_vit
from casam_core.bank.inference import decode_masks
from casam_core.config.named_parts import SHIPPED_FRAMES, PublicFrameSpec
from casam_core.config.scenario import TrainingSpec
from casam_core.model.backbones import Backbone
from casam_core.model.backbones.fast_encoder import FastEncoder
from casam_core.model.compute import Compute, prepare_process
from casam_core.model.embeddings import EmbeddingStore
from casam_core.model.examples import Example
from casam_core.model.forms import FORMS, build_layer, weights_of
from casam_core.model.prompts import tight_boxes
from casam_core.model.training import decode_batch, draw_batch, train_layer
from casam_core.routing.decision import decide
from casam_core.routing.features import pool
from casam_core.routing.routers import build_router
from client.data.dataset import LoadedSample

CARD = os.environ.get("CASAM_GPU", "cuda")
MODALITIES = ("polyp", "histology", "dental_xray")
IMAGES = 2 if CARD == "cpu" else 8

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(
        CARD.startswith("cuda") and not torch.cuda.is_available(),
        reason="no CUDA device; CASAM_GPU=cpu rehearses these tests on the processor",
    ),
]


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rounding to TF32, which torch allows for convolutions on a card, and the product with it."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@cache
def backbone_on(device: str, encoder: str = "plain") -> Backbone:
    compute = Compute(device, 1, "float32", encoder)
    prepare_process(compute)
    return lite_medsam(compute)


@cache
def samples() -> dict[str, list[LoadedSample]]:
    return {name: phantoms(name, IMAGES) for name in MODALITIES}


@cache
def embeddings(device: str, encoder: str = "plain") -> dict[str, Tensor]:
    """z_NCHW by modality, in the processor's memory."""
    backbone = backbone_on(device, encoder)
    return {
        name: torch.stack([backbone.encode([s.image_HW3])[0].cpu() for s in of])
        for name, of in samples().items()
    }


def difference(found: Tensor, wanted: Tensor) -> float:
    """Relative, root mean square."""
    return float((found - wanted).norm() / wanted.norm())


# The fast encoder rounds to bfloat16 on either device (docs/performance.md).
@pytest.mark.parametrize(("encoder", "tolerance"), [("plain", 1e-3), ("fast", 0.08)])
def test_embeddings_are_those_of_the_processor(encoder: str, tolerance: float) -> None:
    for name, z_NCHW in embeddings(CARD, encoder).items():
        assert difference(z_NCHW, embeddings("cpu")[name]) < tolerance


def test_images_encoded_together_are_those_encoded_alone() -> None:
    images = [s.image_HW3 for s in samples()["polyp"]]
    assert difference(backbone_on(CARD).encode(images).cpu(), embeddings(CARD)["polyp"]) < 1e-3


def test_a_store_is_filled_with_what_single_images_leave(tmp_path: Path) -> None:
    backbone, images = backbone_on(CARD, "fast"), [s.image_HW3 for s in samples()["polyp"]]
    alone, together = EmbeddingStore(tmp_path / "alone"), EmbeddingStore(tmp_path / "together")
    keys = dict(together.fill([partial(images.__getitem__, i) for i in range(len(images))], backbone))
    for i, image_HW3 in enumerate(images):
        key, z_CHW = alone.embed(image_HW3, backbone)
        assert keys[i] == key
        # The same kernels; a library may still add up in another order at another place of the batch.
        assert difference(together.load(key), z_CHW) < 1e-2


@pytest.mark.parametrize("way", ["folded", "narrow"])
def test_positions_as_channels_give_sams_attention(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casam_core.model.compute._has_fast_bfloat16", lambda device: False)
    backbone = random_vit(SMALL, Compute(CARD, 1, "float32", "fast"))
    encoder = FastEncoder(backbone.image_encoder, backbone.compute, way)
    x_B3SS = torch.randn(2, 3, 64, 64, device=CARD)
    with torch.no_grad():
        assert difference(encoder(x_B3SS), backbone.image_encoder(x_B3SS)) < 1e-4


@pytest.mark.parametrize(
    "training",
    [{}, {"prompts": "point", "far_cells": "all"}, {"objective": "official", "far_cells": "all"}],
    ids=["means", "points", "official"],
)
def test_every_kind_of_step_has_the_processors_loss(training: dict[str, str]) -> None:
    spec, losses = TrainingSpec.model_validate(training), []
    for device in ("cpu", CARD):
        backbone = backbone_on(device)
        layer = build_layer(FORMS["low_rank"].section(form="low_rank"), 256, 0).to(device)
        polyps = zip(embeddings("cpu")["polyp"], samples()["polyp"], strict=True)
        known = [Example(z_CHW, sample.labels_HW) for z_CHW, sample in polyps]
        drawn = draw_batch(np.arange(2), known, backbone, spec, np.random.default_rng(0))
        losses.append(float(decode_batch(layer, backbone, drawn).loss(spec).detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_no_route_changes() -> None:
    router = build_router(PublicFrameSpec(frame=SHIPPED_FRAMES["lite_medsam", "moments"]))
    routes = []
    for device in ("cpu", CARD):
        features = {
            name: torch.stack([pool(z_CHW.to(device), "moments") for z_CHW in z_NCHW])
            for name, z_NCHW in embeddings(device).items()
        }
        # The entries were learned on the processor; only the images differ.
        learned = {
            name: router.fit(
                router.sufficient_statistics(torch.stack([pool(z, "moments") for z in z_NCHW]), 0)
            )
            for name, z_NCHW in embeddings("cpu").items()
        }
        routes.append(
            [
                decide(
                    list(learned),
                    [router.score(f_F, state) for state in learned.values()],
                    [0.12] * len(learned),
                ).task
                for f_NF in features.values()
                for f_F in f_NF
            ]
        )
    assert routes[0] == routes[1]


@torch.no_grad()
def test_masks_are_those_of_the_processor() -> None:
    shares = []
    for name, of in samples().items():
        for i, sample in enumerate(of):
            instances = np.unique(sample.labels_HW)[1:4].astype(np.int32)
            boxes, masks = tight_boxes(sample.labels_HW, instances), []
            for device in ("cpu", CARD):
                backbone = backbone_on(device)
                z_CHW = embeddings("cpu")[name][i].to(backbone.compute.device)
                parts = decode_masks(backbone, z_CHW, backbone.frame(sample.image_HW3), boxes)
                masks.append(np.concatenate([m for m, _ in parts]))
            both, either = (masks[0] & masks[1]).sum(), (masks[0] | masks[1]).sum()
            shares.append(both / max(either, 1))
    assert min(shares) > 0.998


@pytest.mark.parametrize("form", ["low_rank", "low_rank_decoder", "residual", "casam"])
def test_gradients_are_those_of_the_processor(form: str) -> None:
    gradients = []
    for device in ("cpu", CARD):
        backbone = backbone_on(device)
        layer = build_layer(FORMS[form].section(form=form), 256, 0).to(device)
        known = [
            Example(z, s.labels_HW)
            for z, s in zip(embeddings("cpu")["polyp"], samples()["polyp"], strict=True)
        ]
        drawn = draw_batch(np.arange(2), known, backbone, TrainingSpec(), np.random.default_rng(0))
        decode_batch(layer, backbone, drawn).loss(TrainingSpec()).backward()  # type: ignore[no-untyped-call]
        parts = [p.grad.flatten().cpu() for p in layer.parameters() if p.grad is not None]
        gradients.append(torch.cat(parts).double())
    assert float(torch.cosine_similarity(*gradients, dim=0)) > 0.9999


def trained(turn: int = 0) -> dict[str, np.ndarray]:
    """Weights after a few steps."""
    backbone = backbone_on(CARD)
    layer = build_layer(FORMS["low_rank"].section(form="low_rank"), 256, turn)
    known = [
        Example(z, s.labels_HW) for z, s in zip(embeddings("cpu")["polyp"], samples()["polyp"], strict=True)
    ]
    spec, rng = TrainingSpec(epochs=2, batch_images=2), np.random.default_rng(turn)
    train_layer(layer, backbone, known, spec, learning_rate=3e-3, rng=rng, progress=lambda done, total: None)
    return weights_of(layer)


def test_the_same_seed_gives_the_same_bits() -> None:
    first, second, other = trained(), trained(), trained(1)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)


def test_memory_does_not_grow_from_institution_to_institution() -> None:
    held = []
    for turn in range(3 if CARD == "cpu" else 20):
        trained(turn)
        gc.collect()
        held.append(torch.cuda.memory_allocated() if CARD.startswith("cuda") else 0)
    assert held[-1] <= held[0]


def test_a_whole_run_on_the_card_ends_with_the_processors_scores(tmp_path: Path) -> None:
    pytest.importorskip("flwr", reason="the in-process engine needs flwr")
    from casam_core.config.scenario import Scenario
    from scenarios.engines.inprocess import run_inprocess
    from tests.conftest import tiny_table
    from tests.runs import result

    matrices: list[list[list[float | None]]] = []
    for device in ("cpu", CARD):
        folder = tmp_path / str(len(matrices))
        run_inprocess(Scenario.model_validate(tiny_table(compute={"device": device})), folder, None)
        matrices.append(result(folder)["matrix"]["iou"])
    flat = [[cell for row in matrix for cell in row if cell is not None] for matrix in matrices]
    assert flat[1] == pytest.approx(flat[0], abs=0.02)
