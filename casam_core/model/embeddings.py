"""The embedding store: every image is encoded only once per backbone.

There is one file per embedding; its name is a hash of everything that the embedding depends on. Files are
written atomically, so that a crash leaves no partial file, and read through a memory map, so that memory does
not grow with the number of images. Several processes can share a store. Embeddings are patient data: only the
owner can read the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casam_core.files import write_atomic
from casam_core.model.backbones import Backbone

SCHEMA = 1
LOCK = ".lock"
StoreType = Literal["float16", "float32"]


class EmbeddingStore:
    """The embeddings of one institution, in `folder`."""

    def __init__(self, folder: Path, dtype: StoreType = "float16") -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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
            z_CHW = backbone.encode([image_HW3])[0].cpu().numpy().astype(self.dtype)
            path = self._path(key)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            buffer = io.BytesIO()
            np.save(buffer, z_CHW)
            write_atomic(path, buffer.getvalue())
            return key, self.load(key)

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
