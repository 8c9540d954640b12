"""Who is there: what keeps a run from starting has a name."""

from __future__ import annotations

from pathlib import Path

import pytest

import client.app
from casam_core.errors import RunError
from casam_core.scenario import Scenario
from scenarios.inprocess import run_inprocess


def test_other_code_is_named_before_the_scenario_is_read(
    tmp_path: Path, tiny_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other code may refuse the scenario itself, for a key it does not know."""

    def cannot_read(text: str) -> Scenario:
        raise AssertionError("read before the code was compared")

    monkeypatch.setattr(client.app, "code_fingerprint", lambda: "an older one")
    monkeypatch.setattr(client.app.Scenario, "model_validate_json", cannot_read)
    with pytest.raises(RunError, match=r"code: the server runs .* a node another; stop the local SuperLink"):
        run_inprocess(tiny_scenario, tmp_path / "run", None)
