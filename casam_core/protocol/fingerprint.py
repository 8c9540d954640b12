"""Which code is running: a hash over the product's own sources.

A stale local SuperLink can make Flower's workers import another checkout; comparing fingerprints at
identify turns that silent mix-up into an error.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("casam_core", "client", "server", "scenarios")


@lru_cache(maxsize=1)
def code_fingerprint() -> str:
    """16 hex digits over every .py and .toml file of the product, by relative path and content."""
    digest = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*")):
            if path.suffix in (".py", ".toml") and "__pycache__" not in path.parts:
                content = path.read_bytes()
                digest.update(f"{path.relative_to(ROOT).as_posix()}\0{len(content)}\0".encode())
                digest.update(content)
    return digest.hexdigest()[:16]
