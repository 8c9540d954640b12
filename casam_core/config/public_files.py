"""Public files that a scenario names: made from public images only, the same for all institutions.

A file is named by the SHA-256 of its bytes. A site approves the scenario with this name and accepts no other
file for it. casam ships the files of the backbones whose weights are the same everywhere; for another
backbone, whoever starts a run makes them, and they travel with the scenario.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from casam_core.errors import BankError
from casam_core.files import casam_home, make_folder, write_atomic

T = TypeVar("T")
LARGEST = 1e9
"""The largest number in a public file."""


def digest_of_file(data: bytes) -> str:
    """The name of a public file: SHA-256 of its bytes."""
    return hashlib.sha256(data).hexdigest()


def file_of(folder: Path, digest: str) -> Path:
    """The file of that digest in a folder of public files."""
    return folder / f"{digest}.json"


@dataclass(frozen=True)
class PublicFiles(Generic[T]):
    """One kind of public file.

    what: the word for one in messages. folder: the name of their folder on this machine. shipped: the folder
    of those that casam ships. read: raises BankError for bytes that are no such file.
    """

    what: str
    folder: str
    shipped: Path
    read: Callable[[bytes], T]
    _read: dict[tuple[str, Path | None], T] = field(default_factory=dict, compare=False, repr=False)

    @property
    def here(self) -> Path:
        """The folder of those that were made on this machine."""
        return casam_home() / "public" / self.folder

    def keep(self, data: bytes, folder: Path) -> str:
        """Store a file in a folder and return its digest. Raises BankError for other bytes."""
        self.read(data)
        digest = digest_of_file(data)
        if not file_of(folder, digest).exists():
            make_folder(folder)
            write_atomic(file_of(folder, digest), data)
        return digest

    def data(self, digest: str, folder: Path | None = None) -> bytes:
        """The bytes of a file, from `folder` or from those that casam ships; checked against the digest.

        Raises BankError if it is in neither place, or altered.
        """
        for place in filter(None, (folder, self.shipped)):
            if (path := file_of(place, digest)).is_file():
                data = path.read_bytes()
                if digest_of_file(data) != digest:
                    raise BankError(f"{path} was altered; restore it, or delete it and start the run again")
                return data
        raise BankError(
            f"there is no {self.what} {digest[:12]} in {folder or 'this version of casam'}; copy "
            f"{digest}.json from where the run was started ($CASAM_HOME/public/{self.folder}), or from "
            f"{self.shipped.name} of the version of casam that shipped it"
        )

    def travelling(self, digest: str, folder: Path) -> list[bytes]:
        """The file if it has to be sent to others: not if casam ships it. Raises BankError.

        digest: "" for a scenario without such a file.
        """
        shipped = not digest or file_of(self.shipped, digest).is_file()
        return [] if shipped else [self.data(digest, folder)]

    def get(self, digest: str, folder: Path | None = None) -> T:
        """The content of the file; kept in memory, because a digest always names the same content.

        Raises BankError (see `data`).
        """
        if (digest, folder) not in self._read:
            self._read[digest, folder] = self.read(self.data(digest, folder))
        return self._read[digest, folder]


def packed(array: NDArray[Any], precision: str = "float32") -> dict[str, Any]:
    """An array as JSON holds it. precision: float32 or float16."""
    raw = np.ascontiguousarray(array, {"float32": "<f4", "float16": "<f2"}[precision]).tobytes()
    return {"shape": list(array.shape), precision: base64.b64encode(raw).decode()}


def unpacked(content: Mapping[str, Any], dimensions: int, precision: str = "float32") -> NDArray[np.float32]:
    """The array again. Raises KeyError, TypeError or ValueError for another form or range.

    dimensions: of the array. precision: in which its numbers are stored.
    """
    shape = tuple(int(size) for size in content["shape"])
    raw = base64.b64decode(content[precision], validate=True)
    array = np.frombuffer(raw, {"float32": "<f4", "float16": "<f2"}[precision]).reshape(shape)
    if array.ndim != dimensions or not (np.abs(array.astype(np.float64)) <= LARGEST).all():
        raise ValueError(f"expected {dimensions} dimensions and finite numbers up to {LARGEST:g}")
    return array.astype(np.float32)
