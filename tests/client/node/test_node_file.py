"""The site's file about its node: what is wrong with it is said before anything starts."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tomli_w
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casam_core.config.scenario import Scenario
from casam_core.errors import CasamError, DeploymentError
from casam_core.protocol.register import Keys, Register, new_signing_key, public_hex
from client.identity import identity_of
from client.institution import Institution
from client.node import node_file
from client.node.node_file import check_node, claim_home, node_settings, read_node_file
from client.site import hosted_sites
from scenarios.deploy.certificates import new_authority, node_key, write_authority, write_private
from tests.banks import tiny_backbone

SITES = ("north", "south")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The file of a site that could start."""
    write_authority(new_authority(), tmp_path)
    write_private(tmp_path / "node.key", node_key()[0])
    (tmp_path / "policy.toml").touch()
    keys = {name: Keys(signing=public_hex(new_signing_key(tmp_path / f"{name}.key"))) for name in SITES}
    (tmp_path / "signing.key").write_bytes((tmp_path / "north.key").read_bytes())
    (tmp_path / "signing.key").chmod(0o600)
    register = Register(institutions=keys, server="ab" * 32)
    (tmp_path / "register.json").write_bytes(register.text())
    (tmp_path / "site.toml").write_text('[tasks.polyp]\npath = "polyp"\n')
    (tmp_path / "empty.toml").touch()
    facts = {
        "institution": "north",
        "superlink": "fl.example.org:9092",
        "authority": "ca.crt",
        "key": "node.key",
        "register": "register.json",
        "signing_key": "signing.key",
        "bundle": "ab" * 32,
        "policy": "policy.toml",
        "site": "site.toml",
        "home": "home",
    }
    (tmp_path / "node.toml").write_text(tomli_w.dumps(facts))
    return tmp_path / "node.toml"


def test_paths_start_from_the_files_own_folder(site: Path) -> None:
    node = read_node_file(site)
    check_node(node)
    assert node.key == site.parent / "node.key"
    assert node.home.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('bundle = "latest"', "bundle: string should match pattern"),
        ('superlink = "https://fl.example.org"', "superlink: string should match pattern"),
        ('serverlink = "x:1"', "unknown key 'serverlink'; docs/deployment.md lists all keys"),
        ('policy = "none.toml"', "no such policy file"),
        ('site = "none.toml"', "no such site file"),
        ('site = "empty.toml"', r"site: expected a table \[tasks.NAME\]"),
        ('key = "ca.crt"', "is not a private key"),
        ('authority = "node.key"', "authority: .* is not a certificate"),
        ('data_root = "nowhere"', "data_root: .* does not exist"),
        ('mirror = "node.toml"', "mirror: expected a folder that this user can read"),
        ('mirror = "nowhere"', "mirror: expected a folder that this user can read"),
        ('signing_key = "node.key"', "signing_key: .* expected a private key in PEM"),
        ('signing_key = "none.key"', "signing_key: .* expected a private key in PEM"),
        ('register = "node.toml"', "register, .* expected the register of the consortium's keys"),
        ('institution = "south"', "expected the key .* for 'south', found the key"),
        ("home = 'a\"b'", "home: expected a path without quotes"),
    ],
)
def test_a_fault_is_one_line(site: Path, change: str, words: str) -> None:
    key = change.partition(" =")[0]
    kept = [line for line in site.read_text().splitlines() if not line.startswith(f"{key} =")]
    site.write_text("\n".join([*kept, change]))
    with pytest.raises(CasamError, match=words) as caught:
        check_node(read_node_file(site))
    assert "\n" not in str(caught.value)


def test_a_mirror_in_the_file_is_the_sites(site: Path, tiny_scenario: Scenario) -> None:
    """From node.toml over the settings that the node gives its app to the site and what it says of itself."""
    (site.parent / "entries").mkdir()
    site.write_text(site.read_text() + 'mirror = "entries"\n')
    node = read_node_file(site)
    check_node(node)
    (found,) = hosted_sites(tiny_scenario, "run", node_settings(node), {})
    assert found.mirror == site.parent / "entries"
    for mirror in (found.mirror, None):
        institution = Institution(replace(found, mirror=mirror), tiny_scenario, tiny_backbone())
        institution.holdings = dict  # type: ignore[method-assign]
        assert identity_of([institution]).mirrored is (mirror is not None)


def test_a_key_that_others_may_read_is_refused(site: Path) -> None:
    (site.parent / "node.key").chmod(0o640)
    with pytest.raises(DeploymentError, match=r"others may read .*chmod 600"):
        check_node(read_node_file(site))


def test_a_key_of_another_kind_is_refused(site: Path) -> None:
    other = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_private(site.parent / "node.key", other)
    with pytest.raises(DeploymentError, match="expected a P-384 key, found Ed25519"):
        check_node(read_node_file(site))


def test_a_key_with_a_password_is_refused(site: Path) -> None:
    """As `ssh-keygen` makes it; no node could ask for the password."""

    def text(content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + content

    public = base64.b64decode(node_key()[1].split()[1])
    derived = text(text(bytes(16)) + (16).to_bytes(4, "big"))
    head = b"openssh-key-v1\0" + text(b"aes256-ctr") + text(b"bcrypt") + derived
    body = base64.b64encode(head + (1).to_bytes(4, "big") + text(public) + text(bytes(64)))
    mark = b"OPENSSH PRIVATE KEY-----\n"
    write_private(site.parent / "node.key", b"-----BEGIN " + mark + body + b"\n-----END " + mark)
    with pytest.raises(
        DeploymentError, match="is not a private key without a password: Key is password-protec"
    ):
        check_node(read_node_file(site))


def test_an_expired_authority_is_named(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + timedelta(days=4000)

    monkeypatch.setattr(node_file, "datetime", Later)
    with pytest.raises(DeploymentError, match="expired on"):
        check_node(read_node_file(site))


def test_a_home_belongs_to_one_institution(site: Path) -> None:
    """Approvals, ledger and audit log in it would count for both."""
    node, owner = read_node_file(site), site.parent / "home" / "institution"
    check_node(node)
    assert not owner.exists(), "a check writes nothing that a node reads"
    claim_home(node)
    check_node(node)  # a second start
    claim_home(node)
    assert owner.read_text() == "north"
    owner.write_text("south")
    with pytest.raises(DeploymentError, match="home: expected a folder of north's own, found that of south"):
        check_node(read_node_file(site))
