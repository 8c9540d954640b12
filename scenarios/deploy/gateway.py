"""The gateway in front of a SuperLink: it forwards only the requests that nodes need.

In Flower 1.41 the same port serves nodes (Fleet), operators (Control) and apps (Runtime), so any client that
reaches it can start runs. The gateway uses TLS on both sides and forwards a request only if the bytes of its
path equal one of Flower's Fleet paths. It does not compare prefixes or decode paths, so
`/v1/fleet/../control/...` is refused.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from casam_core.errors import DeploymentError
from scenarios.deploy.certificates import last_moment

FLEET = tuple(
    f"/v1/fleet/{name}".encode()
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
"""The calls of a registered node. register-node and unregister-node, for nodes without keys, are refused."""

HEALTH = b"/health"
MOST_BYTES = 32 * 1024 * 1024
"""Largest request and largest answer; Flower sends pieces of 5 MB."""

MOST_OPEN_BYTES = 8 * MOST_BYTES
"""Bytes of all requests that are not finished yet."""

MOST_OF_ONE = 2 * MOST_BYTES
"""The same for one address: it cannot take the place of all others."""

PIECE_SECONDS, BODY_SECONDS = 15.0, 120.0
"""How long the gateway waits for the next piece of a request, and for a whole request."""

MOST_CONNECTIONS = 1000
SECONDS = 60.0
NOT_FORWARDED = {"host", "connection", "content-length", "transfer-encoding", "upgrade", "keep-alive", "te"}


NOT_ANSWERED = NOT_FORWARDED | {"content-encoding"}


@dataclass(frozen=True)
class Gateway:
    """The gateway's address, certificate and key, and its SuperLink with the authority that signed it."""

    host: str
    port: int
    certificate: Path
    key: Path
    superlink: str
    authority: Path


def serve(gateway: Gateway) -> None:
    """Serve until the process is ended. Raises DeploymentError for files that it cannot use."""
    import uvicorn

    trust = trusted_by(gateway)
    end = last_moment(gateway.certificate)
    print(f"gateway: the certificate {gateway.certificate} is valid until {end:%Y-%m-%d}", flush=True)
    uvicorn.run(
        gateway_app(lambda: client_of(gateway.superlink, trust)),
        host=gateway.host,
        port=gateway.port,
        ssl_certfile=str(gateway.certificate),
        ssl_keyfile=str(gateway.key),
        access_log=False,
        limit_concurrency=MOST_CONNECTIONS,
        server_header=False,
    )


def trusted_by(gateway: Gateway) -> ssl.SSLContext:
    """Trust in the authority alone. Raises DeploymentError unless the three files hold what nodes need."""
    try:
        own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        own.load_cert_chain(gateway.certificate, gateway.key, password="")  # never asks at a terminal
        return ssl.create_default_context(cafile=gateway.authority)
    except OSError as error:  # errors of TLS are among them
        files = ", ".join(str(path) for path in (gateway.certificate, gateway.key, gateway.authority))
        raise DeploymentError(
            f"--certificate, --key, --authority: expected server.crt, server.key and ca.crt, as "
            f"`casam provision` wrote them, found {files}: {error}"
        ) from error


def client_of(superlink: str, trust: ssl.SSLContext) -> httpx.AsyncClient:
    """Asks the SuperLink itself: a proxy for the internet neither reaches it nor may stand in between."""
    limits = httpx.Limits(max_connections=MOST_CONNECTIONS)
    return httpx.AsyncClient(
        base_url=f"https://{superlink}", verify=trust, timeout=SECONDS, limits=limits, trust_env=False
    )


def gateway_app(connect: Callable[[], httpx.AsyncClient]) -> Starlette:
    """The gateway as a web application. connect: makes a client whose base URL is the SuperLink."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.room = Room()
        async with connect() as app.state.superlink:
            yield

    route = Route(
        "/{path:path}", forward, methods=["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]
    )
    return Starlette(routes=[route], lifespan=lifespan)


class RefusedError(Exception):
    """A request that the gateway ends. status: of the answer."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass
class Room:
    """The bytes of all requests that are not finished, by address."""

    taken: Counter[str] = field(default_factory=Counter)

    def take(self, address: str, size: int) -> None:
        """Count a piece. Raises RefusedError (503) if there is no room for it."""
        mine, all_ = self.taken[address] + size, self.taken.total() + size
        if mine > MOST_OF_ONE or all_ > MOST_OPEN_BYTES:
            raise RefusedError(503)
        self.taken[address] = mine

    def give_back(self, address: str, size: int) -> None:
        """The request is finished."""
        self.taken[address] -= size
        self.taken += Counter()  # forgets addresses without bytes


async def forward(request: Request) -> Response:
    """Forward an allowed request and return the SuperLink's answer. Others get 404 and are not forwarded.

    A request passes piece by piece: 413 for a body that is too long, 408 for one that comes too slowly, 503
    if too many bodies are open, 502 for an answer that is too long or does not come.
    """
    asked = (request.method, request.scope["raw_path"], request.scope["query_string"])
    if asked != ("GET", HEALTH, b"") and not (asked[0] == "POST" and asked[1] in FLEET and asked[2] == b""):
        return Response(status_code=404)
    superlink: httpx.AsyncClient = request.app.state.superlink
    headers = [(name, value) for name, value in request.headers.items() if name not in NOT_FORWARDED]
    try:
        said = declared(request.headers)
        if said is not None:
            headers.append(("content-length", str(said)))
        content = pieces(request) if said != 0 else b""
        sent = superlink.build_request(asked[0], asked[1].decode("ascii"), content=content, headers=headers)
        answer = await superlink.send(sent, stream=True)
        try:
            body = await whole(answer)
        finally:
            await answer.aclose()
    except RefusedError as refused:
        # The rest of the body is not read: the connection ends with the answer.
        return Response(status_code=refused.status, headers={"connection": "close"})
    except httpx.HTTPError:
        return Response(status_code=502)
    passed = {name: value for name, value in answer.headers.items() if name not in NOT_ANSWERED}
    return Response(body, status_code=answer.status_code, headers=passed)


def declared(headers: Mapping[str, str]) -> int | None:
    """The length that a request declares. Raises RefusedError (413, 400) if it is too long or no number."""
    length = headers.get("content-length")
    if length is None:
        return None
    if not (length.isascii() and length.isdigit()):
        raise RefusedError(400)
    if len(length) > 12 or int(length) > MOST_BYTES:
        raise RefusedError(413)
    return int(length)


async def pieces(request: Request) -> AsyncIterator[bytes]:
    """The request's body as it arrives. Raises RefusedError (413, 408, 503)."""
    room: Room = request.app.state.room
    address = request.client.host if request.client else ""
    size, end, stream = 0, time.monotonic() + BODY_SECONDS, aiter(request.stream())
    try:
        while True:
            left = min(PIECE_SECONDS, end - time.monotonic())
            piece = await asyncio.wait_for(anext(stream, None), left)
            if piece is None:
                return
            if size + len(piece) > MOST_BYTES:
                raise RefusedError(413)
            room.take(address, len(piece))
            size += len(piece)
            if piece:
                yield piece
    except TimeoutError as error:
        raise RefusedError(408) from error
    finally:
        room.give_back(address, size)


async def whole(answer: httpx.Response) -> bytes:
    """The SuperLink's answer. Raises RefusedError (502) if it is longer than MOST_BYTES."""
    body = bytearray()
    async for piece in answer.aiter_bytes():
        body += piece
        if len(body) > MOST_BYTES:
            raise RefusedError(502)
    return bytes(body)
