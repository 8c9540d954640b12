"""Who may ask: no stranger, no other web page, no foreign name for this machine; and only about the
folders.
"""

from __future__ import annotations

import stat
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from scenarios.studio import pages
from scenarios.studio.pages import Studio
from scenarios.studio.serve import opening
from scenarios.studio.shelf import NotFoundError, Shelf
from tests.scenarios.studio.conftest import PORT, TOKEN

PAGES = [
    "/",
    "/run?at=0/done",
    "/run?at=0/broken-off",
    "/run/live?at=0/broken-off",
    "/report?at=0/done",
    "/compare",
    "/bank",
    "/bank?at=0/done",
    "/audit",
    "/audit?at=0/done",
    "/policy",
    "/gallery",
    "/try",
    "/static/studio.css",
    "/static/studio.js",
]
FORMS = ["/start", "/run/stop", "/run/resume", "/policy/words", "/try/open", "/try/upload", "/try/segment"]


@pytest.mark.parametrize("path", PAGES)
def test_without_the_cookie_every_page_is_locked(stranger: TestClient, path: str) -> None:
    answer = stranger.get(path)
    assert answer.status_code == 403
    assert "locked" in answer.text
    assert "done" not in answer.text


def test_the_printed_address_gives_a_cookie_and_leads_on_without_the_token(stranger: TestClient) -> None:
    answer = stranger.get(f"/?token={TOKEN}")
    assert answer.status_code == 200
    assert 'content="0; url=/"' in answer.text
    cookie = answer.headers["set-cookie"].lower()
    assert f"casam-studio-{PORT}=" in cookie
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert TOKEN not in cookie + answer.text
    assert stranger.get("/").status_code == 200


def test_the_printed_address_works_from_a_link_elsewhere(stranger: TestClient) -> None:
    assert stranger.get(f"/?token={TOKEN}", headers={"sec-fetch-site": "cross-site"}).status_code == 200
    assert stranger.post(f"/?token={TOKEN}").status_code == 403


def test_the_browser_gets_a_private_file_and_not_the_token() -> None:
    with opening("http://127.0.0.1:1/?token=secret") as file:
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        assert "secret" in file.read_text()
        assert "secret" not in file.as_uri()
    assert not file.exists()


@pytest.mark.parametrize("query", ["token=wrong", "token=", f"token={TOKEN}x", f"tokens={TOKEN}"])
def test_a_wrong_token_opens_nothing(stranger: TestClient, query: str) -> None:
    assert stranger.get(f"/?{query}").status_code == 403


def test_a_forged_cookie_opens_nothing(stranger: TestClient) -> None:
    assert stranger.get("/", headers={"cookie": f"casam-studio-{PORT}={TOKEN}"}).status_code == 403


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", f"127.0.0.1.evil.example:{PORT}"]
)
def test_a_foreign_name_for_this_machine_is_refused(visitor: TestClient, host: str) -> None:
    assert visitor.get("/", headers={"host": host}).status_code == 421
    assert visitor.get(f"/?token={TOKEN}", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("path", FORMS)
@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", f"http://127.0.0.1:{PORT + 1}", f"https://127.0.0.1:{PORT}", ""]
)
def test_forms_of_other_origins_are_refused(visitor: TestClient, path: str, origin: str) -> None:
    assert visitor.post(path, headers={"origin": origin}).status_code == 403
    del visitor.headers["origin"]
    assert visitor.post(path).status_code == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_other_pages_in_the_same_browser_are_refused(visitor: TestClient, site: str) -> None:
    assert visitor.get("/gallery", headers={"sec-fetch-site": site}).status_code == 403
    assert visitor.post("/start", headers={"sec-fetch-site": site}).status_code == 403
    assert visitor.get("/gallery", headers={"sec-fetch-site": "same-origin"}).status_code == 200


@pytest.mark.parametrize("path", FORMS)
def test_a_form_is_never_answered_to_a_link(visitor: TestClient, path: str) -> None:
    assert visitor.get(path).status_code == 404


@pytest.mark.parametrize("path", [*PAGES, "/nothing", "/run?at=0/nothing"])
def test_every_answer_says_what_the_browser_may_load(visitor: TestClient, path: str) -> None:
    headers = visitor.get(path).headers
    rules = dict(rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";"))
    assert rules["default-src"] == rules["frame-ancestors"] == "'none'"
    if not path.startswith("/report"):
        assert {sources for name, sources in rules.items()} == {"'none'", "'self'"}
    else:
        assert "script-src" not in rules  # so no script at all, by default-src
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"


class Tags(HTMLParser):
    """All tags of a page with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("path", [path for path in PAGES if not path.startswith(("/static", "/report"))])
def test_pages_hold_no_inline_script_or_style_and_no_address_of_elsewhere(
    visitor: TestClient, path: str
) -> None:
    tags = Tags(visitor.get(path).text).found
    assert len(tags) > 3
    for tag, attributes in tags:
        assert tag not in ("style", "iframe", "object", "embed", "base")
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("src", "href", "action"):
            assert (attributes.get(name) or "/").startswith(("/", "#")), attributes
            assert not (attributes.get(name) or "").startswith("//")


@pytest.mark.parametrize(
    "at",
    [
        "0/..",
        "0/../secret",
        "0/done/../../../secret",
        "0//etc/passwd",
        "1/done",
        "-1/done",
        "x/done",
        "",
        "0/a\0b",
        "0/link/secret.png",
    ],
)
def test_nothing_outside_the_folders_is_found(tmp_path: Path, at: str) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "secret.png").write_bytes(b"")
    (tmp_path / "runs" / "done").mkdir(parents=True)
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(NotFoundError):
        Shelf.of([tmp_path / "runs"]).find(at)


def test_a_link_out_of_the_folders_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    for name in ("scenario.json", "events.jsonl", "scan.png"):
        (tmp_path / "secret" / name).write_bytes(b"")
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "link").symlink_to(tmp_path / "secret")
    (runs / "scan.png").symlink_to(tmp_path / "secret" / "scan.png")
    shelf = Shelf.of([runs])
    assert (shelf.runs(), shelf.images()) == ([], [])


@pytest.mark.parametrize("path", ["/run", "/bank", "/audit", "/report"])
def test_pages_answer_a_path_outside_as_one_that_is_not_there(visitor: TestClient, path: str) -> None:
    answer = visitor.get(path, params={"at": "0/../../etc"})
    assert answer.status_code == 404
    assert "root:" not in answer.text


def test_a_page_that_fails_shows_no_traceback(visitor: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("a secret of the program")

    monkeypatch.setattr(pages.run_pages, "runs_table", broken)
    answer = visitor.get("/")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert "content-security-policy" in answer.headers


def test_a_form_that_is_too_long_is_not_read(visitor: TestClient, studio: Studio) -> None:
    form = "application/x-www-form-urlencoded"
    answer = visitor.post(
        "/start", content=b"x" * (pages.MOST_FORM_BYTES + 1), headers={"content-type": form}
    )
    assert answer.status_code == 413
    assert studio.starter.all() == []


def test_text_of_others_is_text_on_the_page(visitor: TestClient) -> None:
    answer = visitor.get("/run", params={"at": "0/<script>alert(1)</script>"})
    assert "<script>alert" not in answer.text
    assert "&lt;script&gt;alert" in answer.text
