"""Pooled features of phantom and real images, stored because encoding an image takes a second of a core."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from casam_core.config.data_spec import DataSpec
from casam_core.files import write_atomic
from casam_core.model.backbones import Backbone
from casam_core.routing.features import FEATURES, pool
from client.data.dataset import Dataset
from client.data.open import open_dataset

SEED, INSTITUTION = 7, "bench"
SAVE_EVERY = 16

Features = dict[str, NDArray[np.float32]]
"""By kind of feature, f_NF of images 0..N-1."""


def describe(backbone: Backbone, image_HW3: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """By kind of feature, f_F of one image.

    The embedding is rounded to half precision before pooling, as the embedding store rounds it.
    """
    z_CHW = backbone.encode([image_HW3])[0].cpu().half().float()
    return {kind: pool(z_CHW, kind).numpy() for kind in FEATURES}


def phantom_features(
    backbone: Backbone,
    modality: str,
    images: int,
    home: Path,
    say: Callable[[str], None],
) -> Features:
    """Features of the first `images` phantoms of `modality`; only those not yet in `home` are encoded."""
    spec = DataSpec(reader="phantom", phantom=modality, images=max(images, 3))
    dataset = open_dataset(spec, data_root=None, seed=SEED, institution=INSTITUTION)
    return stored_features(backbone, modality, dataset, images, home, say)


def folder_features(
    backbone: Backbone, folder: str, images: int, data_root: Path, home: Path, say: Callable[[str], None]
) -> Features:
    """The same of at most `images` images of a folder of real ones, in the order of their names."""
    dataset = open_dataset(DataSpec(path=folder), data_root=data_root, seed=SEED, institution=INSTITUTION)
    return stored_features(backbone, f"real-{folder}", dataset, min(images, len(dataset.samples)), home, say)


def stored_features(
    backbone: Backbone, name: str, dataset: Dataset, images: int, home: Path, say: Callable[[str], None]
) -> Features:
    """Features of the first images of a dataset; only those not yet in `home` are encoded."""
    path = home / f"{name}-embedding-{backbone.digest[:12]}{suffix_of(backbone)}.npz"
    rows: dict[str, list[NDArray[np.float32]]] = {kind: [] for kind in FEATURES}
    if path.exists():
        with np.load(path) as file:
            rows = {kind: list(file[kind]) for kind in FEATURES}
    for number in range(len(next(iter(rows.values()))), images):
        described = describe(backbone, dataset.load(dataset.samples[number]).image_HW3)
        for kind in FEATURES:
            rows[kind].append(described[kind])
        if (number + 1) % SAVE_EVERY == 0 or number + 1 == images:
            save(path, rows)
            say(f"encode {name}: {number + 1}/{images}")
    return {kind: np.stack(values[:images]) for kind, values in rows.items()}


def suffix_of(backbone: Backbone) -> str:
    """Nothing for the plain encoder; the embeddings of another one differ by rounding."""
    encoder = backbone.compute.encoder
    return "" if encoder == "plain" else f"-{encoder}"


def save(path: Path, rows: dict[str, list[NDArray[np.float32]]]) -> None:
    """Write the file, completely or not at all."""
    content = io.BytesIO()
    np.savez(content, **{kind: np.stack(values) for kind, values in rows.items()})  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content.getvalue())
