"""The site's launcher: a Flower SuperNode that runs one bundle, the one whose hash the site's file names.

Flower fetches the client's code from the server and runs it: whoever may submit runs could ship another
client, without policy, guard and audit log. Flower can ask for bundles signed by somebody the site trusts;
the launcher trusts one key only, made at its start and kept in its memory, and signs with it what has the
pinned hash. So the comparison happens before anything is unpacked, the server is told (`INVALID_FAB`), and
whatever goes wrong in between leaves a bundle unsigned, that is refused.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casam_core.errors import DeploymentError
from client.node.node_file import NodeFile, check_node, read_node_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from flwr.supercore.fab import Fab
    from flwr.supercore.run import Run

PINNED = "pinned"
"""The name of the launcher's own key among those whose bundles Flower may run."""

FLOWER = "1.41.0"

Connect = Callable[..., AbstractContextManager[tuple[Any, ...]]]


def launch(path: Path) -> None:
    """Check the node's file and become its SuperNode; returns only by an exception or an exit.

    Raises DeploymentError or PolicyError for a site that could not work.
    """
    node = read_node_file(path)
    check_node(node)
    check_flower(importlib.metadata.version("flwr"))
    os.environ.update(environment_of(node))
    os.umask(0o077)
    flower_home = Path(os.environ["FLWR_HOME"])
    # What an earlier launch unpacked: Flower finds bundles by eight digits of their hash, ours are 64.
    if (flower_home / "apps").exists():
        shutil.rmtree(flower_home / "apps")
    flower_home.mkdir(exist_ok=True)

    # Flower reads its settings when it is imported.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    signer = Ed25519PrivateKey.generate()
    connect: Connect = vars(start_client_internal)["http_request_response"]
    vars(start_client_internal)["http_request_response"] = pinned(connect, node.bundle, signer)
    trusted = flower_home / "trusted.yaml"
    trusted.write_text(json.dumps({PINNED: public_text(signer)}))  # JSON is YAML
    sys.argv = ["flower-supernode", *arguments_of(node), "--trusted-entities", str(trusted)]
    print(f"{node.institution}: only the bundle {node.bundle} runs here", flush=True)
    flower_supernode()


def check_flower(found: str) -> None:
    """The pin wraps one of Flower's own functions: another Flower may have another way in."""
    if found != FLOWER:
        raise DeploymentError(
            f"flwr: expected {FLOWER}, for which the pin was tested, found {found}; "
            "install the kit's requirements.lock"
        )


def pinned(connect: Connect, bundle: str, signer: Ed25519PrivateKey) -> Connect:
    """The connection to a server, through which only the bundle with this hash comes signed."""

    @contextmanager
    def connection(*args: Any, **kwargs: Any) -> Iterator[tuple[Any, ...]]:
        with connect(*args, **kwargs) as (node_id, receive, send, get_run, get_fab, *objects):

            def checked_run(run_id: int) -> Run:
                run: Run = get_run(run_id)
                refuse_other_kinds(run)
                return run

            def checked_bundle(fab_hash: str, run_id: int) -> Fab:
                return signed(get_fab(fab_hash, run_id), fab_hash, bundle, signer)

            yield (node_id, receive, send, checked_run, checked_bundle, *objects)

    return connection


def signed(fab: Fab, announced: str, bundle: str, signer: Ed25519PrivateKey) -> Fab:
    """What arrived as a bundle, with the launcher's signature if it is the pinned one, else with none.

    Signatures that came along are dropped: nobody else is trusted. announced: the hash by which the run
    names its bundle.
    """
    from flwr.supercore.fab import Fab
    from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign

    digest = hashlib.sha256(fab.content).digest()
    if not digest.hex() == announced == fab.hash_str == bundle:
        print(
            f"refused: the server sends the bundle {digest.hex()} (it calls it {announced}), "
            f"this site's file allows {bundle} alone",
            flush=True,
        )
        return Fab(fab.hash_str, fab.content, {})
    moment = int(time.time())
    signature = signer.sign(create_message_to_sign(digest, moment))
    proof = {"signed_at": moment, "signature": base64.urlsafe_b64encode(signature).decode()}
    return Fab(bundle, fab.content, {"valid_license": "yes", PINNED: json.dumps(proof)})


def refuse_other_kinds(run: Run) -> None:
    """A run must be of the kind whose code is the bundle's ClientApp, and its app must have a plain name:
    Flower makes the path of the code from it. Other runs are as if they did not exist."""
    from flwr.supercore.constant import TaskType
    from flwr.supercore.run import RunNotRunningException

    plain = re.fullmatch(r"[\w.-]+/[\w.-]+", run.fab_id) and re.fullmatch(r"[\w.+-]+", run.fab_version)
    if run.primary_task_type == TaskType.AGENT_APP or not plain:
        print(f"refused: run {run.run_id} is no run of a federated app", flush=True)
        raise RunNotRunningException


def arguments_of(node: NodeFile) -> list[str]:
    """Of `flower-supernode`; it takes no other code, no other server and no other packages."""
    settings = {
        "institution": node.institution,
        "policy": node.policy,
        "home": node.home,
        "data-root": node.data_root,
        "checkpoint": node.checkpoint,
        "device": node.device,
    }
    return [
        *("--superlink", node.superlink),
        *("--root-certificates", str(node.authority)),
        *("--auth-supernode-private-key", str(node.key)),
        *("--host", "127.0.0.1", "--port", str(node.port)),
        *("--isolation", "subprocess"),
        *(
            "--node-config",
            " ".join(f'{key}="{value}"' for key, value in settings.items() if value is not None),
        ),
    ]


def environment_of(node: NodeFile) -> dict[str, str]:
    """Flower's folder in the institution's home, its parts from this environment, nothing told to anybody."""
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
    """The public key as OpenSSH writes it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return signer.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


if __name__ == "__main__":
    launch(Path(sys.argv[1]))
