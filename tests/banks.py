"""Small banks on the tiny backbone, made in milliseconds: two kinds of pictures, an entry for each."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from casam_core.bank.bank import Bank
from casam_core.bank.entry_file import Entry, Provenance
from casam_core.config.named_parts import BackboneSpec
from casam_core.model.backbones import Backbone
from casam_core.model.backbones.tiny import load_tiny
from casam_core.model.compute import Compute
from casam_core.model.forms import build_layer, form_spec, weights_of
from casam_core.model.layer_library import LIBRARIES, LayerLibrary
from casam_core.routing.features import pool
from casam_core.routing.public_frames import FRAMES
from casam_core.routing.routers import build_router, router_spec
from casam_core.routing.routers.public_frame import frame_named
from casam_use.frame_fit import make_frame

BASE = {"polyp": (200, 80, 70), "histology": (90, 40, 160)}


@lru_cache
def tiny_backbone() -> Backbone:
    return load_tiny(BackboneSpec(name="tiny"), Compute(device="cpu", threads=1, precision="float32"))


def random_frame(width: int) -> str:
    """The digest of a public frame for random features of this width, kept on this machine."""
    rng = np.random.default_rng(width)
    public = {name: rng.normal(shift, 1, (12, width)) for shift, name in enumerate("abc")}
    return FRAMES.keep(make_frame(public, {}).to_bytes(), FRAMES.here)


def random_library(form: str) -> str:
    """The digest of a library of layers for the tiny backbone, kept on this machine: a joint layer and three
    directions that no image has shown."""
    rng, first = np.random.default_rng(5), build_layer(form_spec(form), tiny_backbone().geometry.channels, 0)
    weights = weights_of(first)
    free = [name for name in weights if name != "down_RC"]
    rows = np.linalg.qr(rng.normal(size=(sum(weights[name].size for name in free), 3)))[0].T
    parts = np.split(rows, np.cumsum([weights[name].size for name in free])[:-1], axis=1)
    library = LayerLibrary(
        shared={name: value for name, value in weights.items() if name not in free},
        joint={name: rng.normal(0, 0.02, weights[name].shape).astype(np.float32) for name in free},
        directions={
            name: part.reshape(-1, *weights[name].shape).astype(np.float32)
            for name, part in zip(free, parts, strict=True)
        },
        shares_K=np.array([0.5, 0.2, 0.05]),
        about={"form": form},
    )
    return LIBRARIES.keep(library.to_bytes(), LIBRARIES.here)


def picture(task: str, seed: int = 0, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """Noise around the task's own colour, with a brighter square."""
    rng = np.random.default_rng([seed, *task.encode()])
    image = rng.normal(BASE.get(task, (128, 128, 128)), 12, (height, width, 3))
    image[10:30, 12:36] += 40
    return np.clip(image, 0, 255).astype(np.uint8)


@lru_cache
def tiny_entry(task: str, form: str = "low_rank", seed: int = 0, kind: str = "public_frame") -> Entry:
    """An entry whose layer is not the identity and whose router knows `picture(task)`."""
    backbone = tiny_backbone()
    spec = router_spec(kind).completed(BackboneSpec(name="tiny"))
    z_BCHW = backbone.encode([picture(task, i) for i in range(100 + seed, 132 + seed)])
    features = torch.stack([pool(z_CHW, spec.features) for z_CHW in z_BCHW])
    f_NF, held_out = features[:24], features[24:]
    router = build_router(spec)
    state = router.fit(router.sufficient_statistics(f_NF, seed))
    layer = build_layer(form_spec(form), backbone.geometry.channels, seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return Entry(
        task=task,
        layer=weights_of(layer),
        router=dict(state),
        threshold=max(router.score(f_F, state) for f_F in held_out) + 1.0,
        provenance=Provenance(
            form=form,
            rank=8,
            router=spec.kind,
            features=spec.features,
            beta=16.5,
            sampled=False,
            backbone=backbone.digest,
            holders=("north",),
            images=24,
            stage=1,
            scenario="0" * 64,
            frame=frame_named(spec),
        ),
    )


def tiny_bank(folder: Path, *tasks: str) -> Bank:
    """A bank of these tasks, by default of both."""
    bank = Bank.open(folder, create=True)
    for stage, task in enumerate(tasks or tuple(BASE), 1):
        entry = tiny_entry(task)
        bank.add(replace(entry, provenance=replace(entry.provenance, stage=stage)))
    return bank


def files_of(folder: Path) -> dict[str, bytes]:
    """Content by relative path: what must not change."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
