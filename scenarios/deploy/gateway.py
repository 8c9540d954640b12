"""The gateway in front of a SuperLink: it forwards only the requests that nodes need.

In Flower 1.41 the same port serves nodes (Fleet), operators (Control) and apps (Runtime), so any client that
reaches it can start runs. The gateway uses TLS on both sides and forwards a request only if the bytes of its
path equal one of Flower's Fleet paths. It does not compare prefixes or decode paths, so
`/v1/fleet/../control/...` is refused.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from casam_core.errors import DeploymentError

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
"""Largest request; Flower sends pieces of 5 MB."""

SECONDS = 60.0
NOT_FORWARDED = {"host", "connection", "content-length", "transfer-encoding", "upgrade", "keep-alive", "te"}


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
    """Serve until the process is ended. Raises DeploymentError for files that cannot be read."""
    import uvicorn

    for path in (gateway.certificate, gateway.key, gateway.authority):
        if not path.is_file():
            raise DeploymentError(f"{path}: expected a file there; `casam provision` writes it")
    trust = ssl.create_default_context(cafile=str(gateway.authority))
    app = gateway_app(
        lambda: httpx.AsyncClient(base_url=f"https://{gateway.superlink}", verify=trust, timeout=SECONDS)
    )
    uvicorn.run(
        app,
        host=gateway.host,
        port=gateway.port,
        ssl_certfile=str(gateway.certificate),
        ssl_keyfile=str(gateway.key),
        access_log=False,
        server_header=False,
    )


def gateway_app(connect: Callable[[], httpx.AsyncClient]) -> Starlette:
    """The gateway as a web application. connect: makes a client whose base URL is the SuperLink."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with connect() as app.state.superlink:
            yield

    route = Route(
        "/{path:path}", forward, methods=["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]
    )
    return Starlette(routes=[route], lifespan=lifespan)


async def forward(request: Request) -> Response:
    """Forward an allowed request and return the SuperLink's answer. Others get 404 and are not forwarded."""
    asked = (request.method, request.scope["raw_path"], request.scope["query_string"])
    if asked != ("GET", HEALTH, b"") and not (asked[0] == "POST" and asked[1] in FLEET and asked[2] == b""):
        return Response(status_code=404)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            return Response(status_code=413)
    superlink: httpx.AsyncClient = request.app.state.superlink
    headers = [(name, value) for name, value in request.headers.items() if name not in NOT_FORWARDED]
    try:
        answer = await superlink.request(
            asked[0], asked[1].decode("ascii"), content=bytes(body), headers=headers
        )
    except httpx.HTTPError:
        return Response(status_code=502)
    passed = {
        name: value
        for name, value in answer.headers.items()
        if name not in NOT_FORWARDED | {"content-encoding"}
    }
    return Response(answer.content, status_code=answer.status_code, headers=passed)
