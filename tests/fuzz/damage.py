"""What can happen to a file, drawn by hypothesis; and how much of it is tried.

The long profile, more than 10,000 examples in all: pytest --hypothesis-profile=long tests/fuzz
"""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

LONG = settings().max_examples > 100
"""Whether more than hypothesis' usual number is asked for."""


def examples(few: int, many: int) -> settings:
    """So many in continuous integration, so many in the long profile."""
    return settings(
        max_examples=many if LONG else few,
        deadline=None,
        derandomize=not LONG,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """The content after a few accidents: bytes flipped, cut, doubled, or written over by others."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        length = draw(st.integers(1, 16))
        accident = draw(st.sampled_from(["flip", "cut", "drop", "double", "insert", "digits"]))
        if accident == "flip":
            data[at] ^= draw(st.integers(1, 255))
        elif accident == "cut":
            del data[at:]
        elif accident == "drop":
            del data[at : at + length]
        elif accident == "double":
            data[at:at] = data[at : at + length]
        elif accident == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=length))
        else:
            data[at : at + length] = b"9" * length
    return bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
