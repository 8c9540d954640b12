"""The kit for real machines: whole, closed to others, and enough to start with."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from packaging.utils import canonicalize_name

from casam_core.config.policy import Policy
from casam_core.config.site_file import SiteFile, read_site_file
from casam_core.config.toml import read_policy
from casam_core.errors import DeploymentError
from casam_core.protocol.register import public_hex, read_register, sign_as, signing_key
from client.node.node_file import check_node, read_node_file
from scenarios.deploy import provision as kits
from scenarios.deploy.certificates import new_authority, node_key, signing_pair
from scenarios.deploy.provision import LOCK, Consortium, parse_names, provision
from scenarios.deploy.sbom import bill_of_materials, locked_packages
from scenarios.engines.bundle import build_bundle, bundle_hash
from scenarios.export.schema_pages import policy_text

CONSORTIUM = Consortium(("north", "south"), "fl.example.org:9092", ("10.0.0.7",))


def quiet(line: str) -> None:
    """Nobody reads along."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A consortium of two."""
    folder = tmp_path_factory.mktemp("consortium")
    provision(replace(CONSORTIUM, home=str(folder / "home"), data=str(folder)), folder, quiet)
    return folder


def believed(certificate: Path, authority: Path, name: str) -> bool:
    """Whether a node that trusts `authority` believes a server that calls itself `name`."""
    store = Store([x509.load_pem_x509_certificate(authority.read_bytes())])
    try:
        subject: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        subject = x509.DNSName(name)
    verifier = PolicyBuilder().store(store).build_server_verifier(subject)  # type: ignore[arg-type]
    try:
        verifier.verify(x509.load_pem_x509_certificate(certificate.read_bytes()), [])
    except VerificationError:
        return False
    return True


def test_a_kit_is_enough_to_start_with(made: Path) -> None:
    kit = made / "institutions" / "north"
    node = read_node_file(kit / "node.toml")
    with pytest.raises(DeploymentError, match="casam site init"):
        check_node(node)
    template = (kit / "site.toml").read_text()
    assert read_site_file(kit / "site.toml") == SiteFile(), "every key with its default"
    (kit / "site.toml").write_text(f'{template}\n[tasks.polyp]\npath = "polyp"\n')
    check_node(node)
    (kit / "site.toml").write_text(template)
    assert (node.institution, node.superlink) == ("north", "fl.example.org:9092")
    assert node.bundle == bundle_hash((made / "institutions" / "north" / "casam.fab").read_bytes())
    assert node.bundle == bundle_hash(build_bundle())


def test_private_keys_are_closed_and_lie_in_one_place_each(made: Path) -> None:
    private = {p for p in made.rglob("*") if p.is_file() and b"PRIVATE KEY" in p.read_bytes()}
    expected = ["operator/ca.key", "operator/server.key", "operator/signing.key"]
    expected += [
        f"institutions/{name}/{key}.key" for name in CONSORTIUM.institutions for key in ("node", "signing")
    ]
    assert {str(p.relative_to(made)) for p in private} == set(expected)
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in private)
    for folder in (made / "operator", *(made / "institutions").iterdir()):
        assert folder.stat().st_mode & 0o777 == 0o700
    for name in CONSORTIUM.institutions:
        public = (made / "institutions" / name / "node.pub").read_bytes()
        assert public.startswith(b"ecdsa-sha2-nistp384 ")
        assert (made / "operator" / "nodes" / f"{name}.pub").read_bytes() == public


@pytest.mark.parametrize("name", ["fl.example.org", "10.0.0.7", "localhost", "127.0.0.1"])
def test_the_server_is_believed_under_its_names(made: Path, name: str) -> None:
    assert believed(made / "operator" / "server.crt", made / "institutions" / "north" / "ca.crt", name)


def test_the_server_is_not_believed_under_another_name_or_by_another_authority(
    made: Path, tmp_path: Path
) -> None:
    server = made / "operator" / "server.crt"
    assert not believed(server, made / "operator" / "ca.crt", "elsewhere.example.org")
    kits.write_authority(new_authority(), tmp_path)
    assert not believed(server, tmp_path / "ca.crt", "fl.example.org")


def test_checksums_cover_every_other_file_of_a_kit(made: Path) -> None:
    kit = made / "institutions" / "south"
    sums = dict(line.split("  ")[::-1] for line in (kit / "SHA256SUMS").read_text().splitlines())
    assert set(sums) | {"SHA256SUMS"} == {path.name for path in kit.iterdir()}
    for name, digest in sums.items():
        assert hashlib.sha256((kit / name).read_bytes()).hexdigest() == digest


def test_a_policy_template_is_the_default_policy_with_and_without_its_comments(tmp_path: Path) -> None:
    text = policy_text("north")
    (tmp_path / "policy.toml").write_text(text)
    assert read_policy(tmp_path / "policy.toml") == Policy()
    keys = re.findall(r"^# ([a-z_.]+ = .*)$", text, re.MULTILINE)
    values = "\n".join(key for key in keys if not key.endswith("= ..."))
    assert Policy.model_validate(tomllib.loads(values)) == Policy()
    named = {key.split(" =")[0] for key in keys}
    assert {"adapter.share", "router.noise", "metrics", "budget.epsilon", "max_bytes", "on_leave"} <= named


def test_more_institutions_leave_the_others_as_they_are(tmp_path: Path) -> None:
    provision(Consortium(("north",), "fl:9092"), tmp_path, quiet)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    said: list[str] = []
    provision(Consortium(("north", "east"), "fl:9092"), tmp_path, said.append)
    changed = {p.relative_to(tmp_path).as_posix() for p in before if p.read_bytes() != before[p]}
    kit = "institutions/north"
    assert changed == {"operator/register.json", f"{kit}/register.json", f"{kit}/SHA256SUMS"}
    assert any(line.startswith("north: kept") for line in said)
    assert said[-1] == "register: 2 institutions; deliver register.json to east, north"
    provision(Consortium(("north", "east"), "fl:9092"), tmp_path, said.append)
    assert said[-1] == "register: 2 institutions; unchanged"
    registers = [read_register(path) for path in tmp_path.rglob("register.json")]
    assert [sorted(register.institutions) for register in registers] == [["east", "north"]] * 3
    assert (tmp_path / "operator" / "nodes" / "east.pub").is_file()


def test_every_copy_of_the_register_names_the_same_keys(made: Path, tmp_path: Path) -> None:
    copies = [path.read_bytes() for path in made.rglob("register.json")]
    assert len(copies) == 3
    assert len(set(copies)) == 1
    register = read_register(made / "operator" / "register.json")
    for name, keys in register.institutions.items():
        kit = made / "institutions" / name
        assert keys.signing == public_hex(signing_key(kit / "signing.key"))
        assert keys.node == hashlib.sha256((kit / "node.pub").read_bytes()).hexdigest()
    assert register.server == public_hex(signing_key(made / "operator" / "signing.key"))


def test_a_site_with_its_own_key_gets_into_the_register_by_its_public_part(tmp_path: Path) -> None:
    provision(Consortium(("north",), "fl:9092"), tmp_path, quiet)
    private, public = signing_pair()
    kit = tmp_path / "institutions" / "north"
    (kit / "signing.pub").write_bytes(public)
    (kit / "node.pub").write_bytes(node_public := node_key()[1])
    (kit / "notes").mkdir()
    provision(Consortium(("north",), "fl:9092"), tmp_path, quiet)
    assert (tmp_path / "operator" / "nodes" / "north.pub").read_bytes() == node_public, (
        "the operator registers it"
    )
    (kit / "signing.key").write_bytes(private)
    (kit / "node.toml").write_text((kit / "node.toml").read_text().replace("/data", str(tmp_path)))
    node = read_node_file(kit / "node.toml")
    assert sign_as("north", node.signing_key, node.register_file, {})
    (kit / "signing.pub").unlink()
    with pytest.raises(DeploymentError, match=r"expected node.pub and signing.pub in every kit"):
        provision(Consortium(("north",), "fl:9092"), tmp_path, quiet)


def test_a_renewed_server_is_believed_by_the_kits_that_are_out_there(tmp_path: Path) -> None:
    provision(Consortium(("north",), "fl:9092"), tmp_path, quiet)
    server, authority = tmp_path / "operator" / "server.crt", tmp_path / "institutions" / "north" / "ca.crt"
    before = server.read_bytes()
    provision(Consortium(("north",), "fl-new:9092"), tmp_path, quiet, renew_server=True)
    assert server.read_bytes() != before
    assert believed(server, authority, "fl-new")
    assert believed(server, authority, "fl"), "the kits before know the server by this name"


def test_a_kit_never_names_a_server_that_its_node_would_not_believe(tmp_path: Path) -> None:
    provision(Consortium(("north",), "fl:9092"), tmp_path, quiet)
    with pytest.raises(
        DeploymentError, match=r"expected a name in .*server.crt \(fl, localhost, 127.0.0.1\), found "
    ):
        provision(Consortium(("north", "east"), "elsewhere:9092"), tmp_path, quiet)
    assert not (tmp_path / "institutions" / "east").exists()


def test_a_new_kit_pins_the_bundle_that_the_operator_gave_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provision(Consortium(("north",), "fl:9092"), tmp_path, quiet)
    monkeypatch.setattr(kits, "build_bundle", lambda: b"a later version")
    for renew in (False, True):
        with pytest.raises(DeploymentError, match="expected the bundle of this checkout"):
            provision(Consortium(("east",), "fl:9092"), tmp_path, quiet, renew_server=renew)
    assert not (tmp_path / "institutions" / "east").exists()
    provision(Consortium(("north",), "fl:9092"), tmp_path, quiet)  # new keys of old kits go on
    (tmp_path / "operator" / "casam.fab").write_bytes(b"a later version")
    provision(Consortium(("east",), "fl:9092"), tmp_path, quiet)
    assert (tmp_path / "institutions" / "east" / "casam.fab").read_bytes() == b"a later version"


@pytest.mark.parametrize(
    ("consortium", "words"),
    [
        (Consortium(("../north",), "fl:9092"), "expected lower case letters"),
        (Consortium(("north",), "fl"), "server: expected HOST:PORT"),
        (Consortium(("north",), "https://fl.example.org:9092"), "server: expected HOST:PORT"),
        (Consortium(("north",), "klinik-süd.example.org:9092"), "server: expected HOST:PORT"),
        (Consortium(("north",), "fl:99999"), "server: expected HOST:PORT"),
        (Consortium(("north",), "fl:9092", ("klinik süd",)), "names: expected host names"),
        (Consortium(("north",), "fl:9092", home="home"), "home: expected an absolute path"),
        (Consortium(("north",), "fl:9092", data="/my images"), "data: expected an absolute path"),
    ],
)
def test_bad_input_writes_nothing(tmp_path: Path, consortium: Consortium, words: str) -> None:
    with pytest.raises(DeploymentError, match=words):
        provision(consortium, tmp_path / "out", quiet)
    assert not (tmp_path / "out").exists()


def test_without_a_lock_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kits, "LOCK", tmp_path / "none.lock")
    with pytest.raises(DeploymentError, match="run from a clone"):
        provision(Consortium(("north",), "fl:9092"), tmp_path / "out", quiet)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", " , ", "a,a"])
def test_names_are_given_once_each(text: str) -> None:
    with pytest.raises(DeploymentError, match="separated by commas, each once"):
        parse_names(text)
    assert parse_names("a, b") == ("a", "b")


def test_the_bill_of_materials_names_every_package_with_hash_and_the_weights_with_licence() -> None:
    bill = json.loads(bill_of_materials(LOCK.read_text(), "1.2.3"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    components = {component["name"]: component for component in bill["components"]}
    pins = dict(
        line.split("==")
        for line in (LOCK.parent / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    by_name = {canonicalize_name(name): version for name, version in pins.items()}
    for package in locked_packages(LOCK.read_text()):
        assert components[package.name]["version"] == by_name[canonicalize_name(package.name)]
        assert components[package.name]["hashes"]
    (weights,) = [c for c in bill["components"] if c["type"] == "machine-learning-model"]
    assert weights["hashes"][0]["content"].startswith("79d8c9dca6db")
    assert weights["licenses"] == [{"license": {"acknowledgement": "declared", "id": "Apache-2.0"}}]
    without = {c["name"] for c in bill["components"] if "licenses" not in c}
    assert without <= {"cuda-toolkit", "segment-anything"}, "these declare none in their metadata"


def test_the_lock_holds_every_dependency() -> None:
    project = tomllib.loads((LOCK.parent / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["medical"]]
    names = {canonicalize_name(re.split(r"[\[<>=!~; ]", text)[0]) for text in wanted}
    locked = {canonicalize_name(package.name) for package in locked_packages(LOCK.read_text())}
    assert names <= locked, "run `make lock`"


def test_a_kits_container_is_as_confined_as_the_demos(made: Path) -> None:
    (node,) = yaml.safe_load((made / "institutions" / "north" / "compose.yml").read_text())[
        "services"
    ].values()
    assert node["command"] == ["casam", "node", "--metrics", "9095", "/site/node.toml"]
    assert "http://127.0.0.1:9095/health" in node["healthcheck"]["test"][-1], "healthy: the server knows it"
    assert (node["read_only"], node["cap_drop"], node["user"]) == (True, ["ALL"], "10001:10001")
    assert ".:/site:ro" in node["volumes"]
    places = read_node_file(made / "institutions" / "north" / "node.toml")
    assert {f"home:{places.home}", node["volumes"][1]} <= set(node["volumes"])
    assert node["volumes"][1].endswith(f":{places.data_root}:ro")
    assert node["environment"] == {"CASAM_HOME": str(places.home), "HOME": str(places.home)}
    assert "ports" not in node


def test_a_kits_service_writes_below_its_home_only(made: Path) -> None:
    text = (made / "institutions" / "north" / "casam-node.service").read_text()
    lines = [line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#")]
    unit = {name: value for name, _, value in lines}
    assert unit["ExecStart"] == "/opt/casam/bin/casam node node.toml"
    assert unit["WorkingDirectory"] == "/etc/casam/north"
    assert unit["ReadWritePaths"] == str(read_node_file(made / "institutions" / "north" / "node.toml").home)
    assert (unit["ProtectSystem"], unit["UMask"], unit["CapabilityBoundingSet"]) == ("strict", "0077", "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_the_service_and_finds_it_confined(made: Path, tmp_path: Path) -> None:
    unit = tmp_path / "casam-node.service"
    text = (made / "institutions" / "north" / "casam-node.service").read_text()
    unit.write_text(text.replace("/opt/casam/bin/casam", sys.executable))
    verified = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert [line for line in verified.stderr.splitlines() if unit.name in line] == []
    exposed = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert exposed.returncode == 0, exposed.stdout + exposed.stderr
