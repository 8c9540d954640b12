"""A private SuperLink: Flower's service for exactly one run, with simulated or separate nodes.

By default `flwr run` starts a SuperLink that keeps running, keeps the folder and environment of its first
call, and is shared by all later runs. Here each run gets its own SuperLink with its own port, Flower home and
Ray folder, and all of it is removed at the end.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import sysconfig
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import tomli_w

from casam_core.errors import RunError
from scenarios.engines.processes import MARKER, end_processes, start_guardian

START_SECONDS = 90.0
"""How long a SuperLink may take to answer; about 2 s on a quiet machine."""

_PORTS = range(20000, 32000)
"""Below the range that systems use for outgoing connections, so that none of those takes our port."""


@dataclass(frozen=True)
class Tls:
    """Files of a server with TLS: the authority's certificate, the server's certificate and private key."""

    authority: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class SuperLink:
    """A running SuperLink, and the environment in which `flwr` finds it."""

    home: Path
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None
    """None: another program started it."""
    port: int

    @property
    def log(self) -> Path:
        """The output of the SuperLink and of the apps that it ran."""
        return self.home / "superlink.log"

    def alive(self) -> bool:
        """Whether it still runs; always True if another program started it."""
        return self.process is None or self.process.poll() is None


@contextlib.contextmanager
def superlink(
    home: Path, app_dir: Path, environment: Mapping[str, str], tls: Tls | None = None, *scratch: Path
) -> Iterator[SuperLink]:
    """Run a SuperLink during a with-block. At its end no process and no Ray folder remains.

    Processes that are started with the SuperLink's environment end with it.

    Args:
        home: Flower home of the SuperLink.
        app_dir: Working folder of the SuperLink.
        environment: Additional environment variables.
        tls: Serve separate, registered nodes, with the state in a database. None: the nodes are simulated.
        scratch: Folders that are removed at the end, also if this process is killed.
    """
    mark = uuid.uuid4().hex
    # Ray keeps sockets there. A socket's path has at most 104 characters, of which Ray uses 75.
    ray_dir = Path(tempfile.mkdtemp(prefix="casam-ray-", dir="/tmp" if os.access("/tmp", os.W_OK) else None))
    guardian = start_guardian(mark, ray_dir, *scratch)
    try:
        # The mark comes last, where a process that renames itself is least likely to overwrite it.
        variables = variables_for(home, ray_dir) | dict(environment) | {MARKER: mark}
        link = _start(home, app_dir, variables, tls)
        yield link
    finally:
        end_processes(mark)
        shutil.rmtree(ray_dir, ignore_errors=True)
        assert guardian.stdin is not None
        guardian.stdin.close()
        guardian.wait()


def flower_command(name: str) -> str:
    """Path of a command that is installed beside this interpreter; PATH is not used."""
    for folder in (Path(sysconfig.get_path("scripts")), Path(sys.executable).parent):
        if (folder / name).is_file():
            return str(folder / name)
    raise RunError(f"no command {name!r} beside {sys.executable}; install this package again with pip")


def flwr(link: SuperLink, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Flower's command `flwr` as an operator of this SuperLink. A failure is returned, not raised."""
    return subprocess.run(
        [flower_command("flwr"), *arguments],
        env=dict(link.environment),
        cwd=link.home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def last_lines(path: Path, count: int = 12) -> str:
    """The last lines of a log, for error messages."""
    if not path.is_file():
        return "(no log was written)"
    return "\n".join(path.read_text(errors="replace").splitlines()[-count:]) or "(the log is empty)"


def variables_for(home: Path, ray_dir: Path) -> dict[str, str]:
    """This process's environment without settings of Flower and Ray, plus our own settings of them."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "RAY_", MARKER))}
    # Flower starts its own commands by name; PATH must lead to this interpreter's ones.
    scripts = Path(flower_command("flwr")).parent
    return inherited | {
        "PATH": f"{scripts}{os.pathsep}{inherited.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
        "NO_COLOR": "1",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_TMPDIR": str(ray_dir),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        # No nicer than this process. Ray adds 15 by default: institutions stood still beside a busy program.
        "RAY_worker_niceness": "0",
        "RAY_COLOR_PREFIX": "0",
        "RAY_DEDUP_LOGS": "0",  # Two institutions may print the same line; both are needed.
        # Institutions select GPUs by the scenario's `compute.device`; otherwise Ray would hide the GPUs.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def _start(home: Path, app_dir: Path, variables: Mapping[str, str], tls: Tls | None) -> SuperLink:
    """Start a SuperLink and wait until it answers; try another port if ours was taken."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        port = free_port()
        # With a plain address `flwr` does not probe the service and does not start a second one.
        connection = f'[superlink]\ndefault = "own"\n[superlink.own]\naddress = "127.0.0.1:{port}"\n'
        trust = tomli_w.dumps({"root-certificates": str(tls.authority)}) if tls else "insecure = true\n"
        (home / "config.toml").write_text(connection + trust, encoding="utf-8")
        process = _spawn(home, app_dir, variables, port, tls)
        link = SuperLink(home, variables, process, port)
        while link.alive() and time.monotonic() < deadline:
            if _answers(port, tls):
                return link
            time.sleep(0.1)
        tail = last_lines(link.log)
        if not link.alive() and "address already in use" in tail and time.monotonic() < deadline:
            continue
        if link.alive():
            process.kill()
            reason = f"it did not answer within {START_SECONDS:.0f} s"
        else:
            reason = f"it ended with status {process.returncode}"
        raise RunError(f"Flower's SuperLink could not start: {reason}; see {link.log}, which ends:\n{tail}")


def _spawn(
    home: Path, app_dir: Path, variables: Mapping[str, str], port: int, tls: Tls | None
) -> subprocess.Popen[bytes]:
    """Start the service in the app's folder, where Ray's workers first search the client's code."""
    command = [flower_command("flower-superlink"), "--isolation", "subprocess"]
    if tls is None:
        command += ["--insecure", "--simulation"]
    else:
        command += [*tls_arguments(tls), "--database", str(home / "state.db")]
    with (home / "superlink.log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=app_dir,
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def tls_arguments(tls: Tls) -> list[str]:
    """Arguments of `flower-superlink` for TLS and for registered nodes only."""
    return [
        *("--ssl-ca-certfile", str(tls.authority)),
        *("--ssl-certfile", str(tls.certificate)),
        *("--ssl-keyfile", str(tls.key)),
        "--enable-supernode-auth",
    ]


def _answers(port: int, tls: Tls | None) -> bool:
    trusted = ssl.create_default_context(cafile=tls.authority) if tls else True
    url = f"http{'s' if tls else ''}://127.0.0.1:{port}/health"
    try:
        # No proxy: the service is on this machine.
        return httpx.get(url, timeout=2, verify=trusted, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def free_port() -> int:
    """A free port, drawn at random so that two runs that start at the same time get different ones."""
    for port in random.SystemRandom().sample(_PORTS, 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RunError(f"no free port between {_PORTS.start} and {_PORTS.stop} on 127.0.0.1")
