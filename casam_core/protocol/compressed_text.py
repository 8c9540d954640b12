"""Bytes and long texts as JSON and messages carry them: zlib in base64.

A scenario names every institution, and says much the same of each.
"""

from __future__ import annotations

import base64
import zlib
from functools import lru_cache

LARGEST = 1 << 26
"""Most bytes that are expanded: 64 MB are a scenario of some 78,000 institutions."""


def compress(data: bytes) -> str:
    """The inverse of expand."""
    return base64.b64encode(zlib.compress(data, 9)).decode()


def expand(compressed: str) -> bytes:
    """The bytes. Raises ValueError for a text that `compress` did not make, or of more than LARGEST bytes."""
    expander = zlib.decompressobj()
    try:
        data = expander.decompress(base64.b64decode(compressed, validate=True), LARGEST)
    except zlib.error as error:
        raise ValueError(f"expected a compressed text: {error}") from error
    if not expander.eof:
        raise ValueError(f"expected a whole compressed text of at most {LARGEST} bytes")
    return data


@lru_cache(maxsize=8)
def compress_text(text: str) -> str:
    """The inverse of expand_text. "" stays ""."""
    return compress(text.encode()) if text else ""


@lru_cache(maxsize=8)
def expand_text(compressed: str) -> str:
    """The text. A process keeps the last few, because every message asks. Raises ValueError (expand)."""
    return expand(compressed).decode() if compressed else ""
