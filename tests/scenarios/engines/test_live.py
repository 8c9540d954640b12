"""Lines of server and institutions on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest

from scenarios.engines.live import live_view
from scenarios.printing import console


@pytest.mark.parametrize("terminal", [False, True])
def test_brackets_in_a_line_are_text(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """Of a folder's name, or of what an institution sent: neither is a command to the terminal."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setenv("TERM", "xterm")
    with live_view(console()) as show:
        show("casam | server | failed: /data/[old]/run and /data/[/new]/:key:")
        show("casam | north | trains [/polyp] | 1/2")
    said = stream.getvalue()
    assert "/data/[old]/run and /data/[/new]/:key:" in said
    assert "trains [/polyp]" in said
