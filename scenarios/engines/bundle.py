"""The bundle: the code that `flwr run` sends to every node, and its hash, which sites pin."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import tomllib
from pathlib import Path

from casam_core.errors import RunError
from casam_core.protocol.fingerprint import ROOT

INSTALLED = Path(__file__).with_name("app")
"""Where an installed wheel keeps its pyproject.toml, which a clone has at its top."""


def app_settings(app: Path = ROOT) -> Path:
    """The pyproject.toml of the app in `app`. Raises RunError if there is none."""
    for folder in (app, INSTALLED) if app == ROOT else (app,):
        if (folder / "pyproject.toml").is_file():
            return folder / "pyproject.toml"
    raise RunError(f"no Flower app in {app}: expected a pyproject.toml there; install casam again")


def build_bundle(app: Path = ROOT) -> bytes:
    """The bundle of the app in `app`, as `flwr run` makes it. Raises RunError if there is no app.

    On one machine, the same files give the same bytes. Another version of zlib may give other bytes.
    """
    from flwr.cli.build import build_fab_from_disk

    with tempfile.TemporaryDirectory(prefix="casam-bundle-") as scratch:
        return build_fab_from_disk(stage_app(app, Path(scratch) / "app"))


def bundle_hash(bundle: bytes) -> str:
    """SHA-256 in hex; Flower identifies a bundle by it."""
    return hashlib.sha256(bundle).hexdigest()


def stage_app(app_dir: Path, target: Path) -> Path:
    """Copy the files that can be part of the app's bundle to `target`, and return that folder.

    `flwr run` reads every file below the app's folder, also those that it does not pack. With a virtual
    environment in a checkout this takes seconds. The copy also protects a run's code from later changes. For
    an app without `fab-include`, everything is copied except caches and hidden files.
    """
    settings = app_settings(app_dir)
    with settings.open("rb") as file:
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
    shutil.copyfile(settings, target / "pyproject.toml")
    return target
