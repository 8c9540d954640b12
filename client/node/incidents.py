"""Where the reason of a failure stays. The standard library alone: this also serves a client that cannot be
imported (client/node/flower_entry.py)."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from pathlib import Path

from casam_core.files import casam_home

NodeConfig = Mapping[str, str | int | float | bool]


def node_log(node: NodeConfig) -> Path:
    """Where a node writes what concerns none or several of its institutions."""
    home = Path(str(node.get("home", casam_home()))).expanduser()
    return home / f"node-{node.get('partition-id', 0)}.log"


def keep(reason: str, log: Path) -> str:
    """Append the reason to a log that stays here; returns the number that may leave in its place.

    A log that cannot be written does not turn a failure into an exception that would travel.
    """
    incident = secrets.token_hex(4)
    with contextlib.suppress(Exception):
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(f"incident {incident}: {reason}")
    return incident
