"""The register: which key belongs to which name; and statements that are signed with these keys (Ed25519).

`casam provision` makes one for a consortium. Every site and the server keep their own copy, so nobody can
later add a name or change a key at another party. A simulation makes the keys for its run
(register_of_run); everything else is the same code.

A statement is a JSON object. Its `role` says what it is, so that a signature under one kind of statement is
none under another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
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
from pydantic import Field, ValidationError

from casam_core.config.scenario import Name
from casam_core.config.section import Section
from casam_core.errors import CasamError
from casam_core.files import make_folder, state_of, write_atomic

REGISTER, SIGNING_KEY = "register.json", "signing.key"
"""File names. The server's signing key lies beside the server's copy of the register."""

VERSION = 1


class RegisterError(CasamError):
    """The register cannot be read, or it does not hold this institution's key."""

    code = "register"


class Keys(Section):
    """The public keys of one institution."""

    signing: str = Field(pattern="^[0-9a-f]{64}$", description="Its Ed25519 key, in hex.")
    node: str = Field(
        "",
        pattern="^([0-9a-f]{64})?$",
        description="SHA-256 of its node's public key; empty in a simulation.",
    )


class Register(Section):
    """All institutions of a consortium and their server, by public key."""

    version: int = Field(VERSION, ge=VERSION, le=VERSION, description="Of this format.")
    institutions: dict[Name, Keys] = Field(description="By name.")
    server: str = Field(pattern="^[0-9a-f]{64}$", description="The server's Ed25519 key, in hex.")

    def is_by(self, name: str, statement: Mapping[str, Any], signature: str) -> bool:
        """Whether the institution that is registered as `name` signed this statement."""
        keys = self.institutions.get(name)
        return keys is not None and is_signed(keys.signing, statement, signature)

    def text(self) -> bytes:
        """The register as a file."""
        return (json.dumps(self.model_dump(), indent=2, sort_keys=True) + "\n").encode()


def read_register(path: Path) -> Register:
    """The register in a file. Raises RegisterError.

    A file that did not change since is not read again: a site asks at every message, and the file has a line
    for every institution.
    """
    try:
        return _read(path, state_of(path))
    except OSError as error:
        raise unreadable(path) from error


@lru_cache(maxsize=4)
def _read(path: Path, state: tuple[int, ...]) -> Register:
    """The register in a file that is in this state."""
    try:
        register = Register.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise unreadable(path) from error
    signing = [keys.signing for keys in register.institutions.values()] + [register.server]
    if len(set(signing)) < len(signing):
        raise RegisterError(f"{path}: expected one signing key per name, found a key of several names")
    return register


def unreadable(path: Path) -> RegisterError:
    """The fault of a file that is no register."""
    return RegisterError(
        f"{path}: expected the register of the consortium's keys (register.json of `casam provision`), "
        "found no such file or another content; ask the operator for the register again"
    )


def register_of_run(folder: Path, names: Iterable[str]) -> Path:
    """The file of the register of a simulation in its run folder; the first call makes all keys.

    The institutions' private keys lie in their private folders, the server's beside the register.
    """
    path = folder / REGISTER
    if path.exists():
        return path
    homes = {name: folder / "institutions" / name / "private" for name in names}
    keys = {
        name: Keys(signing=public_hex(new_signing_key(home / SIGNING_KEY))) for name, home in homes.items()
    }
    server = public_hex(new_signing_key(folder / SIGNING_KEY))
    write_atomic(path, Register(institutions=keys, server=server).text())
    return path


def sign_as(name: str, key: Path, register: Path, statement: Mapping[str, Any]) -> str:
    """The institution's signature. Raises RegisterError if the register holds another key for it."""
    try:
        own = signing_key(key)
    except SigningError as error:
        raise RegisterError(str(error)) from error
    keys = read_register(register).institutions.get(name)
    if keys is None or keys.signing != public_hex(own):
        found = "no key" if keys is None else f"the key {keys.signing[:12]}"
        raise RegisterError(
            f"{register}: expected the key {public_hex(own)[:12]} of {key} for {name!r}, found {found}; "
            "compare both files with the institution's kit"
        )
    return signature_of(own, statement)


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
