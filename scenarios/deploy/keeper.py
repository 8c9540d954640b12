"""Nodes that end by themselves are started again, as the service managers of real sites do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scenarios.engines.live import View

MOST_RESTARTS = 8
"""Per node: what ends this often would end for ever."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds before a restart, doubling: a server takes a node that was killed for online until its heartbeat is
overdue, and refuses it as long."""

LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Node:
    """One institution's launcher process and the log it writes."""

    institution: str
    process: subprocess.Popen[bytes]
    log: Path


@contextlib.contextmanager
def kept_alive(nodes: list[Node], start: Callable[[str], Node], say: View) -> Iterator[None]:
    """Within the block a node that has ended is started again; `nodes` always holds the newest.

    start: makes a new process for an institution.
    """
    stop = threading.Event()
    restarts = dict.fromkeys((node.institution for node in nodes), 0)
    due: dict[str, float] = {}

    def watch() -> None:
        while not stop.wait(LOOK_SECONDS):
            for i, node in enumerate(nodes):
                name, now = node.institution, time.monotonic()
                if node.process.poll() is None or restarts[name] == MOST_RESTARTS:
                    continue
                if name not in due:
                    end_group(node.process)
                    due[name] = now + min(FIRST_PAUSE * 2 ** restarts[name], LONGEST_PAUSE)
                    say(f"casam | server | the node of {name} ended with status {node.process.returncode}")
                elif now >= due[name]:
                    del due[name]
                    restarts[name] += 1
                    nodes[i] = start(name)

    watcher = threading.Thread(target=watch, name="keeper")
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def end_group(leader: subprocess.Popen[bytes]) -> None:
    """What an ended process has left in its group: it holds the port the next one needs."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
