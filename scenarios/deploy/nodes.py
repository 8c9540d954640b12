"""What an operator does at a SuperLink with Flower's own command: register keys, revoke them, list nodes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from casam_core.errors import RunError
from scenarios.engines.superlink import SuperLink, flwr

ONLINE = "online"
KNOWN_ALREADY = re.compile(r"already (in use|registered|exists)", re.IGNORECASE)


def register(link: SuperLink, public_key: Path) -> int | None:
    """Let the node with this key connect: its number, None if it was known already. Raises RunError."""
    answer = ask(link, "register", str(public_key), "own")
    if answer.get("success"):
        return int(answer["node-id"])
    if KNOWN_ALREADY.search(reason := str(answer.get("error-message", answer))):
        return None
    raise RunError(f"{public_key}: the SuperLink does not register this key: {reason}")


def unregister(link: SuperLink, node: int) -> None:
    """Refuse the node from now on, also while it is connected. Raises RunError."""
    answer = ask(link, "unregister", str(node), "own")
    if not answer.get("success"):
        raise RunError(f"node {node} could not be revoked: {answer.get('error-message', answer)}")


def list_nodes(link: SuperLink) -> dict[int, str]:
    """Every registered node and whether it is `online`, `offline` or only `registered`. Raises RunError."""
    answer = ask(link, "list", "own")
    if not answer.get("success"):
        raise RunError(f"the SuperLink does not list its nodes: {answer.get('error-message', answer)}")
    return {int(node["node-id"]): str(node["status"]) for node in answer["nodes"]}


def ask(link: SuperLink, *arguments: str) -> dict[str, Any]:
    """`flwr supernode ...` as JSON; what is no JSON is an error message."""
    result = flwr(link, "supernode", *arguments, "--format", "json")
    try:
        answer: dict[str, Any] = json.loads(result.stdout)
    except ValueError:
        return {"error-message": " ".join((result.stdout + result.stderr).split())}
    return answer
