"""A rehearsal on one machine; real ones: tests/e2e/test_deploy_local.py."""

from __future__ import annotations

import pytest

from scenarios.deploy import local


def test_every_node_has_a_port_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With forty nodes, one of sixteen rehearsals drew a port twice, and a node could not start."""
    drawn = iter([21000, 21000, 21001])
    monkeypatch.setattr(local, "free_port", lambda: next(drawn))
    assert sorted(local.different_ports(2)) == [21000, 21001]
