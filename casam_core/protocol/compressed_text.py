"""Bytes and long texts for JSON and messages: zlib in base64.

A scenario compresses well because it describes many similar institutions.
"""

from __future__ import annotations

import base64
import zlib
from functools import lru_cache

LARGEST = 1 << 26
"""The largest expanded text: 64 MB are a scenario of about 78,000 institutions."""


def compress(data: bytes) -> str:
    """The inverse of expand."""
    return base64.b64encode(zlib.compress(data, 9)).decode()


def expand(compressed: str) -> bytes:
    """The bytes. Raises ValueError for a text that is not from `compress`, or for more than LARGEST bytes."""
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
def one_copy(compressed: str) -> str:
    """The first string that was equal to this one: 10,000 nodes of a process keep one copy, not 1 GB."""
    return compressed


@lru_cache(maxsize=8)
def expand_text(compressed: str) -> str:
    """The text; the last few are cached, because every message needs one. Raises ValueError (expand)."""
    return expand(compressed).decode() if compressed else ""
