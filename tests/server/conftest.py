"""The server's tests wait for nobody."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.federation.federation.RETRY_SECONDS", 0.0)
    monkeypatch.setattr("server.federation.directory.ASK_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr("server.federation.directory.STRANGERS_SECONDS", 0.0)
