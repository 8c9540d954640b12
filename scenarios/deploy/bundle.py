"""The bundle: what `flwr run` sends to every node, and the hash by which a site pins it."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from casam_core.errors import RunError
from casam_core.protocol.fingerprint import ROOT
from scenarios.engines.flower import stage_app


def build_bundle(app: Path = ROOT) -> bytes:
    """The bundle of the app in `app`, as `flwr run` makes it. Raises RunError where there is no app.

    Same files, same bytes, on one machine; another zlib may pack the same files into other bytes.
    """
    from flwr.cli.build import build_fab_from_disk

    if not (app / "pyproject.toml").is_file():
        raise RunError(f"no Flower app in {app}: expected a pyproject.toml there; run from a clone")
    with tempfile.TemporaryDirectory(prefix="casam-bundle-") as scratch:
        return build_fab_from_disk(stage_app(app, Path(scratch) / "app"))


def bundle_hash(bundle: bytes) -> str:
    """SHA-256 in hex: Flower's own name for a bundle."""
    return hashlib.sha256(bundle).hexdigest()
