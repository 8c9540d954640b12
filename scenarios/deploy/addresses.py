"""HOST:PORT, as commands and files name a place in the network."""

from __future__ import annotations

import re

from casam_core.errors import DeploymentError

PLACE = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})")


def host_and_port(text: str, option: str, expected: str = "HOST:PORT") -> tuple[str, int]:
    """(host, port); an IPv6 address is without its brackets. Raises DeploymentError, which names `option`."""
    found = PLACE.fullmatch(text)
    if not found or not 0 < int(found[2]) < 65536:
        raise DeploymentError(f"{option}: expected {expected}, found {text!r}")
    return found[1].strip("[]"), int(found[2])


def address_of(text: str, option: str) -> tuple[str, int]:
    """(host, port) of `PORT` on this machine alone, or of `HOST:PORT`. Raises DeploymentError."""
    if text.isascii() and text.isdigit() and 0 < int(text) < 65536:
        return "127.0.0.1", int(text)
    return host_and_port(text, option, "PORT or HOST:PORT")
