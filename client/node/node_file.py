"""The site's node file: the server's address, the node's key, the policy, the bundle.

The file is on the institution's disk and holds every setting that the server must not decide
(docs/deployment.md).
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from pydantic import Field, StringConstraints, ValidationError

from casam_core.config.scenario import Name
from casam_core.config.section import Digest, Section
from casam_core.config.site_file import read_site_file
from casam_core.config.toml import explain, read_policy, read_table
from casam_core.errors import CasamError, DeploymentError
from casam_core.files import write_atomic
from casam_core.protocol.register import sign_as

SuperLinkAddress = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.:\[\]_-]+:[0-9]{1,5}$")]


OWNER = "institution"
"""File in a home: the name of the institution that it belongs to."""


class NodeFile(Section):
    """One institution's node. Relative paths start from the folder of the file."""

    institution: Name = Field(description="Its name in the scenario.")
    superlink: SuperLinkAddress = Field(description="The server's host:port.")
    authority: Path = Field(description="Certificate of the authority that signed the server's (PEM).")
    key: Path = Field(description="The node's private key (OpenSSH, P-384), mode 0600.")
    # Classes of pydantic have a method `register`, so the field has a longer name than the key.
    register_file: Path = Field(
        alias="register", description="The consortium's names and keys, as `casam provision` wrote them."
    )
    signing_key: Path = Field(description="The institution's Ed25519 key (PEM), mode 0600.")
    bundle: Digest = Field(description="SHA-256 of the one bundle that may run here (casam bundle hash).")
    policy: Path = Field(description="The institution's policy.")
    site: Path = Field(description="The institution's description of its images (casam site init).")
    home: Path = Field(description="Embeddings, results, audit log and ledger; kept over all runs.")
    data_root: Path | None = Field(None, description="The paths of the site file start here.")
    checkpoint: Path | None = Field(None, description="Weights of the backbone, where none are packaged.")
    device: Literal["auto", "cpu", "mps", "cuda"] | None = Field(
        None, description="Wins over the scenario's compute.device."
    )
    mirror: Path | None = Field(
        None, description="Folder of entries, each in a file DIGEST.entry; the server then sends names only."
    )
    port: int = Field(9094, ge=1, le=65535, description="Where the node talks to itself, on 127.0.0.1.")


def node_settings(node: NodeFile) -> dict[str, str]:
    """The settings by which the institution's app knows its site (client/site.py)."""
    found = {
        "institution": node.institution,
        "policy": node.policy,
        "register": node.register_file,
        "signing-key": node.signing_key,
        "site": node.site,
        "home": node.home,
        "data-root": node.data_root,
        "checkpoint": node.checkpoint,
        "device": node.device,
        "mirror": node.mirror,
    }
    return {key: str(value) for key, value in found.items() if value is not None}


def read_node_file(path: Path) -> NodeFile:
    """The file with absolute paths. Raises DeploymentError."""
    try:
        node = NodeFile.model_validate(read_table(path, "node", DeploymentError))
    except ValidationError as error:
        raise DeploymentError(
            f"{path}: {explain(error)}".replace("docs/scenario.md", "docs/deployment.md")
        ) from error
    folder = path.expanduser().resolve().parent
    paths = {key: value for key, value in node if isinstance(value, Path)}
    return node.model_copy(update={key: folder / value.expanduser() for key, value in paths.items()})


def check_node(node: NodeFile) -> None:
    """Check before the start that the node can work. Raises DeploymentError, PolicyError or DataError."""
    check_authority(node.authority)
    check_key(node.key)
    check_signing_key(node)
    read_policy(node.policy)
    described = read_site_file(node.site)
    if not described.tasks and described.relay is None:
        raise DeploymentError(
            f"site: expected a table [tasks.NAME] in {node.site}, found none; run `casam site init FOLDER`"
        )
    for key, path in (("data_root", node.data_root), ("checkpoint", node.checkpoint)):
        if path is not None and not path.exists():
            raise DeploymentError(f"{key}: {path} does not exist; check the path")
    if (mirror := node.mirror) is not None and not (mirror.is_dir() and os.access(mirror, os.R_OK | os.X_OK)):
        raise DeploymentError(f"mirror: expected a folder that this user can read, found {mirror}")
    try:
        node.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DeploymentError(f"home: {node.home} cannot be made: {error.strerror}") from error
    if not os.access(node.home, os.R_OK | os.W_OK | os.X_OK):
        raise DeploymentError(f"home: {node.home} belongs to another user; this process cannot write there")
    check_owner(node)
    for key, value in node:
        # Flower splits the settings of a node at quotes and cannot escape them.
        if isinstance(value, Path) and re.search(r"[\"\\\n]", str(value)):
            raise DeploymentError(f"{key}: expected a path without quotes and backslashes, found {value}")


def claim_home(node: NodeFile) -> None:
    """Write the institution's name into a home without one. No check does: another user may run it."""
    if not (node.home / OWNER).exists():
        write_atomic(node.home / OWNER, node.institution.encode())


def check_owner(node: NodeFile) -> None:
    """Raise DeploymentError if another institution's name stands in the home."""
    path = node.home / OWNER
    if path.exists() and (owner := path.read_text()) != node.institution:
        raise DeploymentError(
            f"home: expected a folder of {node.institution}'s own, found that of {owner} in {node.home}; "
            "approvals, ledger and audit log belong to one institution, so give each its own"
        )


def check_authority(path: Path) -> None:
    """Raise DeploymentError unless the authority's certificate can be read and is valid today."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DeploymentError(f"authority: {path} is not a certificate: {error}") from error
    if certificate.not_valid_after_utc < datetime.now(UTC):
        raise DeploymentError(
            f"authority: {path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; "
            "ask the operator for a new one"
        )


def check_signing_key(node: NodeFile) -> None:
    """Raise DeploymentError unless only its owner can read the signing key and the register holds it."""
    try:
        sign_as(node.institution, node.signing_key, node.register_file, {})
        mode = node.signing_key.stat().st_mode
    except CasamError as error:
        raise DeploymentError(f"register, signing_key: {error}") from error
    if mode & 0o077:
        raise DeploymentError(f"signing_key: others may read it; run `chmod 600 {node.signing_key}`")


def check_key(path: Path) -> None:
    """Raise DeploymentError unless only its owner can read the key and Flower accepts it."""
    try:
        mode = path.stat().st_mode
        key = load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it has a password
        raise DeploymentError(f"key: {path} is not a private key without a password: {error}") from error
    if mode & 0o077:
        raise DeploymentError(f"key: others may read {path}; run `chmod 600 {path}`")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DeploymentError(f"key: {path}: expected a P-384 key, found {type(key).__name__}")
