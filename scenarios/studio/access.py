"""Who may ask the studio, and what its pages may load.

The studio shows patients' images to one person on one machine. Other programs of that machine and other web
pages in the same browser can reach 127.0.0.1, too, so every request must show:

- `Host` is the studio's own address: a foreign name that resolves to 127.0.0.1 (DNS rebinding) is refused.
- The cookie that the address with the token gave. The cookie is SameSite=Strict and HttpOnly.
- `Sec-Fetch-Site`, where the browser sends it, says that the studio's own page or the person asked.
- What changes something comes from the studio's own origin, by `Origin`.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

READING = frozenset({"GET", "HEAD"})
OWN_REQUESTS = frozenset({"same-origin", "none"})
"""Values of Sec-Fetch-Site: our own page, or a person who typed or opened the address."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""A report is one page with its own style sheet and without scripts."""

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with no-referrer, browsers send `Origin: null` with our own forms
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
LOCKED = "This page is locked. Open the address that `casam studio` printed in its terminal.\n"

OPENED = (
    '<!doctype html><html lang="en"><head><title>casam studio</title>'
    '<link rel="icon" href="/static/icon.svg"><meta http-equiv="refresh" content="0; url=/"></head>'
    '<body><p><a href="/">Open the studio</a></p></body></html>'
)
"""The answer to the printed address: from this page the browser goes on to the studio."""


def new_token() -> str:
    """256 random bits, as text for an address."""
    return secrets.token_urlsafe(32)


@dataclass(frozen=True)
class Door:
    """The studio's address and secrets. token: in the printed address. session: in the cookie."""

    port: int
    token: str
    session: str = field(default_factory=new_token)

    @property
    def address(self) -> str:
        """The address to open, with the token."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    @property
    def cookie(self) -> str:
        """The cookie's name: browsers share cookies between ports."""
        return f"casam-studio-{self.port}"

    @property
    def hosts(self) -> frozenset[str]:
        """The values of `Host` that are ours."""
        return frozenset({f"127.0.0.1:{self.port}", f"localhost:{self.port}"})

    def fault(self, method: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """(status, reason) of a request of another page, before its cookie is looked at."""
        host = headers.get("host", "")
        if headers.get("sec-fetch-site", "none") not in OWN_REQUESTS:
            return 403, "another web page asked"
        if method not in READING and headers.get("origin") != f"http://{host}":
            return 403, "expected a request of the studio's own page (Origin)"
        return None

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Whether the request has this studio's cookie."""
        given = cookie_parser(headers.get("cookie", "")).get(self.cookie, "")
        return hmac.compare_digest(given.encode(), self.session.encode())

    def opened_by(self, method: str, path: str, query: bytes) -> bool:
        """Whether this is the printed address with the right token."""
        given = parse_qs(query.decode("latin-1")).get("token", [""])[0]
        return method == "GET" and path == "/" and hmac.compare_digest(given.encode(), self.token.encode())


class Guarded:
    """The application behind the door. A failure inside gives a plain page, never a traceback."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self.app, self.door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no page opens a WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        begun = False

        async def sealed(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                named = {name for name, _ in message["headers"]}
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(pair for pair in added if pair[0] not in named)]
            await send(message)

        answer = self.answer(scope)
        try:
            await (answer or self.app)(scope, receive, sealed)
        except Exception:
            logging.getLogger("casam.studio").exception("a page failed")
            if not begun:
                text = "Something went wrong here. The terminal of `casam studio` says what.\n"
                await PlainTextResponse(text, 500)(scope, receive, sealed)

    def answer(self, scope: Scope) -> Response | None:
        """What the door itself answers: a refusal, or the cookie; None lets the request in."""
        headers, method = Headers(scope=scope), scope["method"]
        if headers.get("host", "") not in self.door.hosts:
            return PlainTextResponse("Refused: expected the studio's own address in Host.\n", 421)
        if self.door.opened_by(method, scope["path"], scope["query_string"]):
            # Not a redirect: after a click elsewhere, browsers withhold a strict cookie from those.
            answer = HTMLResponse(OPENED)
            answer.set_cookie(self.door.cookie, self.door.session, httponly=True, samesite="strict", path="/")
            return answer
        if (fault := self.door.fault(method, headers)) is not None:
            return PlainTextResponse(f"Refused: {fault[1]}.\n", fault[0])
        return None if self.door.knows(headers) else PlainTextResponse(LOCKED, 403)
