"""One entry: what a task's alignment and recognition take, as one safetensors file.

An entry's name is the hash of its bytes, so whoever holds the name can check the content.
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
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from casam_core.errors import BankError

SCHEMA = 1
LAYER, ROUTER = "layer/", "router/"

HEADS = 16_384
"""Heads that a process keeps, some 2 KB each."""


@dataclass(frozen=True)
class Provenance:
    """Where an entry comes from and what it needs to be used. No time stamps: equal runs, equal bytes.

    form, rank: the Alignment Layer's. router, features: how scores are computed; beta and sampled
    belong to the VAE's score. backbone: SHA-256 of the frozen weights. holders: the institutions that
    trained it. images: their training images together. stage: 1-based. scenario: its learned_digest.
    """

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


@dataclass(frozen=True)
class Head:
    """What an entry says about itself: all of it but its arrays."""

    task: str
    threshold: float | None
    provenance: Provenance


@dataclass(frozen=True)
class Entry:
    """What is known about one task: layer weights, router state, threshold, provenance.

    Without a threshold the entry is used by its name alone: no router ever chooses it.
    """

    task: str
    layer: dict[str, NDArray[np.float32]]
    router: dict[str, NDArray[Any]]
    threshold: float | None
    provenance: Provenance

    @property
    def head(self) -> Head:
        """Without its arrays."""
        return Head(self.task, self.threshold, self.provenance)

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
        # One metadata key: safetensors writes several in no fixed order.
        return bytes(save_tensors(tensors, metadata={"entry": json.dumps(about, sort_keys=True)}))

    @staticmethod
    def from_bytes(data: bytes) -> Entry:
        """Read an entry. Raises BankError when the bytes are not one."""
        with _reading():
            tensors, head = load_tensors(data), _head(data)
        return Entry(
            task=head.task,
            layer=_with_prefix(tensors, LAYER),
            router=_with_prefix(tensors, ROUTER),
            threshold=head.threshold,
            provenance=head.provenance,
        )


def digest_of(data: bytes) -> str:
    """An entry's name: SHA-256 of its bytes."""
    return hashlib.sha256(data).hexdigest()


@lru_cache(HEADS)
def head_in(path: Path, digest: str, task: str) -> Head:
    """The head of a task's entry file, whose content never changes under its name. Raises BankError."""
    data = read_entry(path, digest, task)
    with _reading():
        return _head(data)


def read_entry(path: Path, digest: str, task: str) -> bytes:
    """The file of a task's entry, checked against its name. Raises BankError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise BankError(f"{path} is missing (entry of task {task!r}); restore it from a copy") from error
    if (found := digest_of(data)) != digest:
        raise BankError(f"{path} was altered: its SHA-256 is {found}; restore it from a copy")
    return data


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """What bytes that are no entry raise inside comes out as BankError."""
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
    """From an entry's bytes. Raises BankError for another schema; for what is no entry see _reading."""
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
        provenance=Provenance(**{**given, "holders": tuple(given["holders"])}),
    )


def _metadata(data: bytes) -> dict[str, Any]:
    """The safetensors header's metadata: 8 bytes of length, then JSON."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata: dict[str, Any] = header["__metadata__"]
    return metadata


def _with_prefix(tensors: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
