"""The gateway forwards exact Fleet paths and nothing else."""

from __future__ import annotations

import asyncio
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from starlette.applications import Starlette

from scenarios.deploy.gateway import FLEET, MOST_BYTES, gateway_app


class Behind:
    """A SuperLink that answers everything, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        return httpx.Response(
            200, content=b"from the SuperLink", headers={"content-type": "application/x-protobuf"}
        )


@pytest.fixture
def behind() -> Behind:
    return Behind()


@dataclass(frozen=True)
class Asker:
    """Sends requests byte for byte, as no polite client would."""

    app: Starlette

    def request(self, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
        """(status, content) of the answer."""
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(b"host", b"gateway"), (b"flwr-signature", b"s")],
        }
        return asyncio.run(self._ask(scope, body))

    async def _ask(self, scope: dict[str, Any], body: bytes) -> tuple[int, bytes]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        async with self.app.router.lifespan_context(self.app):
            await self.app({**scope, "app": self.app}, receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def in_front_of(superlink: Callable[[httpx.Request], httpx.Response]) -> Asker:
    """A gateway before this SuperLink."""
    transport = httpx.MockTransport(superlink)
    return Asker(
        gateway_app(lambda: httpx.AsyncClient(base_url="https://superlink:8000", transport=transport))
    )


@pytest.fixture
def client(behind: Behind) -> Asker:
    return in_front_of(behind)


@pytest.mark.parametrize("path", [path.decode() for path in FLEET])
def test_what_a_node_needs_passes_whole(client: Asker, behind: Behind, path: str) -> None:
    assert client.request("POST", path, b"protobuf") == (200, b"from the SuperLink")
    (asked,) = behind.asked
    assert str(asked.url) == f"https://superlink:8000{path}"
    assert (asked.content, asked.headers["flwr-signature"]) == (b"protobuf", "s")


def test_health_passes(client: Asker, behind: Behind) -> None:
    assert client.request("GET", "/health")[0] == 200
    assert len(behind.asked) == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/control/list-runs"),
        ("POST", "/v1/runtime/pull-task-input"),
        ("POST", "/v1/fleet/register-node"),  # for nodes without keys of their own
        ("POST", "/v1/fleet/../control/start-run"),
        ("POST", "/v1/fleet/%2e%2e/control/start-run"),
        ("POST", "/v1/fleet/pull-messages/../../control/start-run"),
        ("POST", "/v1/fleet/pull-messages/"),
        ("POST", "/v1/fleet//pull-messages"),
        ("POST", "//v1/fleet/pull-messages"),
        ("POST", "/v1/fleet/pull%2Dmessages"),
        ("POST", "/v1/FLEET/pull-messages"),
        ("POST", "/v1/fleet/pull-messages?a=b"),
        ("POST", "/v1/fleet/"),
        ("GET", "/v1/fleet/pull-messages"),
        ("POST", "/health"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/"),
    ],
)
def test_all_else_is_refused_without_asking(client: Asker, behind: Behind, method: str, path: str) -> None:
    assert client.request(method, path)[0] in (404, 405)
    assert behind.asked == []


def test_a_request_beyond_any_need_is_refused(client: Asker, behind: Behind) -> None:
    assert client.request("POST", "/v1/fleet/push-object", b"\0" * (MOST_BYTES + 1))[0] == 413
    assert behind.asked == []


def test_a_superlink_that_is_gone_is_a_bad_gateway() -> None:
    def gone(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("gone")

    assert in_front_of(gone).request("POST", "/v1/fleet/pull-messages")[0] == 502


def test_the_list_is_flowers_own_but_for_nodes_without_keys() -> None:
    """A new Flower with another Fleet path must be looked at here."""
    router = Path(str(importlib.import_module("flwr.superlink.routers.fleet.router").__file__)).read_text()
    paths = {f"/v1/fleet{path}".encode() for path in re.findall(r'@router\.post\("(/[a-z-]+)"\)', router)}
    assert paths - set(FLEET) == {b"/v1/fleet/register-node", b"/v1/fleet/unregister-node"}
    assert set(FLEET) <= paths
