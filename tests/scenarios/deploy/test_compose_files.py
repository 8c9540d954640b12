"""What the compose files promise, read from them; `make test-deploy` tries it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from casam_core.config.library import resolve_scenario
from casam_core.protocol.fingerprint import ROOT

DOCKER = ROOT / "docker"
FILES = [("compose.yml", "demo.toml"), ("compose.nine.yml", "demo.nine.toml")]
SHARED = {"setup", "superlink", "gateway", "register", "run"}


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DOCKER / name).read_text())
    return content


def institutions(compose: dict[str, Any]) -> dict[str, Any]:
    return {name: service for name, service in compose["services"].items() if name not in SHARED}


@pytest.mark.parametrize(("name", "scenario"), FILES)
def test_the_institutions_are_the_scenarios(name: str, scenario: str) -> None:
    sites = resolve_scenario(str(DOCKER / scenario)).institutions
    compose = read(name)
    assert list(institutions(compose)) == [site.name for site in sites]
    told = [word.split(":") for word in compose["services"]["setup"]["command"][2:]]
    assert [(who, task) for who, _, task in told] == [(s.name, next(iter(s.data))) for s in sites]
    users = {who: f"{uid}:{uid}" for who, uid, _ in told}
    assert users == {who: service["user"] for who, service in institutions(compose).items()}


@pytest.mark.parametrize("name", [name for name, _ in FILES])
def test_everybody_is_confined(name: str) -> None:
    compose = read(name)
    users = []
    for who, service in compose["services"].items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all("noexec" in mount for mount in service["tmpfs"])
        assert "ports" not in service, "nothing of the demo is reachable from outside"
        assert "privileged" not in service
        if who == "setup":
            assert (service["network_mode"], service["user"]) == ("none", "0:0")
        else:
            assert service["user"].partition(":")[0] != "0"
            assert "cap_add" not in service
    users = [service["user"] for service in institutions(compose).values()]
    assert len(set(users)) == len(users)
    assert all(network == {"internal": True} for network in compose["networks"].values())


@pytest.mark.parametrize("name", [name for name, _ in FILES])
def test_an_institution_has_a_network_and_volumes_of_its_own(name: str) -> None:
    compose = read(name)
    for who, service in institutions(compose).items():
        assert service["networks"] == [who]
        assert service["volumes"] == [
            f"site-{who}:/site:ro",
            f"data-{who}:/data:ro",
            f"home-{who}:/institution",
        ]
        assert service["restart"] == "unless-stopped"
        port = service["command"][service["command"].index("--metrics") + 1]
        healthy = f"http://127.0.0.1:{port}/health"
        assert healthy in service["healthcheck"]["test"][-1], "it says whether the server knows the node"
        sharers = [other for other, s in compose["services"].items() if who in s.get("networks", [])]
        assert sorted(sharers) == sorted([who, "gateway"])
    for who in ("superlink", "register", "run"):
        assert compose["services"][who]["networks"] == ["inner"]


def test_the_file_for_nine_is_the_file_for_three_with_other_names() -> None:
    three, nine = read("compose.yml"), read("compose.nine.yml")
    for who in SHARED - {"setup", "gateway", "run"}:
        assert three["services"][who] == nine["services"][who]
    some, other = next(iter(institutions(three).items())), next(iter(institutions(nine).items()))
    renamed = str(some[1]).replace(some[0], other[0])
    assert renamed == str(other[1])
    for who in ("setup", "gateway", "run"):
        varying = {"command", "volumes", "networks"}
        one, two = ({k: v for k, v in c["services"][who].items() if k not in varying} for c in (three, nine))
        assert one == two


def test_no_version_key_and_no_syntax_line() -> None:
    """Compose v1 and v2 both take files without one; a syntax line would ask a registry."""
    for name, _ in FILES:
        assert "version" not in read(name)
    assert "syntax=" not in (DOCKER / "Dockerfile").read_text()


def test_nothing_but_code_gets_into_an_image() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*", "everything is left out first"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert not any(word in path for path in let_in for word in ("key", "crt", "env", "git", "runs", "data"))
    assert all((ROOT / path).exists() for path in let_in)
    assert Path(ROOT / "docker" / "thin.lock").exists()
