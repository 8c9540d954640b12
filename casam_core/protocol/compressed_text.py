"""Long texts as messages carry them: zlib in base64.

The scenario names every institution, and says much the same of each.
"""

from __future__ import annotations

import base64
import zlib
from functools import lru_cache

LARGEST = 1 << 26
"""Bytes of a text that is expanded: 64 MB are a scenario of some 78,000 institutions."""


@lru_cache(maxsize=8)
def compress_text(text: str) -> str:
    """The inverse of expand_text. "" stays ""."""
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode() if text else ""


@lru_cache(maxsize=8)
def expand_text(compressed: str) -> str:
    """The text; a process keeps the last few, for every message asks. Raises ValueError for anything else."""
    if not compressed:
        return ""
    expander = zlib.decompressobj()
    try:
        data = expander.decompress(base64.b64decode(compressed, validate=True), LARGEST)
    except zlib.error as error:
        raise ValueError(f"expected a compressed text: {error}") from error
    if not expander.eof:
        raise ValueError(f"expected a whole compressed text of at most {LARGEST} bytes")
    return data.decode()
