"""The site's launcher: what it signs, what it refuses, and that Flower's own check then decides.

Real nodes with real bundles: tests/e2e/test_nodes.py.
"""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supernode.start_client_internal import _verify_fab

from casam_core.errors import DeploymentError
from client.node.launcher import PINNED, arguments_of, check_flower, check_port, pinned, public_text, signed
from client.node.node_file import read_node_file

BUNDLE = b"the code that the site has read"
PIN = hashlib.sha256(BUNDLE).hexdigest()
OTHER = b"the code that the server would like to run"
OTHER_HASH = hashlib.sha256(OTHER).hexdigest()


@pytest.fixture(scope="module")
def signer() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


def may_run(fab: Fab, signer: Ed25519PrivateKey) -> bool:
    """What a SuperNode asks before it stores a bundle, in its own order."""
    if not fab.verifications.get("valid_license", ""):
        return False
    return bool(_verify_fab(fab, {PINNED: public_text(signer)}))


def test_the_pinned_bundle_may_run(signer: Ed25519PrivateKey) -> None:
    assert may_run(signed(Fab(PIN, BUNDLE, {}), PIN, PIN, signer), signer)


@pytest.mark.parametrize(
    ("fab", "announced"),
    [
        (Fab(OTHER_HASH, OTHER, {}), OTHER_HASH),
        (Fab(PIN, OTHER, {}), PIN),  # the right name for the wrong code
        (Fab(OTHER_HASH, BUNDLE, {}), OTHER_HASH),  # the right code, filed under another name
        (Fab(PIN, BUNDLE, {}), OTHER_HASH),
        (Fab(PIN, BUNDLE + b"\0", {}), PIN),
        (Fab(PIN, b"", {}), PIN),
    ],
)
def test_anything_else_may_not(fab: Fab, announced: str, signer: Ed25519PrivateKey) -> None:
    assert not may_run(signed(fab, announced, PIN, signer), signer)


def test_a_signature_that_came_with_the_bundle_counts_for_nothing(signer: Ed25519PrivateKey) -> None:
    """Neither one of somebody else, nor one of this launcher for the pinned bundle, moved to another."""
    good = signed(Fab(PIN, BUNDLE, {}), PIN, PIN, signer).verifications
    for key in (signer, Ed25519PrivateKey.generate()):
        borrowed = signed(Fab(OTHER_HASH, OTHER, {}), OTHER_HASH, OTHER_HASH, key).verifications
        assert not may_run(signed(Fab(OTHER_HASH, OTHER, borrowed), OTHER_HASH, PIN, signer), signer)
    assert not may_run(Fab(OTHER_HASH, OTHER, good), signer), "Flower's own check covers the content"


RUN = replace(Run.create_empty(7), fab_id="casam/casam", fab_version="0.1.0", fab_hash=PIN)


def ask(run: Run, signer: Ed25519PrivateKey) -> Run:
    """What a SuperNode hears when it asks the server about a run through the launcher."""

    @contextmanager
    def connect() -> Iterator[tuple[Any, ...]]:
        yield (1, None, None, lambda run_id: run, lambda fab_hash, run_id: Fab(PIN, BUNDLE, {}), *[None] * 3)

    with pinned(connect, PIN, signer)() as connection:
        assert may_run(connection[4](PIN, 7), signer)
        found: Run = connection[3](7)
        return found


def test_a_run_of_a_federated_app_is_answered(signer: Ed25519PrivateKey) -> None:
    assert ask(RUN, signer) == RUN


@pytest.mark.parametrize(
    "change",
    [
        {"primary_task_type": "flwr-agentapp"},
        {"fab_version": "../../../elsewhere"},
        {"fab_id": "casam/../../elsewhere"},
        {"fab_id": "casam"},
    ],
)
def test_another_kind_of_run_and_names_that_lead_elsewhere_do_not_exist(
    change: dict[str, Any], signer: Ed25519PrivateKey
) -> None:
    with pytest.raises(RunNotRunningException):
        ask(replace(RUN, **change), signer)


def test_a_node_hears_from_the_server_when_it_answers_and_not_when_it_refuses(
    signer: Ed25519PrivateKey,
) -> None:
    """A server that does not know the node's key refuses its question for work."""
    answers, heard = [None, PermissionError("401"), None], []

    def receive() -> None:
        if isinstance(answer := answers.pop(0), Exception):
            raise answer

    @contextmanager
    def connect() -> Iterator[tuple[Any, ...]]:
        yield (1, receive, *[None] * 6)

    with pinned(connect, PIN, signer, lambda: heard.append(len(answers)))() as (_, received, *_others):
        received()
        with pytest.raises(PermissionError):
            received()
        received()
    assert heard == [2, 0]


def test_the_node_is_started_with_what_the_site_says_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(
        'institution = "north"\nsuperlink = "fl.example.org:9092"\nauthority = "ca.crt"\nkey = "node.key"\n'
        f'bundle = "{PIN}"\npolicy = "policy.toml"\nsite = "site.toml"\nhome = "home"\ndata_root = "/data"\n'
        'register = "register.json"\nsigning_key = "signing.key"\n'
    )
    arguments = arguments_of(read_node_file(tmp_path / "node.toml"))
    assert arguments == [
        *("--superlink", "fl.example.org:9092"),
        *("--root-certificates", f"{tmp_path}/ca.crt"),
        *("--auth-supernode-private-key", f"{tmp_path}/node.key"),
        *("--host", "127.0.0.1", "--port", "9094", "--isolation", "subprocess"),
        "--node-config",
        f'institution="north" policy="{tmp_path}/policy.toml" register="{tmp_path}/register.json" '
        f'signing-key="{tmp_path}/signing.key" site="{tmp_path}/site.toml" '
        f'home="{tmp_path}/home" data-root="/data"',
    ]


@pytest.mark.parametrize("found", ["1.40.3", "1.43.0", "2.41.0", "1.4", "1.41", "next"])
def test_a_flower_with_which_the_pin_was_not_tested_does_not_start(found: str) -> None:
    with pytest.raises(DeploymentError, match=rf"expected 1\.41 to 1\.42, .* found {re.escape(found)};"):
        check_flower(found)


@pytest.mark.parametrize("found", ["1.41.0", "1.42.0", "1.42.7.dev1"])
def test_a_tested_flower_starts(found: str) -> None:
    check_flower(found)


def test_a_taken_port_is_named_before_flower_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            DeploymentError, match=f"port: expected a free port, found 127.0.0.1:{port} in use"
        ):
            check_port(port)
    check_port(port)
