"""A rehearsal on one machine; real ones: tests/e2e/test_deploy_local.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from casam_core.config.scenario import Scenario
from casam_core.errors import CasamError
from scenarios.deploy import local
from tests.casam_command import Casam
from tests.conftest import tiny_table


def test_every_node_has_a_port_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With forty nodes, one of sixteen rehearsals drew a port twice, and a node could not start."""
    drawn = iter([21000, 21000, 21001])
    monkeypatch.setattr(local, "free_port", lambda: next(drawn))
    assert sorted(local.different_ports(2)) == [21000, 21001]


def test_a_relay_that_the_scenario_does_not_name_is_refused_before_anything_starts(tmp_path: Path) -> None:
    order = local.DeployOrder(
        out=tmp_path / "run", relays={"nort": Scenario.model_validate(tiny_table(relayed=True))}
    )
    with pytest.raises(CasamError, match="expected an institution of tiny, found nort"):
        local.deploy_local(Scenario.model_validate(tiny_table()), order, Console())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (tiny_table(), "expected relayed = true"),
        (tiny_table(relayed=True, seed=5), "to differ in institutions, deadlines"),
    ],
)
def test_members_that_would_never_answer_are_refused_before_anything_starts(
    tmp_path: Path, members: dict[str, Any], reason: str
) -> None:
    """The run above would wait for them for minutes."""
    order = local.DeployOrder(out=tmp_path / "run", relays={"north": Scenario.model_validate(members)})
    with pytest.raises(CasamError, match=reason):
        local.deploy_local(Scenario.model_validate(tiny_table()), order, Console())
    assert not (tmp_path / "run").exists()


def test_homes_that_are_kept_are_those_of_members_too(tmp_path: Path) -> None:
    """Each network has its own, so names may be in both; questions are not kept."""
    scenario, members = (
        Scenario.model_validate(tiny_table()),
        Scenario.model_validate(tiny_table(relayed=True)),
    )
    runs = [local.Deployed(scenario, tmp_path / run, None, tmp_path / "sites") for run in ("first", "second")]
    first, second = (run.behind("north", members) for run in runs)
    assert first.homes == second.homes
    assert set(first.homes.values()).isdisjoint(runs[0].homes.values())
    assert first.folder != second.folder


def test_a_relay_without_a_file_is_one_line(casam: Casam) -> None:
    refused = casam("deploy", "local", "quickstart", "--relay", "north").refusal
    assert "--relay: expected NAME=FILE, found 'north'" in refused
