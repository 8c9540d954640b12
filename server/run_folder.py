"""The run folder: what the server writes, and nothing an institution keeps to itself.

summary.json   figures of the run (docs/run-folder.md)
matrix.csv     the continual matrix for IoU
matrix.png     the same as a picture
events.jsonl   one line per event, in order
scenario.json  the resolved scenario, canonical
bank/          the entries (casam_core.bank)
institutions/<name>/private/   written by institutions of a simulation; never read from here
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from casam_core.errors import RunError
from casam_core.files import write_atomic


class RunFolder:
    """Writes the server's files; every one is whole or absent, events are appended and flushed."""

    def __init__(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"run folder {path} cannot be made: {error.strerror}; choose another --out"
            ) from error
        # The first file a run writes: a bank left by a failed run must not be measured as this one's.
        if (path / "scenario.json").exists():
            raise RunError(f"run folder {path} already holds a run; choose another --out")
        self.path = path
        self._started = time.time()

    def event(self, event: str, line: str | None = None, **facts: Any) -> None:
        """Append to events.jsonl, and print one flushed line if it is worth a person's eye."""
        record = {"time": round(time.time(), 3), "event": event, **facts}
        with (self.path / "events.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        if line is not None:
            print(f"casam | server | {line}", flush=True)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """A JSON file with sorted keys."""
        text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False)
        write_atomic(self.path / name, (text + "\n").encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Any other file."""
        write_atomic(self.path / name, data)

    def write_text(self, name: str, text: str) -> None:
        """A text file."""
        write_atomic(self.path / name, text.encode())

    @property
    def elapsed(self) -> float:
        """Seconds since the folder was opened."""
        return time.time() - self._started
