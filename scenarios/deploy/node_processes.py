"""The processes of nodes on one machine: start them, wait for their connection, restart those that end."""

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

from casam_core.errors import RunError
from scenarios.deploy.operator import ONLINE, list_nodes
from scenarios.engines.live import View
from scenarios.engines.superlink import SuperLink, flower_command, last_lines

MOST_RESTARTS = 8
"""Maximum restarts of one node; a node that ends more often has a permanent fault."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds before a restart; they double each time. The server treats a killed node as online, and refuses to
connect it again, until its heartbeat is overdue."""

LOOK_SECONDS = 0.5

CONNECT_SECONDS = 120.0
"""How long nodes may take to connect; about 5 s on a quiet machine."""


@dataclass(frozen=True)
class Node:
    """One institution's launcher process and its log."""

    institution: str
    process: subprocess.Popen[bytes]
    log: Path


def start_node(name: str, node_file: Path, home: Path, link: SuperLink, *options: str) -> Node:
    """Start the institution's launcher. It inherits the SuperLink's mark and ends with the SuperLink.

    options: more of `casam node`.
    """
    log = home / "node.log"
    # A node must not use the server's Flower home.
    environment = {key: value for key, value in link.environment.items() if key != "FLWR_HOME"}
    with log.open("ab") as file:
        process = subprocess.Popen(
            [flower_command("casam"), "node", *options, str(node_file)],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Node(name, process, log)


def wait_until_connected(link: SuperLink, nodes: list[Node], on_line: View) -> None:
    """Return when every node is online. Raises RunError if a node ends, or at the deadline."""
    deadline = time.monotonic() + CONNECT_SECONDS
    before = -1
    while True:
        online = sum(status == ONLINE for status in list_nodes(link).values())
        if online > before:
            on_line(f"casam | server | {online} of {len(nodes)} nodes connected")
            before = online
        if online == len(nodes):
            return
        for node in nodes:
            if node.process.poll() is not None:
                raise RunError(
                    f"the node of {node.institution} ended with status {node.process.returncode}; "
                    f"its log ({node.log}) ends:\n{last_lines(node.log)}"
                )
        if time.monotonic() > deadline:
            logs = ", ".join(str(node.log) for node in nodes)
            raise RunError(f"only {online} of {len(nodes)} nodes connected; see their logs: {logs}")
        time.sleep(0.5)


@contextlib.contextmanager
def kept_alive(nodes: list[Node], start: Callable[[str], Node], say: View) -> Iterator[None]:
    """During the with-block, restart every node that has ended.

    Args:
        nodes: the running nodes; a restarted node replaces the old one in this list.
        start: starts the node of an institution.
        say: shows a line for each node that ended.
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
    """End the rest of an ended process's group, because it holds the port that the next process needs."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
