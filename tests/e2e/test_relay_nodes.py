"""Relays and mirrors over real Flower: two SuperLinks with TLS, and nothing but a folder between the two."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import tomli_w

from casam_core.bank.bank import Bank
from casam_core.config.scenario import Scenario
from scenarios.deploy.local import different_ports, make_register, make_tls, write_node
from scenarios.deploy.node_processes import start_node, wait_until_connected
from scenarios.deploy.operator import register
from scenarios.engines.bundle import build_bundle, bundle_hash, stage_app
from scenarios.engines.superlink import SuperLink, Tls, superlink
from tests.conftest import phantom, tiny_table
from tests.house import ROOT
from tests.runs import FinishedRun, events, summary_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CASAM = str(Path(sys.executable).parent / "casam")


def table(*names: str, **changes: Any) -> dict[str, Any]:
    """Institutions that hold histology, the one task."""
    data = {"histology": phantom("histology")}
    return tiny_table(
        stream=["histology"], institutions=[{"name": name, "data": data} for name in names], **changes
    )


@dataclass(frozen=True)
class Network:
    """A SuperLink with its nodes. file: the scenario. register: the keys of its institutions."""

    link: SuperLink
    tls: Tls
    file: Path
    register: Path

    def run(self, out: Path, *options: str) -> subprocess.Popen[bytes]:
        """Start `casam deploy run` with this network's scenario."""
        server = ("--superlink", f"127.0.0.1:{self.link.port}", "--authority", self.tls.authority)
        command = [CASAM, "deploy", "run", self.file, *server, "--register", self.register, "--out", out]
        with out.with_suffix(".log").open("wb") as log:
            return subprocess.Popen([*command, *options], stdout=log, stderr=log)


@contextmanager
def network(
    folder: Path,
    content: dict[str, Any],
    sites: Mapping[str, str] = MappingProxyType({}),
    nodes: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Network]:
    """A SuperLink, and a node for every institution.

    sites: other site files, by institution. nodes: more lines of node files.
    """
    scenario, tls = Scenario.model_validate(content), make_tls(folder / "operator")
    (folder / "server").mkdir()
    (folder / "scenario.toml").write_text(tomli_w.dumps(content))
    homes = {site.name: folder / site.name for site in scenario.institutions}
    (keys := folder / "keys").mkdir()
    registered = make_register(keys, homes)
    app, pin = stage_app(ROOT, folder / "server" / "app"), bundle_hash(build_bundle(ROOT))
    with superlink(folder / "server", app, {"CASAM_TEST": str(os.getpid())}, tls) as link:
        started = []
        for (name, home), port in zip(homes.items(), different_ports(len(homes)), strict=True):
            files = folder / "files" / name
            node = write_node(scenario, name, home, files, None, tls, link, pin, registered, port)
            if name in sites:
                (home / "site.toml").write_text(sites[name])
            with node.open("a") as file:
                file.write(nodes.get(name, ""))
            register(link, files / "node.pub")
            started.append(start_node(name, node, home, link))
        wait_until_connected(link, started, print)
        yield Network(link, tls, folder / "scenario.toml", registered)


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
    tmp_path: Path, finished_run: FinishedRun
) -> None:
    """The two networks share a folder, and no port, key or name; south takes its entries from a mirror."""
    box, mirror = tmp_path / "box", tmp_path / "mirror"
    for name in ("below", "above", "mirror"):
        (tmp_path / name).mkdir()
    sites, nodes = {"north": f'relay = "{box}"\n'}, {"south": f'mirror = "{mirror}"\n'}
    with (
        network(tmp_path / "below", table("east", "west", relayed=True)) as members,
        network(tmp_path / "above", table("north", "south"), sites, nodes) as server,
        kept_in_step(mirror, tmp_path / "run"),
    ):
        relay = members.run(tmp_path / "members", "--relay", str(box))
        run = server.run(tmp_path / "run")
        assert run.wait() == 0, (tmp_path / "run.log").read_text()
        (box / "stop").touch()
        assert relay.wait() == 0, (tmp_path / "members.log").read_text()
    direct = finished_run(table("east", "west", "south"))
    found, expected = (
        np.array(summary_of(path)["matrix"]["iou"], float) for path in (tmp_path / "run", direct)
    )
    assert np.allclose(found, expected, atol=1e-3)
    entries, whole = Bank.open(tmp_path / "run" / "bank"), Bank.open(direct / "bank")
    assert entries["histology"].provenance.holders == ("north", "south")
    for name, weights in whole["histology"].layer.items():
        assert np.allclose(entries["histology"].layer[name], weights, atol=1e-4), name
    assert events(tmp_path / "members", "not-relayed") == []
    assert events(tmp_path / "run", "mirror-missed") == []
    sent, (entry,) = events(tmp_path / "run", "traffic")[-1]["down"], mirror.iterdir()
    assert sent["north"] - sent["south"] > 0.9 * entry.stat().st_size, "south was sent the entry's name"
