"""What the kits' manifests for Kubernetes promise, read from them. No cluster runs them here."""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from casam_core.protocol.fingerprint import ROOT
from client.node.node_file import check_key, check_signing_key, read_node_file
from scenarios.deploy.provision import Consortium, provision

OPERATOR, SITE = "operator", "institutions/lung_clinic"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A consortium of one, whose name Kubernetes would not take."""
    folder = tmp_path_factory.mktemp("consortium")
    provision(Consortium(("lung_clinic",), "fl.example.org:19092"), folder, lambda line: None)
    return folder


def objects(made: Path, who: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((made / who / "kubernetes.yml").read_text()))


def of_kind(made: Path, who: str, kind: str) -> dict[str, Any]:
    (found,) = [item for item in objects(made, who) if item["kind"] == kind]
    return found


def pod(made: Path, who: str) -> dict[str, Any]:
    found: dict[str, Any] = of_kind(made, who, "Deployment")["spec"]["template"]["spec"]
    return found


def containers(made: Path, who: str) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in pod(made, who)["containers"]}


@pytest.mark.parametrize("who", [OPERATOR, SITE])
def test_the_schemas_of_kubernetes_accept_every_object(made: Path, who: str) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    oldest, *_, newest = importlib.import_module("kubernetes_validate.utils").all_versions()
    for item in objects(made, who):
        for version in (oldest, newest):
            kubernetes.validate(item, version, strict=True)
    broken = of_kind(made, who, "Deployment")
    broken["spec"]["template"]["spec"]["containers"][0]["comand"] = ["x"]
    with pytest.raises(kubernetes.ValidationError, match="comand"):
        kubernetes.validate(broken, newest, strict=True)


@pytest.mark.parametrize("who", [OPERATOR, SITE])
def test_no_key_is_merged_and_none_stands_twice(made: Path, who: str) -> None:
    """Readers of YAML differ in both."""

    class Strict(yaml.SafeLoader):
        """Refuses both."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys))
        assert "<<" not in keys
        return {
            loader.construct_object(k, deep=True): loader.construct_object(v, deep=True)
            for k, v in node.value
        }

    Strict.add_constructor("tag:yaml.org,2002:map", mapping)
    Strict.add_constructor("tag:yaml.org,2002:merge", lambda loader, node: "<<")
    found = list(yaml.load_all((made / who / "kubernetes.yml").read_text(), Strict))
    assert found == objects(made, who)


@pytest.mark.parametrize("who", [OPERATOR, SITE])
def test_every_container_is_as_confined_as_the_demos(made: Path, who: str) -> None:
    """The profile `restricted` of Kubernetes, which the namespace enforces, and a read-only root besides."""
    namespace = of_kind(made, who, "Namespace")
    assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    assert {item["metadata"].get("namespace") for item in objects(made, who)} == {
        None,
        namespace["metadata"]["name"],
    }
    spec = pod(made, who)
    assert spec["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001,
        "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    assert spec["automountServiceAccountToken"] is False
    for container in (*spec["initContainers"], *spec["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"].keys() == {"memory"}
        if container in spec["containers"]:
            assert {"livenessProbe", "readinessProbe"} & container.keys()
    deployment = of_kind(made, who, "Deployment")["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})


@pytest.mark.parametrize("who", [OPERATOR, SITE])
def test_every_mount_has_its_volume_and_secrets_are_read_only(made: Path, who: str) -> None:
    spec = pod(made, who)
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    claims = [
        item["metadata"]["name"] for item in objects(made, who) if item["kind"] == "PersistentVolumeClaim"
    ]
    mounted = set()
    for container in (*spec["initContainers"], *spec["containers"]):
        for mount in container["volumeMounts"]:
            mounted.add(mount["name"])
            if "secret" in volumes[mount["name"]]:
                assert container in spec["initContainers"], "a secret's own file is open to the group"
                assert mount["readOnly"] is True
    assert mounted == volumes.keys()
    used = [v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v]
    assert set(claims) == set(used) - {"casam-data"}, "the site itself makes the volume with its images"


def test_the_node_is_started_as_in_the_kits_compose_file(made: Path) -> None:
    (composed,) = yaml.safe_load((made / SITE / "compose.yml").read_text())["services"].values()
    node = containers(made, SITE)["node"]
    assert node["command"] == composed["command"]
    assert node["image"] == composed["image"]
    assert {item["name"]: item["value"] for item in node["env"]} == composed["environment"]
    assert f"{pod(made, SITE)['securityContext']['runAsUser']}:10001" == composed["user"]
    ready = node["readinessProbe"]["exec"]["command"][-1]
    assert "http://127.0.0.1:9095/health" in ready, "ready: the server knows the node"
    assert ":9094/health" in node["livenessProbe"]["exec"]["command"][-1], "alive: the process answers"
    home = read_node_file(made / SITE / "node.toml").home
    assert str(home) in [mount["mountPath"] for mount in node["volumeMounts"]]


def test_nobody_reaches_a_node_and_it_reaches_the_gateways_port_only(made: Path) -> None:
    policy = of_kind(made, SITE, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policy
    ports = [port["port"] for rule in policy["egress"] for port in rule["ports"]]
    assert ports == [53, 53, 19092]
    assert {item["metadata"]["name"] for item in objects(made, SITE) if item["kind"] == "Namespace"} == {
        "casam-lung-clinic"
    }


def test_the_superlink_is_started_as_in_the_demo_and_only_the_gateway_has_an_address(made: Path) -> None:
    demo = yaml.safe_load((ROOT / "docker" / "compose.yml").read_text())["services"]
    inside = containers(made, OPERATOR)
    moved = [word.replace("/server/", "/tls/") for word in demo["superlink"]["command"]]
    assert inside["superlink"]["command"] == [word.replace("0.0.0.0", "127.0.0.1") for word in moved]
    gateway = [word.replace("/server/", "/tls/") for word in demo["gateway"]["command"]]
    assert inside["gateway"]["command"] == [word.replace("superlink:", "localhost:") for word in gateway]
    (port,) = of_kind(made, OPERATOR, "Service")["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (19092, 9092)
    rules = of_kind(made, OPERATOR, "NetworkPolicy")["spec"]["ingress"]
    assert [(rule["ports"][0]["port"], "from" in rule) for rule in rules] == [(9092, False), (9464, True)]


def mounted_secret(folder: Path, files: Iterator[Path]) -> None:
    """A folder as kubelet mounts a secret with fsGroup: links to files that the group can read."""
    inside = folder / "..data"
    inside.mkdir(parents=True)
    for file in files:
        copy = inside / file.name
        copy.write_bytes(file.read_bytes())
        copy.chmod(0o440)
        (folder / file.name).symlink_to(f"..data/{file.name}")


def test_a_nodes_first_step_closes_the_keys_also_when_it_runs_again(made: Path, tmp_path: Path) -> None:
    mounted_secret(tmp_path / "kit", (path for path in (made / SITE).iterdir() if path.name != "casam.fab"))
    (tmp_path / "site").mkdir()
    with pytest.raises(Exception, match="others may read"):
        check_key(tmp_path / "kit" / "node.key")
    (step,) = pod(made, SITE)["initContainers"]
    for _ in range(2):
        run_step(step["command"], tmp_path)
        check_key(tmp_path / "site" / "node.key")
        check_signing_key(read_node_file(tmp_path / "site" / "node.toml"))


def test_the_servers_first_step_keeps_what_lies_beside_the_register(made: Path, tmp_path: Path) -> None:
    wanted = ("ca.crt", "server.crt", "server.key", "register.json", "signing.key")
    mounted_secret(tmp_path / "secret", (made / OPERATOR / name for name in wanted))
    for folder in ("state/server", "tls"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "state" / "server" / "heads.json").write_text("seen")
    (step,) = pod(made, OPERATOR)["initContainers"]
    for _ in range(2):
        run_step(step["command"], tmp_path)
    assert (tmp_path / "state" / "server" / "heads.json").read_text() == "seen"
    for key in (tmp_path / "state" / "server" / "signing.key", tmp_path / "tls" / "server.key"):
        assert key.stat().st_mode & 0o777 == 0o400
    assert (tmp_path / "state" / "server" / "register.json").is_file()


def run_step(command: list[str], root: Path) -> None:
    """Run a shell line of a manifest with its folders below `root`."""
    *shell, line = command
    for folder in ("/kit", "/site", "/secret", "/state", "/tls"):
        line = line.replace(f" {folder}", f" {root}{folder}")
    subprocess.run([*shell, line], check=True)
