"""A question that `casam ask` answers in a process of its own, for whoever waits: a page, a benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from casam_core.errors import RunError

COMMAND = (sys.executable, "-c", "from scenarios.commands.cli import main; main()")
"""`casam`, as from a terminal."""


class Asking:
    """One process, which works until there is an answer. settings, seconds: as for `casam ask`."""

    def __init__(self, run: Path, settings: Sequence[str], seconds: float = 30.0) -> None:
        self.run, self.settings, self._begun, self._ended = run, tuple(settings), time.monotonic(), 0.0
        words = [word for setting in settings for word in ("--set", setting)]
        self._process = subprocess.Popen(
            [*COMMAND, "ask", str(run), *words, "--json", "--seconds", f"{seconds:g}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._said = ("", "")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        self._said = self._process.communicate()
        self._ended = time.monotonic()

    @property
    def working(self) -> bool:
        """Whether there is no answer yet."""
        return self._reader.is_alive()

    @property
    def seconds(self) -> float:
        """From the beginning until now, or until the end."""
        return (self._ended or time.monotonic()) - self._begun

    def answer(self) -> Mapping[str, Any]:
        """What `casam ask --json` printed; waits for it. Raises RunError with the line that says why not."""
        self._reader.join()
        out, err = self._said
        if self._process.returncode:
            said = err.strip().rpartition("\n")[2].removeprefix("error: ")
            raise RunError(said or "the question was stopped; ask again")
        found: Mapping[str, Any] = json.loads(out)
        return found

    def stop(self) -> None:
        """End the process, if it works."""
        self._process.terminate()
        self._reader.join()
