"""Which code is running: a hash over the trusted code, which is what the Flower bundle holds.

A stale local SuperLink can make Flower's workers import another checkout. The server compares fingerprints at
identify, so that a silent mix-up becomes an error.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from casam_core.plugins import plugin_versions

ROOT = Path(__file__).resolve().parents[2]

TRUSTED = ("casam_core", "client", "server", "scenarios/library")
"""Folders that a site pins and an auditor reads. `fab-include` in pyproject.toml names the same ones."""


@lru_cache(maxsize=1)
def code_fingerprint() -> str:
    """16 hex digits over every .py and .toml file of the trusted folders, by relative path and content, and
    over the versions of installed plug-ins."""
    digest = hashlib.sha256()
    for folder in TRUSTED:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".toml") and "__pycache__" not in path.parts:
                content = path.read_bytes()
                digest.update(f"{path.relative_to(ROOT).as_posix()}\0{len(content)}\0".encode())
                digest.update(content)
    for plugin in plugin_versions():
        digest.update(f"{plugin}\0".encode())
    return digest.hexdigest()[:16]
