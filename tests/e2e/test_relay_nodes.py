"""Relays and mirrors over real Flower: two SuperLinks with TLS, and nothing but a folder between the two."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from casam_core.bank.bank import Bank
from casam_core.config.scenario import Scenario
from scenarios.deploy import local
from tests.conftest import phantom, tiny_table
from tests.runs import FinishedRun, events, summary_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def table(*names: str, **changes: Any) -> dict[str, Any]:
    """Institutions that hold histology, the one task."""
    data = {"histology": phantom("histology")}
    sites = [{"name": name, "data": data} for name in names]
    return tiny_table(stream=["histology"], institutions=sites, **changes)


@contextmanager
def kept_in_step(mirror: Path, run: Path) -> Iterator[None]:
    """A program that copies new entries to a site's mirror, as a site's own rsync would."""
    ended = threading.Event()

    def copy() -> None:
        while not ended.wait(0.2):
            for entry in (run / "bank" / "entries").glob("*.entry"):
                if not (mirror / entry.name).exists():
                    shutil.copy(entry, mirror / "half")
                    (mirror / "half").rename(mirror / entry.name)

    program = threading.Thread(target=copy)
    program.start()
    try:
        yield
    finally:
        ended.set()
        program.join()


def test_a_run_through_a_relay_has_the_matrix_of_a_run_without(
    tmp_path: Path, finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two networks share a folder, and no port, key or name; south takes its entries from a mirror."""
    run, mirror = tmp_path / "run", tmp_path / "mirror"
    mirror.mkdir()
    honest = local.write_node

    def written(scenario: Scenario, name: str, *rest: Any) -> Path:
        file = honest(scenario, name, *rest)
        if name == "south":
            file.write_text(f'{file.read_text()}mirror = "{mirror}"\n')
        return file

    monkeypatch.setattr(local, "write_node", written)
    members = Scenario.model_validate(table("east", "west", relayed=True))
    order = local.DeployOrder(out=run, relays={"north": members})
    with kept_in_step(mirror, run):
        local.deploy_local(Scenario.model_validate(table("north", "south")), order, Console())

    direct = finished_run(table("east", "west", "south"))
    found, expected = (np.array(summary_of(path)["matrix"]["iou"], float) for path in (run, direct))
    assert np.allclose(found, expected, atol=1e-3)
    entries, whole = Bank.open(run / "bank"), Bank.open(direct / "bank")
    assert entries["histology"].provenance.holders == ("north", "south")
    for name, weights in whole["histology"].layer.items():
        assert np.allclose(entries["histology"].layer[name], weights, atol=1e-4), name

    below = run / "relays" / "north"
    assert events(below, "not-relayed") == []
    assert {event["institution"] for event in events(below, "answer")} == {"east", "west"}
    assert not list((run / "institutions" / "north").rglob("*.question")), "no question is left"
    assert not list(run.rglob("*.question"))
    assert events(run, "mirror-missed") == []
    sent, (entry,) = events(run, "traffic")[-1]["down"], mirror.iterdir()
    assert sent["north"] - sent["south"] > 0.9 * entry.stat().st_size, "south was sent the entry's name"
