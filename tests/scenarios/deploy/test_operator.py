"""What the operator's commands hand to Flower's `flwr`, and what they make of its answers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tomli_w
from flwr.proto.control_pb2 import ListNodesRequest, ListNodesResponse
from flwr.proto.node_pb2 import NodeInfo

from casam_core.config.scenario import Scenario
from casam_core.errors import DeploymentError, RunError
from scenarios.deploy import operator
from scenarios.deploy.certificates import node_key, public_pem
from scenarios.engines.superlink import SuperLink


class Flwr:
    """Stands in for `flwr`: runs in the link's folder, reads the key that it is given, gives one answer."""

    def __init__(self, answer: dict[str, object]) -> None:
        self.answer = answer
        self.read = b""

    def __call__(self, link: SuperLink, *arguments: str) -> subprocess.CompletedProcess[str]:
        if arguments[1] == "register":
            self.read = (link.home / arguments[2]).read_bytes()
        return subprocess.CompletedProcess(arguments, 0, json.dumps(self.answer), "")


def answering(monkeypatch: pytest.MonkeyPatch, **answer: object) -> Flwr:
    flwr = Flwr(answer)
    monkeypatch.setattr(operator, "flwr", flwr)
    return flwr


@pytest.fixture
def link(tmp_path: Path) -> SuperLink:
    (tmp_path / "scratch").mkdir()
    return SuperLink(tmp_path / "scratch", {}, None, 0)


def test_a_relative_path_of_a_key_starts_where_the_operator_stands(
    link: SuperLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`casam deploy register nodes/*.pub`, as the docs say it; `flwr` itself runs in another folder."""
    monkeypatch.chdir(tmp_path)
    Path("nodes").mkdir()
    Path("nodes/north.pub").write_bytes(public := node_key()[1])
    flwr = answering(monkeypatch, **{"success": True, "node-id": "7"})
    assert operator.register(link, Path("nodes/north.pub")) == 7
    assert flwr.read == public
    with pytest.raises(
        DeploymentError, match=r"^nodes/south.pub: expected a node's public key, found no file"
    ):
        operator.register(link, Path("nodes/south.pub"))


def test_a_refusal_of_flower_is_one_line(link: SuperLink, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(
        monkeypatch, **{"success": False, "error-message": "Using SuperLink: own\n\n[code: 24] not found"}
    )
    with pytest.raises(RunError, match=r"could not be revoked: .* not found") as caught:
        operator.unregister(link, 3)
    assert "\n" not in str(caught.value)


def test_the_superlink_gets_absolute_paths_only(
    tmp_path: Path, tiny_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes work in a folder of Flower's own."""
    monkeypatch.chdir(tmp_path)
    found = operator.app_settings(tiny_scenario, tmp_path / "runs" / "first", Path("register.json"))
    assert (found["out"], found["register"]) == (str(tmp_path / "runs"), str(tmp_path / "register.json"))


def test_a_node_is_named_by_its_key(link: SuperLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a key is revoked somebody asks: which number is north's?"""
    north, south = tmp_path / "north.pub", tmp_path / "south.pub"
    for key in (north, south):
        key.write_bytes(node_key()[1])
    config = {"address": "localhost:8000", "root-certificates": str(north)}
    (link.home / "config.toml").write_text(tomli_w.dumps({"superlink": {"own": config}}))

    class Client:
        """The SuperLink knows north as 7, and somebody else as 8."""

        @classmethod
        @contextmanager
        def from_server_address(cls, **told: object) -> Iterator[Client]:
            assert (told["server_address"], told["insecure"]) == ("localhost:8000", False)
            yield cls()

        def ListNodes(self, request: ListNodesRequest) -> ListNodesResponse:  # noqa: N802
            known = ((7, public_pem(north)), (8, b"another"))
            return ListNodesResponse(nodes_info=[NodeInfo(node_id=n, public_key=key) for n, key in known])

    monkeypatch.setattr("flwr.supercore.control.ControlHttpClient", Client)
    assert operator.names_of_nodes(link, [north, south]) == {7: "north.pub"}
    (tmp_path / "east.pub").write_text("no key")
    with pytest.raises(DeploymentError, match=r"east.pub: expected a node's public key"):
        operator.names_of_nodes(link, [tmp_path / "east.pub"])
