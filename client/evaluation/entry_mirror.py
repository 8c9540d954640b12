"""Entries that a site takes from its own mirror, because the server sent only their names."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from casam_core.bank.entry_file import read_entry
from casam_core.errors import BankError
from casam_core.protocol.outcomes import Outcome, RefusalError

MIRROR_SECONDS, MIRROR_PAUSE = 30.0, 0.2
"""How long a request waits for files that its mirror lacks, and how long between two looks."""

LARGEST_ENTRY = 2**30
"""Bytes; a larger file is not read."""


def fetched(mirror: Path | None, names: Sequence[str]) -> list[bytes]:
    """The files of entries, checked against their names. mirror: the folder; None: this site has none.

    Raises RefusalError (not-in-mirror) if one is not there in time, or is another file.
    """
    end = time.monotonic() + MIRROR_SECONDS
    try:
        if mirror is None:
            raise BankError("this site has none")
        return [awaited(mirror / f"{name}.entry", name, end) for name in names]
    except (BankError, OSError) as error:
        raise RefusalError(Outcome.NOT_IN_MIRROR, f"mirror: {error}") from error


def awaited(file: Path, name: str, end: float) -> bytes:
    """One file as soon as it is there. Raises BankError and OSError.

    end: when to give up (time.monotonic).
    """
    while not file.is_file() and time.monotonic() < end:
        time.sleep(MIRROR_PAUSE)
    if not file.is_file() or file.stat().st_size > LARGEST_ENTRY:
        raise BankError(f"{file}: expected a file of an entry, found none, or one that is too large")
    return read_entry(file, name, name)
