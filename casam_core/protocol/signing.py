"""Signed statements (Ed25519): they prove which institution said something.

A statement is a JSON object. Its `role` says what it is, so that a signature under one kind of statement is
none under another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from casam_core.errors import CasamError
from casam_core.files import make_folder, write_atomic


class SigningError(CasamError):
    """A key file does not contain a usable key."""

    code = "signing"


def new_signing_key(path: Path) -> Ed25519PrivateKey:
    """The key in `path`; if there is no file, a new key, readable only by its owner. Raises SigningError."""
    if not path.exists():
        make_folder(path.parent, 0o700)
        write_atomic(path, private_pem(Ed25519PrivateKey.generate()))
    return signing_key(path)


def private_pem(key: Ed25519PrivateKey) -> bytes:
    """A private key as unencrypted PEM; the mode of its file protects it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def signing_key(path: Path) -> Ed25519PrivateKey:
    """The key in `path`. Raises SigningError."""
    try:
        key = _loaded(path.read_bytes())
    except (ValueError, TypeError, OSError) as error:
        raise SigningError(f"{path}: expected a private key in PEM; restore it or move it away") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningError(f"{path}: expected an Ed25519 key, found {type(key).__name__}")
    return key


@lru_cache(maxsize=4)
def _loaded(pem: bytes) -> object:
    """The key in a file's bytes; a site signs at every stage with the same key."""
    return load_pem_private_key(pem, password=None)


def public_hex(key: Ed25519PrivateKey) -> str:
    """The public key, 64 hex digits."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def signature_of(key: Ed25519PrivateKey, statement: Mapping[str, Any]) -> str:
    """128 hex digits over the statement as canonical JSON."""
    return key.sign(_canonical(statement)).hex()


def is_signed(public: str, statement: Mapping[str, Any], signature: str) -> bool:
    """Whether this key signed exactly this statement."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        key.verify(bytes.fromhex(signature), _canonical(statement))
    except (InvalidSignature, ValueError):
        return False
    return True


def _canonical(statement: Mapping[str, Any]) -> bytes:
    return json.dumps(statement, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
