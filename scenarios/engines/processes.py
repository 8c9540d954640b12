"""Find and end every process that a simulation has started, and no other process.

Flower and Ray detach the processes that they start (own sessions, own groups), so process groups and parent
processes do not lead to all of them. An environment variable does: every descendant inherits it.

Run as a program, this file is the guardian of one run. It waits until its standard input closes, which also
happens if its parent is killed, and then ends the remaining processes. It uses only the standard library, so
that it starts quickly.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Set
from pathlib import Path
from typing import NamedTuple

MARKER = "CASAM_RUN_MARKER"
"""The variable that marks the processes of one run; its value is unique to the run."""

_PROC = Path("/proc")


class Process(NamedTuple):
    """A process and its start time, because the system uses process numbers again."""

    pid: int
    birth: str


def marked_processes(mark: str, known: Set[Process] = frozenset()) -> set[Process]:
    """Living processes that have `mark`, are `known`, or descend from such a process; without this one.

    A process that renames itself, as Ray's workers do, overwrites the place where the system shows its
    environment. It is found as a descendant; after its parent's end, as a known process.
    """
    found = _marked_in_proc(mark, known) if _PROC.is_dir() else _marked_in_ps(mark)
    return {process for process in found if process.pid != os.getpid()}


def end_processes(mark: str, *, grace: float = 5.0) -> set[Process]:
    """End the processes of one run: with SIGTERM first, with SIGKILL after `grace` seconds.

    Searches again after each signal, because a process may start another one before it ends. Returns the
    processes that did not end.
    """
    started = time.monotonic()
    asked: set[Process] = set()
    while left := marked_processes(mark, asked):
        waited = time.monotonic() - started
        if waited > 2 * grace:
            return left
        for process in left if waited > grace else left - asked:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, signal.SIGKILL if waited > grace else signal.SIGTERM)
        asked |= left
        time.sleep(0.1)
    return set()


def start_guardian(mark: str, *scratch: Path) -> subprocess.Popen[bytes]:
    """Start the guardian of the run `mark`. When its standard input closes, it ends the run's processes.

    It survives this process, also after SIGKILL, and then removes the folders `scratch`, too.
    """
    return subprocess.Popen(
        [sys.executable, "-I", __file__, mark, *map(str, scratch)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _marked_in_proc(mark: str, known: Set[Process]) -> set[Process]:
    """Linux: read environment and parent of every process of this user."""
    needle = f"{MARKER}={mark}".encode()
    children: dict[int, list[Process]] = {}
    found: set[Process] = set()
    for folder in _PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # "pid (name) state parent ..."; the name may contain brackets and blanks.
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            state, parent, birth = fields[0], int(fields[1]), fields[19]
            if state in "ZX":
                continue
            process = Process(int(folder.name), birth)
            children.setdefault(parent, []).append(process)
            if process in known or needle in (folder / "environ").read_bytes().split(b"\0"):
                found.add(process)
        except (OSError, ValueError, IndexError):
            continue  # It has ended since, or belongs to another user.
    pending = list(found)
    while pending:
        for child in children.get(pending.pop().pid, []):
            if child not in found:
                found.add(child)
                pending.append(child)
    return found


def _marked_in_ps(mark: str) -> set[Process]:
    """Other systems (macOS): ps shows the environment of the user's processes after their commands."""
    listing = subprocess.run(
        ["ps", "-axEww", "-o", "pid=,command="], capture_output=True, text=True, check=False, errors="replace"
    )
    lines = (line.split(None, 1) for line in listing.stdout.splitlines())
    marked = (words for words in lines if len(words) == 2 and f"{MARKER}={mark}" in words[1])
    return {Process(int(words[0]), "") for words in marked}


def _guard(mark: str, *scratch: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_processes(mark)
    for folder in scratch:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _guard(*sys.argv[1:])
