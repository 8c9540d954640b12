"""Nodes that end by themselves are started again, as the service managers of real sites do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scenarios.live import View

MOST_RESTARTS = 5
"""Per node: what ends this often would end for ever."""

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
    left = {node.institution: MOST_RESTARTS for node in nodes}

    def watch() -> None:
        while not stop.wait(LOOK_SECONDS):
            for i, node in enumerate(nodes):
                if node.process.poll() is None or not left[node.institution]:
                    continue
                left[node.institution] -= 1
                end_group(node.process)
                say(f"casam | server | the node of {node.institution} ended; started again")
                nodes[i] = start(node.institution)

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
