"""One entry: the Alignment Layer and the router state of a task, in one safetensors file.

The name of an entry is the hash of its bytes, so the name is enough to check the content.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from casam_core.errors import BankError

SCHEMA = 1
LAYER, ROUTER = "layer/", "router/"

HEADS = 16_384
"""The number of heads that a process caches, about 2 KB each."""


@dataclass(frozen=True)
class Provenance:
    """The origin of an entry and the requirements for its use.

    It has no time stamps, so that equal runs give equal bytes.

    form, rank: of the Alignment Layer. router, features: how scores are computed; frame: SHA-256 of the
    router's public frame, "" for a router without one; beta, sampled: only for the VAE's score. backbone:
    SHA-256 of the frozen weights. holders: the institutions that trained it.
    images: the number of their training images together. stage: starts at 1. scenario: its learned_digest.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True)

    form: str
    rank: int
    router: str
    features: str
    beta: float
    sampled: bool
    backbone: str
    holders: tuple[str, ...]
    images: int
    stage: int
    scenario: str
    frame: str = ""


PROVENANCE = TypeAdapter(Provenance)


@dataclass(frozen=True)
class Head:
    """An entry without its arrays."""

    task: str
    threshold: float | None
    provenance: Provenance
    correction: float | None = None


@dataclass(frozen=True)
class Entry:
    """The entry of one task: layer weights, router state, threshold, provenance.

    threshold: None if no router may choose the entry; it can then only be used by its name. correction: what
    the decoder's estimates of the IoU lack on the mean; None if the holders did not tell.
    """

    task: str
    layer: dict[str, NDArray[np.float32]]
    router: dict[str, NDArray[Any]]
    threshold: float | None
    provenance: Provenance
    correction: float | None = None

    @property
    def head(self) -> Head:
        """The entry without its arrays."""
        return Head(self.task, self.threshold, self.provenance, self.correction)

    def to_bytes(self) -> bytes:
        """The entry as a safetensors file; equal entries give equal bytes."""
        tensors = {LAYER + name: np.asarray(value, order="C") for name, value in self.layer.items()}
        tensors |= {ROUTER + name: np.asarray(value, order="C") for name, value in self.router.items()}
        about = {
            "schema": SCHEMA,
            "task": self.task,
            "threshold": self.threshold,
            "provenance": asdict(self.provenance),
        }
        about |= {} if self.correction is None else {"correction": self.correction}
        # Only one metadata key, because safetensors writes several keys in no fixed order.
        return bytes(save_tensors(tensors, metadata={"entry": json.dumps(about, sort_keys=True)}))

    @staticmethod
    def from_bytes(data: bytes) -> Entry:
        """Read an entry. Raises BankError for bytes that are not a valid entry."""
        with _reading():
            tensors, head = load_tensors(data), _head(data)
        return Entry(
            task=head.task,
            layer=_with_prefix(tensors, LAYER),
            router=_with_prefix(tensors, ROUTER),
            threshold=head.threshold,
            provenance=head.provenance,
            correction=head.correction,
        )


def digest_of(data: bytes) -> str:
    """The name of an entry: SHA-256 of its bytes."""
    return hashlib.sha256(data).hexdigest()


@lru_cache(HEADS)
def head_in(path: Path, digest: str, task: str) -> Head:
    """The head of an entry file; cached, because a digest always names the same content. Raises BankError."""
    data = read_entry(path, digest, task)
    with _reading():
        return _head(data)


def read_entry(path: Path, digest: str, task: str) -> bytes:
    """The bytes of a task's entry file, checked against its digest. Raises BankError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise BankError(f"{path} is missing (entry of task {task!r}); restore it from a copy") from error
    if (found := digest_of(data)) != digest:
        raise BankError(f"{path} was altered: its SHA-256 is {found}; restore it from a copy")
    return data


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Turn the errors that reading an invalid entry can raise into BankError."""
    try:
        yield
    except (
        SafetensorError,
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
        RecursionError,
        struct.error,
    ) as error:
        raise BankError(f"not an entry file: {type(error).__name__}: {error}") from error


def _head(data: bytes) -> Head:
    """The head in the bytes of an entry. Raises BankError for another schema, else see _reading."""
    about = json.loads(_metadata(data)["entry"])
    if not isinstance(about["task"], str):
        raise TypeError(f"task: expected text, found {about['task']!r}")
    given = about["provenance"]
    unknown = set(given) - {field.name for field in fields(Provenance)}
    if about["schema"] != SCHEMA or unknown:
        raise BankError(
            f"entry has schema {about['schema']} and unknown keys {sorted(unknown)}, this version "
            f"reads schema {SCHEMA}; use the version of casam that wrote it"
        )
    return Head(
        task=about["task"],
        threshold=None if about["threshold"] is None else float(about["threshold"]),
        provenance=PROVENANCE.validate_json(json.dumps(given)),
        correction=_correction(about.get("correction")),
    )


def _correction(value: float | None) -> float | None:
    if value is not None and not -1 <= value <= 1:
        raise ValueError(f"correction: expected a number from -1 to 1, found {value!r}")
    return value if value is None else float(value)


def _metadata(data: bytes) -> dict[str, Any]:
    """The metadata in the safetensors header: 8 bytes of length, then JSON."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata: dict[str, Any] = header["__metadata__"]
    return metadata


def _with_prefix(tensors: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
