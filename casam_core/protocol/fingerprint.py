"""The fingerprint of the running code: a hash over the trusted code, the content of the Flower bundle.

A stale local SuperLink can make Flower's workers import another checkout. The server compares fingerprints at
identify, so that such a mistake becomes an error.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from casam_core.plugins import plugin_versions

ROOT = Path(__file__).resolve().parents[2]

TRUSTED = ("casam_core", "client", "server", "scenarios/library")
"""The folders that a site pins and an auditor reads; `fab-include` in pyproject.toml lists the same."""


@lru_cache(maxsize=1)
def code_fingerprint() -> str:
    """16 hex digits: a hash over the .py and .toml files of the trusted folders and the installed plug-ins.

    The hash covers relative paths, file contents, and the names and versions of the plug-ins.
    """
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
