"""Run the Flower app with the real `flwr run`, in a simulation that leaves no process behind.

This module corrects three habits of `flwr run`: it exits with status 0 after a failed run, it leaves services
and Ray processes running, and it shares one service among all runs of a user.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import tomli_w

from casam_core.errors import RunError
from scenarios.engines.bundle import app_settings, stage_app
from scenarios.engines.superlink import SuperLink, flower_command, flwr, last_lines, superlink

_STARTED = re.compile(r"Successfully started run (\d+)")
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
UNREACHABLE = "Connection to the SuperLink is unavailable"
"""Flower's own words, among others that say nothing more."""
NO_SUPERLINK = (
    "--superlink: expected a SuperLink that answers, found no connection; check HOST:PORT, the network and "
    "--authority"
)
_SETTLE_SECONDS = 60.0
"""The run's output may end a moment before Flower marks the run as finished."""


@dataclass(frozen=True)
class FlowerRun:
    """The end of a run, with Flower's status."""

    run_id: int
    status: str
    """"finished:completed", "finished:failed", ...; "lost" if the SuperLink ended during the run."""
    details: str = ""

    @property
    def ok(self) -> bool:
        """True only for a run that completed."""
        return self.status == "finished:completed"


def run_flower_app(
    app_dir: Path,
    run_config: Mapping[str, str | int | float | bool],
    *,
    nodes: int,
    home: Path,
    on_line: Callable[[str], None],
    cpus_per_node: int = 1,
    environment: Mapping[str, str] | None = None,
    ray_address: str | None = None,
    cards: int = 0,
) -> FlowerRun:
    """Run the app in `app_dir` on simulated SuperNodes and wait for its end.

    All processes of the run have ended when this returns, also after an exception, Ctrl-C or SIGTERM.

    Args:
        home: A new or empty folder for Flower's state and logs of this run. The caller removes it.
        on_line: Called with each line of the run's output, without colours.
        cards: CUDA cards that the workers share.
        ray_address: An existing Ray cluster (docs/performance.md). By default the run starts its own.

    Returns:
        The end of the run; `ok` is False for a failed run.

    Raises:
        RunError: The run did not start.
    """
    app_dir, home = app_dir.resolve(), home.resolve()
    app_settings(app_dir)  # refuses a folder without an app
    if home.is_dir() and any(home.iterdir()):
        raise RunError(f"{home}: expected a new or empty folder as Flower home, found files in it")
    home.mkdir(parents=True, exist_ok=True)
    app = stage_app(app_dir, home / "app")
    variables = dict(environment or {}) | ({"RAY_ADDRESS": ray_address} if ray_address else {})
    with terminable(), superlink(home, app, variables) as link:
        federation = _federation(nodes, cpus_per_node, own_ray=ray_address is None, cards=cards)
        return submit(link, app, run_config, on_line, "--federation-config", federation)


def submit(
    link: SuperLink,
    app: Path,
    run_config: Mapping[str, str | int | float | bool],
    on_line: Callable[[str], None],
    *options: str,
) -> FlowerRun:
    """Start the app at a SuperLink, wait for its end and return its status.

    Raises RunError if it did not start.
    """
    settings = link.home / "run-config.toml"
    settings.write_text(tomli_w.dumps(run_config), encoding="utf-8")
    command = [flower_command("flwr"), "run", str(app), "--stream", "-c", str(settings), *options]
    run_id, tail = _stream(command, link, on_line)
    if run_id is None and UNREACHABLE in tail:
        raise RunError(NO_SUPERLINK)
    if run_id is None:
        raise RunError(
            f"the Flower run could not start; `flwr run` said:\n{tail}\n"
            f"the SuperLink's log ({link.log}) ends:\n{last_lines(link.log)}"
        )
    return _final_status(run_id, link)


def share_of_a_card(workers: int, cards: int) -> float:
    """The share of a card that Ray reserves for a worker, so that all cards get equally many.

    With one card there is nothing to choose: Ray reserves nothing, and all workers use it.
    """
    return 0.0 if cards < 2 else math.floor(1e4 / -(-workers // cards)) / 1e4


def _federation(nodes: int, cpus_per_node: int, *, own_ray: bool = True, cards: int = 0) -> str:
    """Settings of the simulation in the format of `--federation-config`.

    Ray starts as many workers as its CPUs allow, and each worker loads a copy of the backbone. So Ray gets no
    more CPUs than the nodes can use, but always enough for one node. Existing clusters refuse this setting.
    """
    cores = max(cpus_per_node, min(os.cpu_count() or 1, nodes * cpus_per_node))
    settings: dict[str, int | float] = {
        "num-supernodes": nodes,
        "client-resources-num-cpus": cpus_per_node,
        "client-resources-num-gpus": share_of_a_card(cores // cpus_per_node, cards if own_ray else 0),
    }
    if own_ray:
        settings["init-args-num-cpus"] = cores
        if cards > 1:
            settings["init-args-num-gpus"] = cards
    return " ".join(f"{key}={value}" for key, value in settings.items())


def _stream(command: list[str], link: SuperLink, on_line: Callable[[str], None]) -> tuple[int | None, str]:
    """Wait for the end of `flwr run`. Returns the run's id (None if it got none) and the last lines."""
    run_id: int | None = None
    tail: deque[str] = deque(maxlen=12)
    process = subprocess.Popen(
        command,
        env=dict(link.environment),
        cwd=link.home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdout is not None
            for raw in process.stdout:
                line = _COLOUR.sub("", raw).rstrip()
                tail.append(line)
                if run_id is None and (match := _STARTED.search(line)):
                    run_id = int(match.group(1))
                on_line(line)
        except BaseException:
            process.kill()
            raise
    return run_id, "\n".join(tail)


def _final_status(run_id: int, link: SuperLink) -> FlowerRun:
    """Ask Flower how the run ended, because `flwr run` exits with 0 in any case.

    Asks at least once, and repeats until the run is finished or the service has stopped.
    """
    deadline = time.monotonic() + _SETTLE_SECONDS
    status, details = "unknown", f"the SuperLink did not report the run's status; see {link.log}"
    while True:
        answer = flwr(link, "list", "--run-id", str(run_id), "--format", "json")
        with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
            row = json.loads(answer.stdout)["runs"][0]
            status, details = str(row["status"]), str(row["status-details"]).replace("N/A", "")
        if status.startswith("finished") or not link.alive() or time.monotonic() > deadline:
            return FlowerRun(
                run_id, status if link.alive() or status.startswith("finished") else "lost", details
            )
        time.sleep(0.5)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM unwind the stack, as Ctrl-C does, so that all started processes are ended."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread may set handlers; in other threads the guardian ends the processes.
        return

    def unwind(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
