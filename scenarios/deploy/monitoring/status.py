"""The two pages that a monitoring system reads: /metrics and, of a node, /health.

They are read-only and answer on this machine only, unless the operator or the site names another address. A
page that cannot be made answers 500 with one line. Nothing that a page says is sent anywhere.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from casam_core.errors import CasamError, DeploymentError
from scenarios.deploy.monitoring.exposition import CONTENT_TYPE, Family, exposed

LONGEST_SILENCE = 60.0
"""Seconds without an answer of the server after which a node is no longer healthy. It asks every 3 s."""

SLOWEST_CLIENT = 10.0
"""Seconds after which a connection without a request is closed."""

Page = Callable[[], tuple[int, str]]
"""Makes a page: its HTTP status and its text."""


class Contact:
    """When the server last answered this node: it answers only a node whose key it knows."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None

    def heard(self) -> None:
        """The server answered now."""
        self._last = self._clock()

    @property
    def silence(self) -> float | None:
        """Seconds since the last answer; None before the first one."""
        return None if self._last is None else self._clock() - self._last

    def health(self) -> tuple[int, str]:
        """200 if the server knows this node now, else 503."""
        silence = self.silence
        if silence is None:
            return 503, "the server has not answered this node yet\n"
        if silence > LONGEST_SILENCE:
            return 503, f"the server has not answered this node for {silence:.0f} s\n"
        return 200, "the server knows this node\n"

    def families(self) -> list[Family]:
        """The same as a metric."""
        connected = float(self.health()[0] == 200)
        return [
            Family("casam_site_connected", "gauge", "1: the server knows this node now.", (), {(): connected})
        ]


def metrics_page(families: Callable[[], list[Family]]) -> Page:
    """The page /metrics. One request at a time makes it: counters go on from what they have read."""
    lock = threading.Lock()

    def page() -> tuple[int, str]:
        with lock:
            return 200, exposed(families())

    return page


def status_server(host: str, port: int, pages: Mapping[str, Page]) -> ThreadingHTTPServer:
    """A server of these pages, by path; the caller starts it. Raises DeploymentError if the port is taken."""

    class Handler(BaseHTTPRequestHandler):
        timeout = SLOWEST_CLIENT
        server_version, sys_version = "casam", ""

        def do_GET(self) -> None:
            page = pages.get(self.path)
            try:
                status, text = page() if page else (404, "expected /metrics or /health\n")
            except (CasamError, OSError) as error:
                status, text = 500, f"{error}\n"
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *words: object) -> None:
            """No line for each request."""

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    try:
        return Server((host, port), Handler)
    except OSError as error:
        raise DeploymentError(
            f"--metrics, --listen: cannot listen at {host}:{port}: {error.strerror}; choose another port"
        ) from error


def in_background(server: ThreadingHTTPServer) -> None:
    """Serve beside the process's own work, until it ends."""
    threading.Thread(target=server.serve_forever, name="status", daemon=True).start()
