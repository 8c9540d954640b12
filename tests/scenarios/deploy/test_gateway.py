"""The gateway forwards exact Fleet paths and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from starlette.applications import Starlette

from casam_core.errors import DeploymentError
from scenarios.deploy import certificates, gateway
from scenarios.deploy.certificates import (
    last_moment,
    new_authority,
    read_authority,
    write_authority,
    write_server,
)
from scenarios.deploy.gateway import FLEET, MOST_BYTES, Gateway, client_of, gateway_app, serve, trusted_by


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


class Sender:
    """One request whose pieces the test sends by hand."""

    def __init__(self, app: Starlette, address: str = "10.0.0.1", **headers: str) -> None:
        self.pieces: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: list[Any] = []
        given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": "/v1/fleet/push-object",
            "raw_path": b"/v1/fleet/push-object",
            "query_string": b"",
            "headers": [(b"host", b"gateway"), *given],
            "client": (address, 1234),
            "app": app,
        }
        self.task = asyncio.create_task(app(scope, self.pieces.get, self._keep))

    async def _keep(self, message: Any) -> None:
        self.sent.append(message)

    async def piece(self, body: bytes, *, more: bool = True) -> None:
        await self.pieces.put({"type": "http.request", "body": body, "more_body": more})
        for _ in range(5):
            await asyncio.sleep(0)

    async def status(self) -> int:
        await asyncio.wait_for(self.task, 5)
        return int(self.sent[0]["status"])


def with_gateway(scene: Callable[[Starlette], Any], superlink: Any = None) -> Any:
    """What the scene returns that plays before a gateway."""
    transport = httpx.MockTransport(superlink or Behind())
    app = gateway_app(lambda: httpx.AsyncClient(base_url="https://superlink:8000", transport=transport))

    async def play() -> Any:
        async with app.router.lifespan_context(app):
            return await scene(app)

    return asyncio.run(play())


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same limits, 32,768 times smaller."""
    for name in ("MOST_BYTES", "MOST_OPEN_BYTES", "MOST_OF_ONE"):
        monkeypatch.setattr(gateway, name, getattr(gateway, name) // 2**15)


def test_half_sent_bodies_hold_no_more_than_the_room_and_then_time_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small(monkeypatch)
    monkeypatch.setattr(gateway, "PIECE_SECONDS", 0.3)

    async def scene(app: Starlette) -> tuple[int, int, list[int], int]:
        senders = [Sender(app, f"10.0.0.{number}") for number in range(20)]
        for sender in senders:
            await sender.piece(b"\0" * 1023)
        held = app.state.room.taken.total()
        full = sum(sender.task.done() for sender in senders)
        statuses = sorted({await sender.status() for sender in senders})
        return held, full, statuses, app.state.room.taken.total()

    held, full, statuses, after = with_gateway(scene)
    assert held <= 8 * 1024
    assert full == 12, "eight bodies fit; the others are told at once"
    assert statuses == [408, 503]
    assert after == 0


def test_one_address_cannot_take_the_room_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)

    async def scene(app: Starlette) -> tuple[list[bool], int]:
        greedy = [Sender(app, "10.0.0.1") for _ in range(5)]
        for sender in greedy:
            await sender.piece(b"\0" * 1023)
        other = Sender(app, "10.0.0.2")
        await other.piece(b"protobuf", more=False)
        status = await other.status()
        done = [sender.task.done() for sender in greedy]
        for sender in greedy:
            sender.task.cancel()
        return done, status

    assert with_gateway(scene) == ([False, False, True, True, True], 200)


def test_a_body_that_drips_is_ended_even_if_every_piece_is_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "BODY_SECONDS", 0.2)

    async def scene(app: Starlette) -> int:
        sender = Sender(app)
        while not sender.task.done():
            await sender.piece(b"x")
            await asyncio.sleep(0.02)
        return await sender.status()

    assert with_gateway(scene) == 408


@pytest.mark.parametrize(("length", "status"), [(str(MOST_BYTES + 1), 413), ("9" * 40, 413), ("-1", 400)])
def test_a_declared_length_is_looked_at_before_any_byte(length: str, status: int) -> None:
    async def scene(app: Starlette) -> int:
        return await Sender(app, content_length=length).status()

    assert with_gateway(scene) == status


def test_an_answer_beyond_any_need_does_not_pass() -> None:
    def talkative(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=b"\0" * (MOST_BYTES + 1))

    assert in_front_of(talkative).request("POST", "/v1/fleet/pull-object")[0] == 502


def test_a_body_passes_in_pieces_and_whole() -> None:
    behind = Behind()

    async def scene(app: Starlette) -> int:
        sender = Sender(app, content_length="8")
        await sender.piece(b"prot")
        await sender.piece(b"obuf", more=False)
        return await sender.status()

    assert with_gateway(scene, behind) == 200
    (asked,) = behind.asked
    assert (asked.content, asked.headers["content-length"]) == (b"protobuf", "8")


@pytest.fixture
def served(tmp_path: Path) -> Gateway:
    """A gateway with the files of an operator."""
    authority = new_authority()
    write_authority(authority, tmp_path)
    write_server(authority, ["localhost"], tmp_path)
    crt, key, ca = (tmp_path / name for name in ("server.crt", "server.key", "ca.crt"))
    return Gateway("127.0.0.1", 9092, crt, key, "localhost:8000", ca)


def test_no_proxy_of_the_environment_stands_before_the_superlink(
    served: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert not client_of(served.superlink, trusted_by(served)).trust_env


@pytest.mark.parametrize(
    "change", [("authority", "none"), ("authority", "key"), ("certificate", "authority")]
)
def test_files_that_it_cannot_use_are_one_line(served: Gateway, change: tuple[str, str]) -> None:
    wrong, found = change
    path = getattr(served, found, Path("nowhere"))
    with pytest.raises(DeploymentError, match=r"expected server.crt, server.key and ca.crt") as caught:
        trusted_by(replace(served, **{wrong: path}))
    assert "\n" not in str(caught.value)


def test_an_expired_certificate_is_named_before_nodes_miss_the_server(
    served: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert last_moment(served.certificate) > datetime.now(UTC)
    monkeypatch.setattr(certificates, "SERVER_DAYS", 0)
    write_server(read_authority(served.certificate.parent), ["localhost"], served.certificate.parent)
    with pytest.raises(DeploymentError, match=r"found one that ended on .*--renew-server"):
        serve(served)
