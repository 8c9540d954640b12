"""The kits for real machines: one folder per institution, and a separate folder for the operator."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from casam_core.config.scenario import NAME
from casam_core.errors import CasamError, DeploymentError
from casam_core.files import new_folder
from casam_core.protocol.fingerprint import ROOT
from casam_core.protocol.register import REGISTER, SIGNING_KEY, Keys, Register, public_hex, signing_key
from scenarios.deploy.addresses import host_and_port
from scenarios.deploy.certificates import (
    general_name,
    last_moment,
    names_in,
    new_authority,
    node_key,
    read_authority,
    signing_pair,
    write_authority,
    write_private,
    write_public,
    write_server,
)
from scenarios.deploy.sbom import bill_of_materials
from scenarios.engines.bundle import build_bundle, bundle_hash
from scenarios.export.schema_pages import policy_text
from scenarios.inspection.site_files import site_text

TEMPLATES = Path(__file__).parent / "templates"
LOCK = ROOT / "requirements-node.lock"
"""A site's requirements: every package with the hashes of its files."""


@dataclass(frozen=True)
class Consortium:
    """The institutions' names and their server.

    server: host:port. names: more host names or addresses in the server's certificate. home, data: the
    institution's home, and the folder with its images, in its node.toml, containers and service.
    """

    institutions: tuple[str, ...]
    server: str
    names: tuple[str, ...] = ()
    home: str = "/home/casam"
    data: str = "/data"

    @property
    def server_names(self) -> list[str]:
        """All names in the certificate: the server's host, `names`, and the loopback."""
        host, _ = host_and_port(self.server, "server")
        return list(dict.fromkeys([host, *self.names, "localhost", "127.0.0.1"]))

    @property
    def port(self) -> str:
        """Of the server."""
        return str(host_and_port(self.server, "server")[1])

    def check(self) -> None:
        """Raise DeploymentError for a word that a kit's files cannot hold."""
        for name in self.institutions:
            if not re.fullmatch(NAME, name):
                raise DeploymentError(
                    f"institution {name!r}: expected lower case letters, digits, '-' and '_'"
                )
        host_and_port(self.server, "server")
        for name in self.names:
            if not re.fullmatch(r"[A-Za-z0-9.:*_-]+", name):
                raise DeploymentError(f"names: expected host names or addresses, found {name!r}")
        for key, path in (("home", self.home), ("data", self.data)):
            # systemd, compose and Kubernetes read these signs each in its own way.
            if not re.fullmatch(r"/[^\s\"'\\%$:]+", path):
                raise DeploymentError(
                    f"{key}: expected an absolute path without blanks, quotes, '\\', '%', '$' and ':', "
                    f"found {path!r}"
                )


def provision(
    consortium: Consortium, out: Path, say: Callable[[str], None], *, renew_server: bool = False
) -> None:
    """Write `out`/operator and `out`/institutions/NAME; existing folders are kept.

    Every kit and the operator get the register of all names and keys. If the register changes, because an
    institution joins or a public key in a kit was replaced, the new one is written to the kept kits, too.

    Args:
        say: shows a line per folder.
        renew_server: make a new server certificate from the same authority.

    Raises:
        DeploymentError: a name or the server is malformed, or does not fit what the operator's folder holds.
    """
    consortium.check()
    lock, bundle = read_lock(), build_bundle()
    operator = out / "operator"
    folders = {name: out / "institutions" / name for name in consortium.institutions}
    if not operator.exists():
        make_operator(consortium, operator, bundle)
    elif renew_server:
        renew_certificate(consortium, operator)
    else:
        check_certificate(consortium, operator)
    new = {name: folder for name, folder in folders.items() if not folder.exists()}
    if new:
        check_bundle(operator, bundle)
    end = last_moment(operator / "server.crt")
    say(f"operator: {operator}; the server's certificate is valid until {end:%Y-%m-%d}")
    for name, folder in folders.items():
        if name in new:
            make_kit(name, consortium, folder, operator / "ca.crt", bundle, lock)
        say(f"{name}: {folder if name in new else f'kept {folder}'}")
    write_register(out, say)


def write_register(out: Path, say: Callable[[str], None]) -> None:
    """Write the register of all kits in `out` to each of them and to the operator's folder, which also gets
    the public keys of their nodes.

    Raises DeploymentError if a kit holds no valid public keys.
    """
    operator, found = out / "operator", (out / "institutions").iterdir()
    kits = sorted(path for path in found if path.is_dir() and not path.name.startswith("."))
    try:
        institutions = {kit.name: keys_of(kit) for kit in kits}
        server = public_hex(signing_key(operator / SIGNING_KEY))
        text = Register(institutions=institutions, server=server).text()
    except (OSError, ValueError, CasamError) as error:
        raise DeploymentError(
            f"{out}: expected node.pub and signing.pub in every kit and signing.key at the operator, found a "
            f"missing or other file: {error}; put the public keys there, or use a new --out"
        ) from error
    changed = [kit for kit in kits if not is_file_with(kit / REGISTER, text)]
    for kit in changed:
        write_public(kit / REGISTER, text)
        write_public(kit / "SHA256SUMS", checksums(files_in(kit)))
    write_public(operator / REGISTER, text)
    for kit in kits:
        write_public(operator / "nodes" / f"{kit.name}.pub", (kit / "node.pub").read_bytes())
    told = f"deliver register.json to {', '.join(kit.name for kit in changed)}" if changed else "unchanged"
    say(f"register: {len(kits)} institutions; {told}")


def keys_of(kit: Path) -> Keys:
    """The public keys of a kit."""
    node = hashlib.sha256((kit / "node.pub").read_bytes()).hexdigest()
    return Keys(signing=(kit / "signing.pub").read_text(encoding="utf-8").strip(), node=node)


def is_file_with(path: Path, content: bytes) -> bool:
    """Whether a file has this content."""
    return path.is_file() and path.read_bytes() == content


def files_in(kit: Path) -> dict[str, bytes]:
    """The files of a kit, without its list of checksums."""
    files = (path for path in kit.iterdir() if path.is_file() and path.name != "SHA256SUMS")
    return {path.name: path.read_bytes() for path in files}


def renew_certificate(consortium: Consortium, operator: Path) -> None:
    """Write a new server certificate. Sites know the server by the names of the old one, so it keeps them."""
    names = dict.fromkeys([*consortium.server_names, *names_in(operator / "server.crt")])
    write_server(read_authority(operator), list(names), operator)


def check_certificate(consortium: Consortium, operator: Path) -> None:
    """Raise DeploymentError if a node would not believe the server under one of its names."""
    known = names_in(operator / "server.crt")
    if missing := [name for name in consortium.server_names if str(general_name(name).value) not in known]:
        raise DeploymentError(
            f"server: expected a name in {operator / 'server.crt'} ({', '.join(known)}), found {missing[0]}; "
            "correct --server, or add the name with --renew-server"
        )


def check_bundle(operator: Path, bundle: bytes) -> None:
    """Raise DeploymentError if a new kit would pin another bundle than the kits before it."""
    if not is_file_with(operator / "casam.fab", bundle):
        raise DeploymentError(
            f"{operator}: expected the bundle of this checkout, which a new kit pins, found another one; use "
            "the checkout that made it, or, if the institutions pin this checkout's bundle now, run "
            f"`casam bundle build --out {operator / 'casam.fab'}`"
        )


def make_operator(consortium: Consortium, folder: Path, bundle: bytes) -> None:
    """Write the operator's folder, completely or not at all."""
    with new_folder(folder) as unfinished:
        unfinished.chmod(0o700)
        authority = new_authority()
        write_authority(authority, unfinished)
        write_server(authority, consortium.server_names, unfinished)
        (unfinished / "nodes").mkdir()
        write_private(unfinished / SIGNING_KEY, signing_pair()[0])
        write_public(unfinished / "casam.fab", bundle)
        about = {
            "server": consortium.server,
            "bundle": bundle_hash(bundle),
            "port": consortium.port,
            "version": importlib.metadata.version("casam"),
        }
        write_public(unfinished / "README.md", from_template("operator.md", about))
        write_public(unfinished / "kubernetes.yml", from_template("operator-kubernetes.yml", about))


def make_kit(
    name: str, consortium: Consortium, folder: Path, authority: Path, bundle: bytes, lock: str
) -> None:
    """Write one institution's folder, completely or not at all; write_register completes it."""
    version = importlib.metadata.version("casam")
    private, public = node_key()
    signing, signing_public = signing_pair()
    node = {
        "institution": name,
        "superlink": consortium.server,
        "authority": "ca.crt",
        "key": "node.key",
        "register": REGISTER,
        "signing_key": SIGNING_KEY,
        "bundle": bundle_hash(bundle),
        "policy": "policy.toml",
        "site": "site.toml",
        "home": consortium.home,
        "data_root": consortium.data,
    }
    about = {
        "institution": name,
        "superlink": consortium.server,
        "version": version,
        "home": consortium.home,
        "data": consortium.data,
        # A name of a namespace has no underscore.
        "place": name.replace("_", "-").rstrip("-"),
        "port": consortium.port,
    }
    files: dict[str, bytes] = {
        "README.md": from_template("institution.md", about),
        "compose.yml": from_template("institution-compose.yml", about),
        "kubernetes.yml": from_template("institution-kubernetes.yml", about),
        "casam-node.service": from_template("institution.service", about),
        "node.toml": tomli_w.dumps(node).encode(),
        "policy.toml": policy_text(name).encode(),
        "site.toml": site_text({}).encode(),
        "node.pub": public,
        "signing.pub": signing_public,
        "ca.crt": authority.read_bytes(),
        "casam.fab": bundle,
        "requirements.lock": lock.encode(),
        "sbom.cdx.json": bill_of_materials(lock, version).encode(),
    }
    with new_folder(folder) as unfinished:
        unfinished.chmod(0o700)
        for file, content in files.items():
            write_public(unfinished / file, content)
        write_private(unfinished / "node.key", private)
        write_private(unfinished / SIGNING_KEY, signing)


def checksums(files: Mapping[str, bytes]) -> bytes:
    """SHA256SUMS of these files, in the format of `sha256sum -c`."""
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items())]
    return "".join(lines).encode()


def read_lock() -> str:
    """A site's hash-locked requirements. Raises DeploymentError."""
    if not LOCK.is_file():
        raise DeploymentError(f"{LOCK} is missing; run from a clone of the project")
    return LOCK.read_text(encoding="utf-8")


def from_template(name: str, values: Mapping[str, str]) -> bytes:
    """A file of templates/ with its $variables replaced."""
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    return string.Template(text).substitute(values).encode()


def parse_names(text: str) -> tuple[str, ...]:
    """Names separated by commas, each once. Raises DeploymentError."""
    names: Sequence[str] = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise DeploymentError(f"expected names separated by commas, each once, found {text!r}")
    return tuple(names)
