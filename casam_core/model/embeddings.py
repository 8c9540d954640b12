"""The embedding store: every image is encoded only once per backbone.

There is one file per embedding; its name is a hash of everything that the embedding depends on. Files are
written atomically, so that a crash leaves no partial file, and read through a memory map, so that memory does
not grow with the number of images. Several processes can share a store. Embeddings are patient data: only the
owner can read the folder.

On an accelerator, images are encoded in batches of one size (`Compute.together`); while it computes, the
processor reads and resizes the next images, and writes the last embeddings.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casam_core.files import make_folder, write_atomic
from casam_core.model.backbones import Backbone
from casam_core.model.compute import LOADERS, read_ahead

SCHEMA = 1
LOCK = ".lock"
StoreType = Literal["float16", "float32"]
DTYPES = {"float16": torch.float16, "float32": torch.float32}


class EmbeddingStore:
    """The embeddings of one institution, in `folder`."""

    def __init__(self, folder: Path, dtype: StoreType = "float16") -> None:
        make_folder(folder, 0o700)
        folder.chmod(0o700)
        self.folder = folder
        self.dtype = dtype

    def key(self, image_HW3: NDArray[np.uint8], backbone: Backbone) -> str:
        """SHA-256 of the pixels and of everything else that the embedding depends on."""
        about = {
            "schema": SCHEMA,
            "shape": image_HW3.shape,
            "transform": backbone.transform,
            "backbone": backbone.digest,
            "variant": backbone.compute.variant,
            "dtype": self.dtype,
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        digest.update(np.ascontiguousarray(image_HW3).data)
        return digest.hexdigest()

    def __contains__(self, key: str) -> bool:
        return self._path(key).exists()

    def embed(self, image_HW3: NDArray[np.uint8], backbone: Backbone) -> tuple[str, Tensor]:
        """(key, z_CHW float32): from the store, or encoded now and stored.

        The result always has the store's precision, so that the first use of an image gives the same bits
        as later ones. If a file is damaged, the image is encoded again.
        """
        key = self.key(image_HW3, backbone)
        with contextlib.suppress(KeyError):
            return key, self.load(key)
        with self._alone(key):
            with contextlib.suppress(KeyError):
                return key, self.load(key)  # another process was faster
            self._write(key, self._started([backbone.resized(image_HW3)], backbone)()[0])
            return key, self.load(key)

    def fill(
        self, images: Sequence[Callable[[], NDArray[np.uint8]]], backbone: Backbone
    ) -> Iterator[tuple[int, str]]:
        """(i, key) of every image as soon as its embedding is stored, in any order.

        images: functions that load them; several threads call them. Other processes may encode the same
        image at the same time; their files are equal.
        """
        size = backbone.compute.together

        def prepared(i: int) -> tuple[int, str, Tensor | None]:
            image_HW3 = images[i]()
            key = self.key(image_HW3, backbone)
            return i, key, None if key in self else backbone.resized(image_HW3)

        def written(
            part: Sequence[tuple[int, str, Tensor]], wait: Callable[[], Tensor]
        ) -> Iterator[tuple[int, str]]:
            list(threads.map(self._write, [key for _, key, _ in part], wait()))
            yield from ((i, key) for i, key, _ in part)

        with ThreadPoolExecutor(min(LOADERS, os.cpu_count() or 1)) as threads:
            batch: list[tuple[int, str, Tensor]] = []
            flying: Iterator[tuple[int, str]] = iter(())
            all_read = read_ahead(threads, prepared, len(images), 2 * size)
            for done, (i, key, image_hw3) in enumerate(all_read, 1):
                if image_hw3 is None:
                    yield i, key
                else:
                    batch.append((i, key, image_hw3))
                if batch and (len(batch) == size or done == len(images)):
                    started = written(batch, self._started([image for _, _, image in batch], backbone))
                    yield from flying  # the batch before, while the device computes this one
                    batch, flying = [], started
            yield from flying

    def _started(self, images: list[Tensor], backbone: Backbone) -> Callable[[], Tensor]:
        """Start to encode at most `together` resized images; the function that is returned waits for z_BCHW.

        A smaller batch is filled up with its last image, so that an embedding does not depend on how many
        other images are encoded with it.
        """
        spare = backbone.compute.together - len(images)
        z_BCHW = backbone.encode_resized(images + images[-1:] * spare)[: len(images)]
        return backbone.compute.fetched(z_BCHW.to(DTYPES[self.dtype]))

    def _write(self, key: str, z_CHW: Tensor) -> None:
        path = self._path(key)
        make_folder(path.parent, 0o700)
        buffer = io.BytesIO()
        np.save(buffer, z_CHW.numpy())
        write_atomic(path, buffer.getvalue())

    @contextlib.contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """A lock per key: no other process encodes this image meanwhile. It ends with the process.

        It locks one byte of one file per key, so nothing remains to clean up. On a file system without
        locks, two processes may encode the same image; the files are still complete.
        """
        handle = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with contextlib.suppress(OSError):
                fcntl.lockf(handle, fcntl.LOCK_EX, 1, int(key[:15], 16))  # offsets end at 2^63
            yield
        finally:
            os.close(handle)  # unlocks

    def load(self, key: str) -> Tensor:
        """z_CHW float32 of a stored embedding. Raises KeyError if its file is missing or damaged."""
        try:
            mapped = np.load(self._path(key), mmap_mode="r", allow_pickle=False)
        except (FileNotFoundError, EOFError, ValueError) as error:
            raise KeyError(key) from error
        return torch.from_numpy(mapped.astype(np.float32))

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npy"
