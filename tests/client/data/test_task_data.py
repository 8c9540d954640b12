"""One task's images: on an accelerator they are encoded in batches, once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from casam_core.config.data_spec import DataSpec
from casam_core.model.compute import Compute
from casam_core.model.embeddings import EmbeddingStore
from client.data import task_data
from client.data.open import open_dataset
from client.data.splits import Split
from client.data.task_data import TaskData, recent_feature
from tests.banks import tiny_backbone


def task_in(folder: Path) -> TaskData:
    spec = DataSpec(reader="phantom", phantom="polyp", images=7, size=64)
    dataset = open_dataset(spec, data_root=None, seed=0, institution="site")
    return TaskData(dataset, Split(dataset.samples, (), ()), EmbeddingStore(folder))


def test_batches_leave_the_names_and_files_that_single_images_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single, batched = task_in(tmp_path / "single"), task_in(tmp_path / "batched")
    samples, tiny = single.split.train, tiny_backbone()
    told: list[tuple[int, int]] = []
    single.encode(samples, tiny, lambda done, total: None)
    monkeypatch.setattr(Compute, "together", 3)
    batched.encode(samples[:2], tiny, lambda done, total: None)
    batched.encode(samples, tiny, lambda done, total: told.append((done, total)))
    assert told == [(done, 7) for done in range(3, 8)]
    assert batched.keys == single.keys
    assert {batched.key(sample, tiny) in batched.store for sample in samples} == {True}


def test_features_are_pooled_once_and_outlive_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal images at two places have one feature; a file that breaks before it was pooled is made again."""
    first, other = task_in(tmp_path / "first"), task_in(tmp_path / "other")
    samples, tiny = first.split.train, tiny_backbone()
    recent_feature.cache_clear()
    pooled: list[str] = []
    real = task_data.pool
    monkeypatch.setattr(task_data, "pool", lambda z_CHW, kind: (pooled.append(kind), real(z_CHW, kind))[1])
    f_NF = first.features(samples, tiny, "moments")
    assert torch.equal(other.features(samples, tiny, "moments"), f_NF)
    assert pooled == ["moments"] * len(samples)
    for file in (tmp_path / "first").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    assert torch.equal(first.features(samples, tiny, "moments"), f_NF)
    recent_feature.cache_clear()
    assert torch.equal(first.features(samples, tiny, "moments"), f_NF)
