"""Certificates and keys: an authority for one consortium, the server's certificate, and a key per node.

Nodes authenticate the server by TLS and the authority's certificate. The server authenticates nodes by their
registered public keys. Flower needs node keys as OpenSSH files.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from casam_core.errors import DeploymentError
from casam_core.files import write_atomic
from casam_core.protocol.register import private_pem, public_hex

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397

CURVE = ec.SECP384R1()


@dataclass(frozen=True)
class Authority:
    """A certificate authority. It signs server certificates; its key stays with the operator."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def new_authority(name: str = "casam consortium") -> Authority:
    """A self-signed authority that may sign server certificates and no further authorities."""
    key = ec.generate_private_key(CURVE)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _certificate(subject, subject, key.public_key(), key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    return Authority(certificate, key)


def server_certificate(authority: Authority, names: Sequence[str]) -> tuple[bytes, bytes]:
    """(certificate, private key) as PEM for a server with these host names or IP addresses."""
    key = ec.generate_private_key(CURVE)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    certificate = (
        _certificate(
            subject, authority.certificate.subject, key.public_key(), authority.key.public_key(), SERVER_DAYS
        )
        .add_extension(x509.SubjectAlternativeName([general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(authority.key, hashes.SHA384())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key_pem(key)


def node_key() -> tuple[bytes, bytes]:
    """(private, public) P-384 key of a node in OpenSSH format."""
    key = ec.generate_private_key(CURVE)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, public + b"\n"


def public_pem(path: Path) -> bytes:
    """A node's public key, as Flower keeps it. Raises DeploymentError."""
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise DeploymentError(
            f"{path}: expected a node's public key (NAME.pub of `casam provision` or `casam deploy key`), "
            f"found: {error}"
        ) from error
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def signing_pair() -> tuple[bytes, bytes]:
    """(private, public) Ed25519 key of an institution or the server: PEM, and 64 hex digits."""
    key = Ed25519PrivateKey.generate()
    return private_pem(key), f"{public_hex(key)}\n".encode()


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as unencrypted PEM; the mode of its file protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_authority(folder: Path) -> Authority:
    """The authority that write_authority wrote to `folder`. Raises DeploymentError."""
    certificate, key = folder / "ca.crt", folder / "ca.key"
    try:
        loaded = serialization.load_pem_private_key(key.read_bytes(), None)
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise DeploymentError(
            f"{folder}: expected the authority's ca.crt and ca.key there: {error}"
        ) from error
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise DeploymentError(f"{key}: expected an elliptic curve key")
    return Authority(found, loaded)


def names_in(certificate: Path) -> tuple[str, ...]:
    """The host names and addresses of a server's certificate. Raises DeploymentError."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise DeploymentError(f"{certificate}: expected the server's certificate there: {error}") from error
    return tuple(str(name.value) for name in names)


def last_moment(certificate: Path) -> datetime:
    """When a server's certificate ends. Raises DeploymentError if that is over."""
    end = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    if end < datetime.now(UTC):
        raise DeploymentError(
            f"{certificate}: expected a valid certificate, found one that ended on {end:%Y-%m-%d}, so no "
            "node connects; make a new one with `casam provision ... --renew-server`"
        )
    return end


def write_authority(authority: Authority, folder: Path) -> None:
    """Write ca.crt, readable for all, and ca.key, readable only for its owner."""
    write_public(folder / "ca.crt", authority.certificate.public_bytes(serialization.Encoding.PEM))
    write_private(folder / "ca.key", key_pem(authority.key))


def write_server(authority: Authority, names: Sequence[str], folder: Path) -> None:
    """Write server.crt, readable for all, and server.key, for a server with these `names`."""
    certificate, key = server_certificate(authority, names)
    write_private(folder / "server.key", key)
    write_public(folder / "server.crt", certificate)


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read."""
    write_atomic(path, data)  # the temporary file has mode 0600 from its first byte
    path.chmod(0o600)


def write_public(path: Path, data: bytes) -> None:
    """Write a file that all users may read."""
    write_atomic(path, data)
    path.chmod(0o644)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    days: int,
) -> x509.CertificateBuilder:
    start = datetime.now(UTC) - timedelta(hours=1)  # clocks differ
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key),
            critical=False,
        )
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def general_name(name: str) -> x509.IPAddress | x509.DNSName:
    """The name as a certificate holds it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
