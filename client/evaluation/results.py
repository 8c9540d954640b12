"""The results that an institution has already computed in this run; a stage then computes only what changed.

One JSON line per result, appended and flushed. Results from the first damaged line on are computed again. A
file of which more than half was replaced is written anew, so it grows with its results, not with the stages.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from casam_core.files import read_records, write_atomic

SPARE = 1000
"""Replaced lines that a small file may hold."""


class Results:
    """A persistent mapping from a pair of names (an image, an entry) to a small JSON value."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[tuple[str, str], Any] = {}
        self._lines = intact = 0
        for record, size in read_records(path):
            if not isinstance(record, list) or len(record) != 3:
                break
            image, entry, value = record
            self._values[image, entry] = value
            self._lines += 1
            intact += size
        self._file = path.open("ab")
        self._file.truncate(intact)

    def get(self, image: str, entry: str) -> Any | None:
        """The value, or None if it was never computed."""
        return self._values.get((image, entry))

    def of(self, image: str) -> list[Any]:
        """All values of one image."""
        return [value for (name, _), value in self._values.items() if name == image]

    def put(self, image: str, entry: str, value: Any) -> None:
        """Keep a value; it is in the file when this function returns."""
        self._file.write((json.dumps([image, entry, value]) + "\n").encode())
        self._file.flush()
        self._values[image, entry] = value
        self._lines += 1
        if self._lines > 2 * len(self._values) + SPARE:
            self._write_anew()

    def forget(self, entries: Collection[str]) -> None:
        """Delete the results that were computed with these entries, also from the file."""
        self._values = {key: value for key, value in self._values.items() if key[1] not in entries}
        self._write_anew()

    def _write_anew(self) -> None:
        self._file.close()
        lines = (json.dumps([*key, value]) + "\n" for key, value in self._values.items())
        write_atomic(self.path, "".join(lines).encode())
        self._file = self.path.open("ab")
        self._lines = len(self._values)
