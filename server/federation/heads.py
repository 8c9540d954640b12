"""What the server last saw of every institution's audit log: a file beside the register, for all runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casam_core.errors import RunError
from casam_core.files import write_atomic
from casam_core.protocol.audit import SEEN, SEEN_SIGNATURE, head_at, seen_statement
from casam_core.protocol.payload import Payload, Scalar
from casam_core.protocol.register import signature_of, signing_key

HEADS = "heads.json"


class Heads:
    """The places in the institutions' logs, by institution (Line.place)."""

    def __init__(self, register: Path, key: Path) -> None:
        """register: the consortium's file. key: the server's signing key. Raises RunError."""
        self._file, self._key = register.with_name(HEADS), key
        self.places: dict[str, str] = {}
        if self._file.exists():
            try:
                known = json.loads(self._file.read_text())
                self.places = {name: place for name, place in known.items() if head_at(place, name)}
            except (OSError, ValueError, AttributeError, TypeError) as error:
                raise RunError(
                    f"{self._file}: expected what the server saw of the institutions' logs, found another "
                    "content; restore it from a copy, or delete it: then restored backups of institutions go "
                    "unnoticed once"
                ) from error

    def saw(self, name: str, place: str, *, ok: bool) -> None:
        """Remember the place of an answer. An earlier place than before counts only with a result: an
        institution that refuses because of a restored backup logs this refusal in its older log."""
        new, old = head_at(place, name), head_at(self.places.get(name, ""), name)
        if new is not None and (ok or old is None or new.sequence > old.sequence):
            self.places[name] = place

    def keep(self) -> None:
        """Write the file."""
        write_atomic(self._file, (json.dumps(self.places, indent=1, sort_keys=True) + "\n").encode())

    def told(self, requests: Mapping[str, Payload]) -> dict[str, Payload]:
        """The requests, each with the place that was seen of its institution."""
        key = signing_key(self._key)
        return {
            name: Payload({**request.config, **self.seen(name, key)}, request.arrays, request.metrics)
            for name, request in requests.items()
        }

    def seen(self, name: str, key: Ed25519PrivateKey) -> dict[str, Scalar]:
        """The settings of a request to one institution; none if nothing was seen of it."""
        place = self.places.get(name)
        if place is None:
            return {}
        return {SEEN: place, SEEN_SIGNATURE: signature_of(key, seen_statement(name, place))}
