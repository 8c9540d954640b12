"""An operator's actions at a running SuperLink: register and revoke keys, list nodes, run a scenario."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from rich.console import Console

from casam_core.config.scenario import Scenario
from casam_core.errors import DeploymentError, RunError
from casam_core.protocol.fingerprint import ROOT
from scenarios.deploy.certificates import public_pem
from scenarios.engines.bundle import stage_app
from scenarios.engines.flower import NO_SUPERLINK, UNREACHABLE, submit, terminable
from scenarios.engines.live import live_view
from scenarios.engines.run import check_completed, settings_of
from scenarios.engines.superlink import SuperLink, flwr, variables_for

ONLINE = "online"
KNOWN_ALREADY = re.compile(r"already (in use|registered|exists)", re.IGNORECASE)


@contextlib.contextmanager
def remote_superlink(address: str, authority: Path) -> Iterator[SuperLink]:
    """The SuperLink at `address` (host:port); `authority` signed its certificate. Raises DeploymentError."""
    if not authority.is_file():
        raise DeploymentError(f"--authority: no certificate at {authority}; it is the operator's ca.crt")
    with tempfile.TemporaryDirectory(prefix="casam-") as scratch:
        home = Path(scratch)
        table = {"address": address, "root-certificates": str(authority.resolve())}
        connection = '[superlink]\ndefault = "own"\n[superlink.own]\n' + tomli_w.dumps(table)
        (home / "config.toml").write_text(connection, encoding="utf-8")
        yield SuperLink(home, variables_for(home, home), None, 0)


def run_remotely(
    scenario: Scenario,
    folder: Path,
    register: Path,
    address: str,
    authority: Path,
    console: Console,
    relay: Path | None = None,
) -> None:
    """Run the scenario on the nodes that are connected to the SuperLink. Raises RunError if it failed.

    folder: the run folder. register: the register, beside the server's signing key. relay: a relay's folder
    of questions, which the run then answers. The SuperLink's processes write and read all three, on this
    machine or on a shared volume.
    """
    with terminable(), remote_superlink(address, authority) as link, live_view(console) as show:
        app = stage_app(ROOT, link.home / "app")
        run = submit(link, app, app_settings(scenario, folder, register, relay), show)
    result = "relay.json" if relay else "summary.json"
    check_completed(run, folder, str(folder / "events.jsonl"), result)


def app_settings(
    scenario: Scenario, folder: Path, register: Path, relay: Path | None = None
) -> dict[str, str | int | float | bool]:
    """Flower's run config. Its processes work in a folder of their own, so a relative path starts here."""
    files = {"register": register} | ({"relay": relay} if relay else {})
    whole = {key: str(path.expanduser().absolute()) for key, path in files.items()}
    return settings_of(scenario, folder) | whole


def register(link: SuperLink, public_key: Path) -> int | None:
    """Register a node's key. Returns the node's number, None if it was registered.

    Raises DeploymentError if there is no such file, RunError if the SuperLink refuses it.
    """
    if not public_key.is_file():
        raise DeploymentError(
            f"{public_key}: expected a node's public key, found no file; check the path (`casam provision` "
            "writes them to operator/nodes)"
        )
    answer = ask(link, "register", str(public_key.absolute()), "own")  # `flwr` runs in another folder
    if answer.get("success"):
        return int(answer["node-id"])
    if KNOWN_ALREADY.search(reason := reason_of(answer)):
        return None
    raise RunError(f"{public_key}: the SuperLink did not register this key: {reason}")


def unregister(link: SuperLink, node: int) -> None:
    """Revoke the node's access at once, also while it is connected. Raises RunError."""
    answer = ask(link, "unregister", str(node), "own")
    if not answer.get("success"):
        raise RunError(f"node {node} could not be revoked: {reason_of(answer)}")


def list_nodes(link: SuperLink) -> dict[int, str]:
    """Every registered node and whether it is `online`, `offline` or only `registered`. Raises RunError."""
    answer = ask(link, "list", "own")
    if not answer.get("success"):
        raise RunError(f"the SuperLink did not list its nodes: {reason_of(answer)}")
    return {int(node["node-id"]): str(node["status"]) for node in answer["nodes"]}


def names_of_nodes(link: SuperLink, keys: Sequence[Path]) -> dict[int, str]:
    """By number, the file of a registered node's public key, of those in `keys`. Raises DeploymentError.

    `flwr supernode list` tells no keys, so this asks as it does, and reads more of the answer.
    """
    from flwr.proto.control_pb2 import ListNodesRequest
    from flwr.supercore.control import ControlHttpClient

    files = {public_pem(key): key.name for key in keys}
    own = tomllib.loads((link.home / "config.toml").read_text(encoding="utf-8"))["superlink"]["own"]
    trust = Path(own["root-certificates"]).read_bytes()
    with ControlHttpClient.from_server_address(
        server_address=own["address"], insecure=False, root_certificates=trust, interceptors=[]
    ) as client:
        nodes = client.ListNodes(ListNodesRequest()).nodes_info
    return {node.node_id: files[node.public_key] for node in nodes if node.public_key in files}


def ask(link: SuperLink, *arguments: str) -> dict[str, Any]:
    """The answer of `flwr supernode ...`; output that is not JSON becomes an error message.

    Raises RunError if no SuperLink answers.
    """
    result = flwr(link, "supernode", *arguments, "--format", "json")
    if UNREACHABLE in result.stdout + result.stderr:
        raise RunError(NO_SUPERLINK)
    try:
        answer: dict[str, Any] = json.loads(result.stdout)
    except ValueError:
        return {"error-message": result.stdout + result.stderr}
    return answer


def reason_of(answer: Mapping[str, Any]) -> str:
    """Why `flwr` did not do it, as one line."""
    return " ".join(str(answer.get("error-message", answer)).split())
