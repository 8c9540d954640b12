"""A command's output as JSON lines, one object for each line, for systems that collect logs.

The command keeps its process: signals reach it, and its exit status is its own. Its two outputs go into a
pipe; a second process turns each line into an object. This covers the processes that Flower starts, too. An
object says nothing that the line does not say.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from typing import NoReturn

from casam_core.errors import DeploymentError, plain
from scenarios.engines.live import LINE

LONGEST = 8000
"""Characters of one message."""

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
LEVEL = re.compile(r"(?P<level>DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|error)\s*:\s+(?P<text>.*)")
"""Flower's and uvicorn's levels, and the one with which `casam` says why it ends."""


def record_of(line: str, part: str, moment: float) -> dict[str, str | int]:
    """A line as an object: time (UTC), part, level, message; for progress also institution, done and total.

    Args:
        part: which command wrote it.
        moment: seconds since 1970.
    """
    text = COLOURS.sub("", line.rstrip("\r\n"))
    time = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
    record: dict[str, str | int] = {"time": time, "part": part, "level": "INFO"}
    if found := LINE.search(text):
        record |= {"who": found["who"], "message": plain(found["what"], LONGEST)}
        if found["total"]:
            record |= {"done": int(found["done"]), "total": int(found["total"])}
        return record
    if found := LEVEL.match(text):
        text = found["text"]
        record["level"] = {"WARN": "WARNING"}.get(found["level"], found["level"].upper())
    return record | {"message": plain(text, LONGEST)}


def run_logged(command: Sequence[str], part: str = "") -> NoReturn:
    """Become this command, with its output as JSON lines on stdout. part: by default the command's name.

    Raises DeploymentError if there is no such command.
    """
    if shutil.which(command[0]) is None:
        raise DeploymentError(f"json-log: expected a command, found no {command[0]!r} on PATH")
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(writing)
        try:
            write_records(reading, part or PurePath(command[0]).name)
        finally:
            os._exit(0)
    os.close(reading)
    for output in (1, 2):
        os.dup2(writing, output)
    os.close(writing)
    os.environ["PYTHONUNBUFFERED"] = "1"
    os.execvp(command[0], list(command))


def write_records(reading: int, part: str) -> None:
    """Write a JSON line to stdout for each line of the pipe, until its last writer has closed it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the command decides when it ends; its last lines count, too
    with os.fdopen(reading, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip():
                record = record_of(line, part, datetime.now(UTC).timestamp())
                os.write(1, (json.dumps(record) + "\n").encode())
