"""What the operator's commands hand to Flower's `flwr`, and what they make of its answers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from casam_core.config.scenario import Scenario
from casam_core.errors import DeploymentError, RunError
from scenarios.deploy import operator
from scenarios.deploy.certificates import node_key
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
