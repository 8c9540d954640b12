"""The bundle: what `flwr run` sends to every node, and the hash by which a site pins it."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import tomllib
from pathlib import Path

from casam_core.errors import RunError
from casam_core.protocol.fingerprint import ROOT


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


def stage_app(app_dir: Path, target: Path) -> Path:
    """Copy what can go into the app's bundle to `target`, and return that folder.

    `flwr run` looks at every file below the app's folder, also at files that it will not pack: seconds, with
    a virtual environment in a checkout. The copy also keeps a run's code as it was at the start. An app
    without `fab-include` names no folders: everything is copied except caches and hidden files.
    """
    with (app_dir / "pyproject.toml").open("rb") as file:
        app = tomllib.load(file).get("tool", {}).get("flwr", {}).get("app", {})
    folders = [pattern.strip("/").removesuffix("/**") for pattern in app.get("fab-include", ["*"])]
    named = ("pyproject.toml", ".gitignore", "LICENSE")
    found = {entry for pattern in (*named, *folders) for entry in app_dir.glob(pattern)}
    target.mkdir(parents=True)
    for entry in sorted(found):
        copy = target / entry.relative_to(app_dir)
        if entry.name.startswith(".") and entry.name not in named:
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if entry.is_dir() and not entry.is_symlink():
            ignored = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(entry, copy, ignore=ignored, symlinks=True)
        elif entry.is_file():
            shutil.copyfile(entry, copy)
    return target
