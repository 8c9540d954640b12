"""A Docker engine for the tests, on a machine that may have none; what was started is ended again."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["docker.io", "docker-compose", "mmdebstrap", "iptables"]
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


class NoEngineError(Exception):
    """Why no container can be started here."""


@dataclass(frozen=True)
class Engine:
    """The commands of an engine that answers."""

    docker: str
    compose: tuple[str, ...]

    def run(self, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """`docker ...`, whatever its status."""
        return call([self.docker, *arguments], timeout=timeout)

    def output(self, *arguments: str, timeout: float = 600) -> str:
        """What `docker ...` printed. Raises AssertionError when it fails."""
        result = self.run(*arguments, timeout=timeout)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout.strip()


def call(
    command: Sequence[str], timeout: float = 600, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and keep what it says."""
    return subprocess.run(
        command,
        env=os.environ | (environment or {}),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """An engine that answers; started here if need be, and then stopped at the end. Raises NoEngineError.

    With CASAM_INSTALL_ENGINE=1 (continuous integration) missing packages are installed first.
    """
    if os.environ.get("CASAM_INSTALL_ENGINE") == "1" and not shutil.which("docker-compose"):
        install()
    docker = client()
    compose = compose_command(docker)
    with contextlib.ExitStack() as stack:
        if call([docker, "info"], timeout=60).returncode != 0:
            stack.enter_context(daemon(docker))
        yield Engine(docker, compose)


def install() -> None:
    """Debian's engine, if this is Debian and we may."""
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        raise NoEngineError("no docker-compose here, and only root on Debian can install it")
    wait = ["-o", "DPkg::Lock::Timeout=300"]
    call(["apt-get", "update", "-q"], timeout=300)
    done = call(["apt-get", *wait, "install", "-y", "-q", "--no-install-recommends", *PACKAGES], timeout=600)
    if done.returncode != 0:
        raise NoEngineError(f"the engine's packages cannot be installed: {done.stderr[-300:]}")


def client() -> str:
    """Debian's client first: it has BuildKit built in, newer ones need a plugin for it."""
    for found in ("/usr/bin/docker", shutil.which("docker")):
        if found and Path(found).is_file():
            return found
    raise NoEngineError("no docker command on this machine")


def compose_command(docker: str) -> tuple[str, ...]:
    """docker-compose (v1), else `docker compose` (v2)."""
    if found := shutil.which("docker-compose"):
        return (found,)
    if call([docker, "compose", "version"], timeout=60).returncode == 0:
        return (docker, "compose")
    raise NoEngineError("neither docker-compose nor `docker compose` on this machine")


@contextlib.contextmanager
def daemon(docker: str) -> Iterator[None]:
    """dockerd for the length of a with-block."""
    if os.getuid() != 0 or (command := shutil.which("dockerd")) is None:
        raise NoEngineError("no engine answers, and only root with dockerd can start one")
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen([command], stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 60
        try:
            while call([docker, "info"], timeout=60).returncode != 0:
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise NoEngineError("dockerd does not start: " + " | ".join(log.read().splitlines()[-3:]))
                time.sleep(0.5)
            yield
        finally:
            process.terminate()
            process.wait(30)


def base_image(engine: Engine) -> str:
    """An image like python:3.11-slim, without a registry where there is none. Raises NoEngineError."""
    own, public = "casam-test-base:bookworm", "python:3.11-slim"
    for image in (own, public):
        if engine.run("image", "inspect", image).returncode == 0:
            return image
    if shutil.which("mmdebstrap"):
        made = call(
            [
                "sh",
                "-c",
                "mmdebstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm - "
                f"| {engine.docker} import - {own}",
            ],
            timeout=900,
        )
        if engine.run("image", "inspect", own).returncode == 0:
            return own
        raise NoEngineError(f"mmdebstrap makes no base image: {made.stderr[-300:]}")
    if engine.run("pull", public, timeout=600).returncode == 0:
        return public
    raise NoEngineError("no base image: neither mmdebstrap nor a registry")


def thin_image(engine: Engine, base: str, scratch: Path) -> str:
    """The project's Dockerfile with Flower and numpy alone."""
    image, secrets = "casam:test", []
    if AUTHORITIES.is_file():
        secrets += ["--secret", f"id=ca,src={AUTHORITIES}"]
    index = call([sys.executable, "-m", "pip", "config", "get", "global.index-url"])
    if index.returncode == 0 and index.stdout.startswith("http"):
        (scratch / "pip.conf").write_text(f"[global]\nindex-url = {index.stdout}")
        secrets += ["--secret", f"id=pipconf,src={scratch / 'pip.conf'}"]
    proxies = [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "no_proxy")]
    arguments = [f"BASE_IMAGE={base}", "REQUIREMENTS=docker/thin.lock", *proxies]
    build_arguments = [part for argument in arguments for part in ("--build-arg", argument)]
    built = call(
        [engine.docker, "build", *build_arguments, *secrets, "-f", "docker/Dockerfile", "-t", image, "."],
        timeout=900,
        environment={"DOCKER_BUILDKIT": "1"},
    )
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return image
