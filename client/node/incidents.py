"""Local logs for the reasons of failures. This module needs few imports, because it must also work for a
client that cannot be imported (client/node/flower_entry.py)."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from pathlib import Path

from casam_core.errors import plain
from casam_core.files import casam_home

LONGEST = 2000
"""Characters of one line of a reason."""

NodeConfig = Mapping[str, str | int | float | bool]


def node_log(node: NodeConfig) -> Path:
    """The node's log, for failures that do not belong to exactly one of its institutions."""
    home = Path(str(node.get("home", casam_home()))).expanduser()
    return home / f"node-{node.get('partition-id', 0)}.log"


def keep(reason: str, log: Path) -> str:
    """Append the reason to a local log; return the incident number that may leave instead of it.

    Parts of a reason may come from a server: further lines are indented, so that none looks like an incident
    of its own. An error while writing the log is ignored: its exception could leave with the answer.
    """
    incident = secrets.token_hex(4)
    with contextlib.suppress(Exception):
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with log.open("a") as file:
            first, *more = (plain(line, LONGEST) for line in reason.splitlines() or [""])
            file.write("\n    ".join([f"incident {incident}: {first}", *more]) + "\n")
    return incident
