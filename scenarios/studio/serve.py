"""The studio's address, and its server on this machine only."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from casam_core.errors import RunInputError
from scenarios.studio.access import Door, Guarded, new_token
from scenarios.studio.pages import Studio, application
from scenarios.studio.shelf import Shelf, is_run
from scenarios.studio.started import Starter

LOOPBACK = "127.0.0.1"


def listening(port: int) -> socket.socket:
    """A socket on 127.0.0.1. port: 0 takes a free one. Raises RunInputError if it is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
    except OSError as error:
        listener.close()
        raise RunInputError(
            f"--port {port}: cannot be used: {error.strerror}; choose another, or 0"
        ) from error
    return listener


@contextlib.contextmanager
def studio_at(folders: list[Path], port: int) -> Iterator[tuple[Door, uvicorn.Server, socket.socket]]:
    """A server that is ready to run, its door and its socket. At the end its runs and questions stop."""
    shelf = Shelf.of(folders)
    # A run folder takes no other run.
    starter = Starter(next((root for root in shelf.roots if not is_run(root)), None))
    with listening(port) as listener:
        door = Door(listener.getsockname()[1], new_token())
        studio = Studio(shelf, starter)
        app = Guarded(application(studio), door)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=2,
        )
        try:
            yield door, uvicorn.Server(config), listener
        finally:
            starter.stop_all()
            studio.questions.stop()


@contextlib.contextmanager
def opening(address: str) -> Iterator[Path]:
    """A file that only its owner can read and that leads to the address.

    A browser gets this file instead of the address, because every account of a machine sees the arguments of
    its processes.
    """
    with tempfile.TemporaryDirectory() as folder:  # mode 0700
        file = Path(folder) / "studio.html"
        file.write_text(
            f'<!doctype html><html lang="en"><head><title>casam studio</title>'
            f'<meta http-equiv="refresh" content="0; url={address}"></head>'
            f'<body><p><a href="{address}">Open the studio</a></p></body></html>'
        )
        yield file


def has_window() -> bool:
    """Whether a browser can open a window here; one without a window would take over the terminal."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def serve(folders: list[Path], port: int, ready: Callable[[str, Path], None]) -> None:
    """Serve until Ctrl-C. ready: called with the address and a file for a browser. Raises RunInputError."""
    with studio_at(folders, port) as (door, server, listener), opening(door.address) as file:
        listener.listen()
        ready(door.address, file)
        server.run(sockets=[listener])
