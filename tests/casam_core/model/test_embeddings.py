"""The embedding store: encoded once, keyed by everything that matters, shared safely, private."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from casam_core.config.named_parts import BackboneSpec
from casam_core.errors import RunError
from casam_core.model.backbones import Backbone
from casam_core.model.backbones.tiny import load_tiny
from casam_core.model.compute import Compute, Halved
from casam_core.model.embeddings import LOCK, EmbeddingStore

Picture = NDArray[np.uint8]


@pytest.fixture
def encodings(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One number per call of the encoder: how many images it was given."""
    calls: list[int] = []
    encode = tiny.encode_resized

    def counted(images: list[Tensor]) -> Tensor:
        calls.append(len(images))
        return encode(images)

    monkeypatch.setattr(tiny, "encode_resized", counted)
    return calls


def stored(folder: Path) -> list[Path]:
    """Every file but the one that processes lock."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_an_image_is_encoded_once_also_by_another_store_on_the_same_folder(
    tmp_path: Path, tiny: Backbone, picture: Picture, encodings: list[int]
) -> None:
    store = EmbeddingStore(tmp_path / "store")
    first_key, first = store.embed(picture, tiny)
    for again in (store, EmbeddingStore(tmp_path / "store")):
        key, z = again.embed(picture.copy(), tiny)
        assert key == first_key
        assert torch.equal(z, first)
        assert torch.equal(again.load(key), first)
    assert encodings == [1]
    assert len(stored(tmp_path)) == 1


@pytest.mark.parametrize(("dtype", "step"), [("float16", 2e-3), ("float32", 0)])
def test_the_store_keeps_the_embedding_at_its_own_precision(
    tmp_path: Path, tiny: Backbone, picture: Picture, dtype: str, step: float
) -> None:
    store = EmbeddingStore(tmp_path, dtype=dtype)  # type: ignore[arg-type]
    exact = tiny.encode([picture])[0]
    _, z = store.embed(picture, tiny)
    assert z.dtype == torch.float32
    assert torch.equal(z, exact.to(getattr(torch, dtype)).float())
    torch.testing.assert_close(z, exact, rtol=step, atol=step)


def test_what_comes_back_may_be_changed_without_harm_to_the_store(
    tmp_path: Path, tiny: Backbone, picture: Picture
) -> None:
    store = EmbeddingStore(tmp_path)
    key, z = store.embed(picture, tiny)
    before = z.clone()
    z += 1
    assert torch.equal(store.load(key), before)


def test_the_key_changes_with_everything_the_embedding_depends_on(
    tmp_path: Path, tiny: Backbone, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EmbeddingStore(tmp_path / "a")
    keys = [store.key(picture, tiny)]
    pixel = picture.copy()
    pixel[39, 55, 2] ^= 1
    keys.append(store.key(pixel, tiny))
    keys.append(store.key(picture.reshape(56, 40, 3), tiny))  # the same bytes in another shape
    keys.append(EmbeddingStore(tmp_path / "b", dtype="float32").key(picture, tiny))
    for field, value in (("threads", 2), ("precision", "bfloat16"), ("device", "cuda:0")):
        with monkeypatch.context() as patch:
            patch.setattr(tiny, "compute", dataclasses.replace(tiny.compute, **{field: value}))
            keys.append(store.key(picture, tiny))
    for attribute, value in (("digest", "0" * 64), ("name", "other")):
        with monkeypatch.context() as patch:
            patch.setattr(tiny, attribute, value)
            keys.append(store.key(picture, tiny))
    assert len(set(keys)) == len(keys)
    assert store.key(picture, tiny) == keys[0]


def test_the_key_does_not_depend_on_how_the_pixels_lie_in_memory(
    tmp_path: Path, tiny: Backbone, picture: Picture
) -> None:
    store = EmbeddingStore(tmp_path)
    assert store.key(np.asfortranarray(picture), tiny) == store.key(picture, tiny)


def test_another_backbones_embedding_is_not_taken(
    tmp_path: Path, tiny: Backbone, picture: Picture, encodings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EmbeddingStore(tmp_path)
    store.embed(picture, tiny)
    monkeypatch.setattr(tiny, "digest", "0" * 64)
    store.embed(picture, tiny)
    assert encodings == [1, 1]


def test_only_the_owner_can_read_the_store(tmp_path: Path, tiny: Backbone, picture: Picture) -> None:
    folder = tmp_path / "store"
    folder.mkdir(mode=0o755)
    store = EmbeddingStore(folder)
    store.embed(picture, tiny)
    assert mode(folder) == 0o700
    (file,) = stored(folder)
    assert mode(file.parent) == 0o700
    assert mode(file) == 0o600


def test_an_embedding_that_is_not_there_is_a_key_error(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    assert "ab" * 32 not in store
    with pytest.raises(KeyError):
        store.load("ab" * 32)


@pytest.mark.parametrize("length", [0, 5, 60, 200, -1])
def test_a_torn_file_is_encoded_anew(
    tmp_path: Path, tiny: Backbone, picture: Picture, encodings: list[int], length: int
) -> None:
    store = EmbeddingStore(tmp_path)
    key, z = store.embed(picture, tiny)
    (file,) = stored(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:length])
    with pytest.raises(KeyError):
        store.load(key)
    assert torch.equal(store.embed(picture, tiny)[1], z)
    assert file.read_bytes() == whole
    assert encodings == [1, 1]


def test_a_crash_while_writing_leaves_nothing(
    tmp_path: Path, tiny: Backbone, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("power failure")

    store = EmbeddingStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="power failure"):
            store.embed(picture, tiny)
    assert stored(tmp_path) == []
    assert store.key(picture, tiny) not in store


def write_together(folder: Path, barrier: Barrier, turns: int) -> None:
    """Encode and store the same pictures at the same moments as another process."""
    torch.set_num_threads(1)
    backbone = load_tiny(BackboneSpec(name="tiny"), Compute("cpu", 1, "float32"))
    encode = backbone.encode_resized

    def slowly(images: Sequence[Tensor]) -> torch.Tensor:
        time.sleep(0.05)  # the other process asks meanwhile
        with (folder.parent / "encodings").open("a") as file:
            file.write(f"{int(images[0][0, 0, 0])}\n")
        return encode(images)

    backbone.encode_resized = slowly  # type: ignore[method-assign]
    store = EmbeddingStore(folder)
    for turn in range(turns):
        barrier.wait(60)
        store.embed(np.full((20, 30, 3), turn, np.uint8), backbone)


def test_two_processes_that_want_the_same_image_encode_it_once(tmp_path: Path, tiny: Backbone) -> None:
    tmp_path, turns = tmp_path / "store", 8
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    workers = [context.Process(target=write_together, args=(tmp_path, barrier, turns)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert (tmp_path.parent / "encodings").read_text().split() == [str(turn) for turn in range(turns)]
    assert len(stored(tmp_path)) == turns  # no temporary file is left
    store = EmbeddingStore(tmp_path)
    for turn in range(turns):
        image = np.full((20, 30, 3), turn, np.uint8)
        assert torch.equal(store.load(store.key(image, tiny)), tiny.encode([image])[0].half().float())


# --- Batches, as on an accelerator


@pytest.fixture
def fours(monkeypatch: pytest.MonkeyPatch) -> None:
    """An accelerator that encodes four images together."""
    monkeypatch.setattr(Compute, "together", 4)


def pictures(count: int) -> list[Picture]:
    """Pictures of several shapes."""
    return [np.random.default_rng(i).integers(0, 255, (40, 30 + i, 3), np.uint8) for i in range(count)]


@pytest.mark.usefixtures("fours")
def test_every_batch_has_the_same_size_so_an_embedding_does_not_depend_on_its_neighbours(
    tmp_path: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, encode = [], tiny.encode_resized
    monkeypatch.setattr(tiny, "encode_resized", lambda x: (sizes.append(len(x)), encode(x))[1])
    store, images = EmbeddingStore(tmp_path), pictures(10)
    known, _ = store.embed(images[3], tiny)
    found = dict(store.fill([partial(images.__getitem__, i) for i in range(10)], tiny))
    assert found == {i: store.key(image, tiny) for i, image in enumerate(images)}
    assert found[3] == known
    assert sizes == [4, 4, 4, 4]  # one image; then the nine others
    alone = EmbeddingStore(tmp_path / "alone")
    for i in (0, 8):
        assert torch.equal(store.load(found[i]), alone.embed(images[i], tiny)[1])


@pytest.mark.usefixtures("fours")
def test_few_images_are_in_memory_at_a_time(tmp_path: Path, tiny: Backbone) -> None:
    loaded: list[int] = []

    def load(i: int) -> Picture:
        loaded.append(i)
        return pictures(40)[i]

    found = EmbeddingStore(tmp_path).fill([partial(load, i) for i in range(40)], tiny)
    next(found)
    assert len(loaded) <= 16
    found.close()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("fours")
def test_an_image_that_cannot_be_read_ends_the_filling(tmp_path: Path, tiny: Backbone) -> None:
    def broken() -> Picture:
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        list(EmbeddingStore(tmp_path).fill([broken], tiny))


# --- Too little memory


def encoder_with_room_for(count: int, tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device that cannot encode more images than `count`; the sizes of all attempts."""
    sizes, encode = [], tiny._encode

    def limited(images: list[Tensor]) -> Tensor:
        sizes.append(len(images))
        if len(images) > count:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(images)

    monkeypatch.setattr(tiny, "_encode", limited)
    monkeypatch.setattr(tiny, "halved", Halved())
    return sizes


def test_what_does_not_fit_is_encoded_in_halves_from_then_on(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images = [tiny.resized(image) for image in pictures(4)]
    wanted = tiny.encode_resized(images)
    sizes = encoder_with_room_for(2, tiny, monkeypatch)
    for _ in range(2):
        torch.testing.assert_close(tiny.encode_resized(images), wanted)
    assert sizes == [4, 2, 2, 2, 2]
    assert tiny.halved.names == ["images encoded together"]
    assert "no device memory for 4 at once" in caplog.text


def test_what_does_not_fit_in_halves_either_is_an_error(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder_with_room_for(1, tiny, monkeypatch)
    with pytest.raises(RunError, match="expected device memory for 2 at once, found too little; use a"):
        tiny.encode(pictures(4))
