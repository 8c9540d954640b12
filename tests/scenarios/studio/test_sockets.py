"""The real command: its first page comes soon, it listens on 127.0.0.1 only, and neither it nor the runs that
it starts connect to another machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import tomli_w

from casam_core.protocol.fingerprint import ROOT
from scenarios.studio.serve import has_window
from tests.conftest import tiny_table

WATCH = """
import os, sys
def watch(event, args):
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo"):
        where = args[0] if event == "socket.getaddrinfo" else args[1]
        host = where[0] if isinstance(where, tuple) else where
        with open(os.environ["WATCHED"], "a") as log:
            log.write(f"{event} {host}\\n")
sys.addaudithook(watch)
"""
"""As sitecustomize.py: every Python process of the test writes down whom it talks to."""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With the watch in every Python process."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    return os.environ | {
        "PYTHONPATH": f"{tmp_path / 'watch'}{os.pathsep}{ROOT}",
        "WATCHED": str(tmp_path / "watched.txt"),
        "CASAM_HOME": str(tmp_path / "home"),
    }


@pytest.mark.slow
def test_it_talks_to_this_machine_only(tmp_path: Path, tiny_runs: Path, environment: dict[str, str]) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "mine.toml").write_text(tomli_w.dumps(tiny_table()))
    program = "from scenarios.commands.cli import main; main()"
    command = [sys.executable, "-c", program, "studio", str(runs), str(tiny_runs), "--no-browser"]
    begun = time.monotonic()
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=\S+", process.stdout.readline())
        assert address
        root = f"http://127.0.0.1:{address[1]}"
        with httpx.Client(base_url=root, headers={"origin": root}, timeout=60) as person:
            assert person.get(address[0]).status_code == 200
            assert "Start a scenario" in person.get("/").text
            print(f"first page after {time.monotonic() - begun:.2f} s")
            assert time.monotonic() - begun < 15  # docs/studio.md has the measured figure
            for page in ("run", "bank", "audit", "report", "gallery", "policy"):
                assert person.get(f"/{page}?at=1/done").status_code == 200, page
            opened = person.post("/try/open", data={"image": "1/images/image.png", "bank": "1/done"})
            key = opened.headers["location"].partition("open=")[2]
            assert person.post("/try/segment", data={"open": key, "points": "20 20"}).status_code == 303
            started = person.post("/start", data={"scenario": "file:0/mine.toml", "name": "mine"})
            assert started.headers["location"] == "/run?at=0/mine"
            end = time.monotonic() + 120
            while not (runs / "mine" / "summary.json").exists() and time.monotonic() < end:
                time.sleep(0.5)
            assert "completed" in person.get("/").text
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    watched = (tmp_path / "watched.txt").read_text().splitlines()
    assert "socket.bind 127.0.0.1" in watched
    assert {line.split()[1] for line in watched if "." in line.split()[1]} == {"127.0.0.1"}


def test_another_studio_cannot_take_the_port(tmp_path: Path) -> None:
    from casam_core.errors import RunInputError
    from scenarios.studio.serve import listening

    with listening(0) as first:
        first.listen()
        assert first.getsockname()[0] == "127.0.0.1"
        with pytest.raises(RunInputError, match="cannot be used"):
            listening(first.getsockname()[1])


@pytest.mark.parametrize(
    ("variables", "opens"), [({}, False), ({"DISPLAY": ":0"}, True), ({"WAYLAND_DISPLAY": "w"}, True)]
)
def test_a_machine_without_windows_gets_no_browser_in_its_terminal(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], opens: bool
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert has_window() is opens
