"""How often the server looks for answers, and how many requests it lets be under way."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from server.federation.polling import at_once, pause


def test_a_pause_is_a_twentieth_of_what_was_waited_within_bounds() -> None:
    assert pause(0.1, unsent=False) == 0.02
    assert pause(2.0, unsent=False) == pytest.approx(0.1)
    assert pause(600.0, unsent=False) == 1.0


def test_while_requests_wait_for_room_answers_are_looked_for_at_once() -> None:
    assert pause(600.0, unsent=True) == 0.02


@pytest.mark.parametrize(("cores", "want"), [(2.0, 24), (6.0, 24), (64.0, 256)])
def test_a_simulation_asks_a_few_per_core(monkeypatch: pytest.MonkeyPatch, cores: float, want: int) -> None:
    ray = SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: {"CPU": cores})
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert at_once() == want


def test_real_sites_all_begin_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    assert at_once() is None
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    assert at_once() is None
