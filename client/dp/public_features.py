"""Public features that a private router compares with: those of phantom images, which show no patient."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from casam_core.config.data_spec import DataSpec
from casam_core.model.backbones import Backbone
from casam_core.model.embeddings import EmbeddingStore
from casam_core.routing.features import pool
from client.data.open import open_dataset
from client.data.phantoms import PHANTOMS

SEED, IMAGES = 0, 8
"""Fixed, so that all institutions with the same backbone have the same public features."""


@lru_cache(maxsize=4)
def public_features_of(backbone: Backbone, features: str, folder: Path) -> tuple[NDArray[np.float64], ...]:
    """f_NF of every phantom modality. Phantoms are encoded once per store and painted once per process.

    folder: the embedding store.
    """
    tasks, store = [], EmbeddingStore(folder)
    for modality in sorted(PHANTOMS):
        spec = DataSpec(reader="phantom", phantom=modality, images=IMAGES)
        dataset = open_dataset(spec, data_root=None, seed=SEED, institution="public")
        embeddings = [store.embed(dataset.load(s).image_HW3, backbone)[1] for s in dataset.samples]
        tasks.append(np.stack([pool(z_CHW, features).double().numpy() for z_CHW in embeddings]))
    return tuple(tasks)
