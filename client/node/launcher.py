"""The site's launcher: a Flower SuperNode that runs only the bundle whose hash is in the site's node file.

Flower fetches the client's code from the server and runs it. A user who may submit runs could therefore send
another client, without policy, guard and audit log. Flower can require that a trusted key signed the bundle.
The launcher creates one key at its start, keeps it in memory, and trusts no other key. It signs a bundle only
if the bundle has the pinned hash. The comparison happens before the bundle is unpacked. An error in between
leaves the bundle unsigned; Flower then refuses it and tells the server (`INVALID_FAB`).
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casam_core.errors import DeploymentError
from client.node.node_file import NodeFile, check_node, claim_home, node_settings, read_node_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from flwr.supercore.fab import Fab
    from flwr.supercore.run import Run

PINNED = "pinned"
"""Name of the launcher's own key among the keys that Flower trusts."""

FLOWER = ((1, 41), (1, 42))
"""Oldest and newest Flower with which the pin was tested (tests/flower); pyproject.toml asks for the same."""

Connect = Callable[..., AbstractContextManager[tuple[Any, ...]]]


def launch(path: Path, heard: Callable[[], None] = lambda: None) -> None:
    """Check the node file and become its SuperNode; ends only with an exception or an exit.

    heard: called after every answer of the server to this node.

    Raises DeploymentError or PolicyError for a node that cannot work.
    """
    node = read_node_file(path)
    check_node(node)
    claim_home(node)
    check_flower(importlib.metadata.version("flwr"))
    check_port(node.port)
    os.environ.update(environment_of(node))
    os.umask(0o077)
    flower_home = Path(os.environ["FLWR_HOME"])
    # Remove bundles of earlier launches: Flower finds them by 8 of the 64 digits of their hash.
    if (flower_home / "apps").exists():
        shutil.rmtree(flower_home / "apps")
    flower_home.mkdir(exist_ok=True)

    # Flower reads its settings when it is imported.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    signer = Ed25519PrivateKey.generate()
    connect: Connect = vars(start_client_internal)["http_request_response"]
    vars(start_client_internal)["http_request_response"] = pinned(connect, node.bundle, signer, heard)
    trusted = flower_home / "trusted.yaml"
    trusted.write_text(json.dumps({PINNED: public_text(signer)}))  # JSON is YAML
    sys.argv = ["flower-supernode", *arguments_of(node), "--trusted-entities", str(trusted)]
    print(f"{node.institution}: this node runs only the bundle {node.bundle}", flush=True)
    flower_supernode()


def check_flower(found: str) -> None:
    """Raise DeploymentError for another Flower than the tested ones: the pin wraps an internal function."""
    oldest, newest = FLOWER
    numbers = re.match(r"(\d+)\.(\d+)\.", found)
    if not numbers or not oldest <= (int(numbers[1]), int(numbers[2])) <= newest:
        window = " to ".join(f"{major}.{minor}" for major, minor in FLOWER)
        raise DeploymentError(
            f"flwr: expected {window}, with which the pin was tested, found {found}; "
            "install the kit's requirements.lock"
        )


def check_port(port: int) -> None:
    """Raise DeploymentError if another listens where the node talks to itself; Flower names no port then."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise DeploymentError(
                f"port: expected a free port, found 127.0.0.1:{port} in use (another node, or --metrics?); "
                "choose another `port` in the node file"
            ) from error


def pinned(
    connect: Connect, bundle: str, signer: Ed25519PrivateKey, heard: Callable[[], None] = lambda: None
) -> Connect:
    """Wrap Flower's connection so that only the bundle with this hash arrives with a valid signature.

    heard: called whenever the server answers a question for work: it answers only nodes that it knows.
    """

    @contextmanager
    def connection(*args: Any, **kwargs: Any) -> Iterator[tuple[Any, ...]]:
        with connect(*args, **kwargs) as (node_id, receive, send, get_run, get_fab, *objects):

            def checked_run(run_id: int) -> Run:
                run: Run = get_run(run_id)
                refuse_other_kinds(run)
                return run

            def checked_bundle(fab_hash: str, run_id: int) -> Fab:
                return signed(get_fab(fab_hash, run_id), fab_hash, bundle, signer)

            def received() -> Any:
                message = receive()
                heard()
                return message

            yield (node_id, received, send, checked_run, checked_bundle, *objects)

    return connection


def signed(fab: Fab, announced: str, bundle: str, signer: Ed25519PrivateKey) -> Fab:
    """The received bundle, with the launcher's signature if it is the pinned one, else without a signature.

    Signatures from the server are dropped, because the launcher trusts no other key.

    Args:
        announced: the hash that the run states for its bundle.
        bundle: the pinned hash.
    """
    from flwr.supercore.fab import Fab
    from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign

    digest = hashlib.sha256(fab.content).digest()
    if not digest.hex() == announced == fab.hash_str == bundle:
        print(
            f"refused: the server sends the bundle {digest.hex()} (announced as {announced}), "
            f"but this site's node file allows only {bundle}",
            flush=True,
        )
        return Fab(fab.hash_str, fab.content, {})
    moment = int(time.time())
    signature = signer.sign(create_message_to_sign(digest, moment))
    proof = {"signed_at": moment, "signature": base64.urlsafe_b64encode(signature).decode()}
    return Fab(bundle, fab.content, {"valid_license": "yes", PINNED: json.dumps(proof)})


def refuse_other_kinds(run: Run) -> None:
    """Raise RunNotRunningException unless the run's code is the bundle's ClientApp and its app has a plain
    name, from which Flower builds the path of the code."""
    from flwr.supercore.constant import TaskType
    from flwr.supercore.run import RunNotRunningException

    plain = re.fullmatch(r"[\w.-]+/[\w.-]+", run.fab_id) and re.fullmatch(r"[\w.+-]+", run.fab_version)
    if run.primary_task_type == TaskType.AGENT_APP or not plain:
        print(f"refused: run {run.run_id} is not a run of a federated app", flush=True)
        raise RunNotRunningException


def arguments_of(node: NodeFile) -> list[str]:
    """Arguments of `flower-supernode`: the server, keys and settings of the node file, and nothing else."""
    return [
        *("--superlink", node.superlink),
        *("--root-certificates", str(node.authority)),
        *("--auth-supernode-private-key", str(node.key)),
        *("--host", "127.0.0.1", "--port", str(node.port)),
        *("--isolation", "subprocess"),
        *(
            "--node-config",
            " ".join(f'{key}="{value}"' for key, value in node_settings(node).items()),
        ),
    ]


def environment_of(node: NodeFile) -> dict[str, str]:
    """Environment variables: Flower's folder in the institution's home, Flower's commands from this Python
    environment, no telemetry. Raises DeploymentError if the commands are missing."""
    scripts = Path(sys.executable).parent
    if not (scripts / "flwr-clientapp").is_file():
        raise DeploymentError(
            f"no command flwr-clientapp beside {sys.executable}; install the kit's requirements"
        )
    return {
        "FLWR_HOME": str(node.home / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
    }


def public_text(signer: Ed25519PrivateKey) -> str:
    """The public key in OpenSSH format."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return signer.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


if __name__ == "__main__":
    launch(Path(sys.argv[1]))
