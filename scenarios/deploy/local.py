"""A deployment on one machine: a SuperLink with TLS and registered nodes, one process per institution.

It rehearses a deployment on several machines: the same launcher with a pinned bundle, the same files per
institution, and the same checks of certificates and keys. Only the network is the loopback.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from rich.console import Console

from casam_core.config.scenario import Scenario
from casam_core.config.site_file import read_site_file, simulated_task
from casam_core.protocol.fingerprint import ROOT
from casam_core.protocol.register import REGISTER, SIGNING_KEY, Keys, Register, new_signing_key, public_hex
from client.data.splits import simulated_key
from client.node.approvals import approve
from scenarios.deploy.certificates import (
    new_authority,
    node_key,
    write_authority,
    write_private,
    write_public,
    write_server,
)
from scenarios.deploy.node_processes import Node, kept_alive, start_node, wait_until_connected
from scenarios.deploy.operator import app_settings, register
from scenarios.engines.bundle import build_bundle, bundle_hash, stage_app
from scenarios.engines.flower import submit, terminable
from scenarios.engines.live import View, live_view, logged
from scenarios.engines.run import check_completed, prepare
from scenarios.engines.superlink import SuperLink, Tls, free_port, superlink
from scenarios.inspection.site_files import site_text


@dataclass(frozen=True)
class DeployOrder:
    """The user's order.

    data_root: absolute. out: the run folder; by default runs/<scenario>-<time>. sites: a folder with one home
    per institution, which later runs use again; by default the homes are inside the run folder.
    """

    data_root: Path | None = None
    out: Path | None = None
    sites: Path | None = None


def deploy_local(scenario: Scenario, order: DeployOrder, console: Console) -> Path:
    """Run the scenario and return the run folder.

    No process, key or certificate remains, also after Ctrl-C.

    Raises:
        CasamError: the run failed; no summary.json exists then.
    """
    data_root = order.data_root
    scenario, folder = prepare(scenario, data_root, order.out, console)
    homes = {
        site.name: order.sites.expanduser().resolve() / site.name
        if order.sites
        else folder / "institutions" / site.name / "private"
        for site in scenario.institutions
    }
    with (
        live_view(console) as show,
        logged(show, folder / "flower.log") as on_line,
        tempfile.TemporaryDirectory(prefix="casam-") as scratch,
    ):
        run_deployed(scenario, folder, homes, data_root, Path(scratch), on_line)
    return folder


def run_deployed(
    scenario: Scenario,
    folder: Path,
    homes: Mapping[str, Path],
    data_root: Path | None,
    scratch: Path,
    on_line: View,
) -> None:
    """Start server and nodes, and run the scenario. Raises RunError.

    homes: by institution, its home. scratch: a folder for keys and certificates, removed after the run.
    """
    tls = make_tls(scratch / "operator")
    register_file = make_register(folder, homes)
    home = scratch / "server"
    home.mkdir()
    app = stage_app(ROOT, home / "app")
    pin = bundle_hash(build_bundle(ROOT))
    with terminable(), superlink(home, app, {}, tls, scratch) as link:
        node_files = {}
        ports = different_ports(len(scenario.institutions))
        for site, port in zip(scenario.institutions, ports, strict=True):
            files = scratch / "institutions" / site.name
            node_files[site.name] = write_node(
                scenario, site.name, homes[site.name], files, data_root, tls, link, pin, register_file, port
            )
            register(link, files / "node.pub")

        def start(name: str) -> Node:
            return start_node(name, node_files[name], homes[name], link)

        nodes = [start(name) for name in node_files]
        wait_until_connected(link, nodes, on_line)
        with kept_alive(nodes, start, on_line):
            run = submit(link, app, app_settings(scenario, folder, register_file), on_line)
        fallen = [node for node in nodes if node.process.poll() is not None]
    logs = ", ".join(str(node.log) for node in fallen or nodes)
    check_completed(run, folder, f"{folder / 'flower.log'} and in {logs}")


def different_ports(count: int) -> list[int]:
    """Free ports. Nobody listens there before the nodes start, so one could be drawn twice."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


def make_register(folder: Path, homes: Mapping[str, Path]) -> Path:
    """Write the register of the institutions' keys to the run folder, with the server's key beside it.

    An institution's signing key lies in its home, so that later runs use it again.
    """
    keys = {
        name: Keys(signing=public_hex(new_signing_key(home / SIGNING_KEY))) for name, home in homes.items()
    }
    server = public_hex(new_signing_key(folder / SIGNING_KEY))
    write_public(folder / REGISTER, Register(institutions=keys, server=server).text())
    return folder / REGISTER


def make_tls(folder: Path, names: tuple[str, ...] = ("localhost", "127.0.0.1")) -> Tls:
    """Write an authority and a server certificate to a new folder of the operator."""
    folder.mkdir(mode=0o700, parents=True)
    authority = new_authority()
    write_authority(authority, folder)
    write_server(authority, names, folder)
    return Tls(folder / "ca.crt", folder / "server.crt", folder / "server.key")


def write_node(
    scenario: Scenario,
    name: str,
    home: Path,
    files: Path,
    data_root: Path | None,
    tls: Tls,
    link: SuperLink,
    pin: str,
    register_file: Path,
    port: int,
) -> Path:
    """Write an institution's files: its key, its node file, and from the scenario its policy and site file.

    The institution then approves the scenario, as its privacy officer would do with `casam site approve`. A
    new home gets the simulation's key for splits, so that the rehearsal shows the simulation's figures.

    Returns the path of the node file.
    """
    files.mkdir(mode=0o700, parents=True)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    private, public = node_key()
    write_private(files / "node.key", private)
    write_public(files / "node.pub", public)
    policy = scenario.institution(name).policy.model_dump(mode="json", exclude_none=True)
    write_private(home / "policy.toml", tomli_w.dumps(policy).encode())
    tasks = {
        task: simulated_task(spec, scenario.seed) for task, spec in scenario.institution(name).data.items()
    }
    write_private(home / "site.toml", site_text(tasks).encode())
    if not (home / "split.key").exists():
        write_private(home / "split.key", simulated_key(scenario.seed, name))
    approve(scenario, name, read_site_file(home / "site.toml"), home, "person")
    node: dict[str, str | int | None] = {
        "institution": name,
        "superlink": f"127.0.0.1:{link.port}",
        "authority": str(tls.authority),
        "key": "node.key",
        "register": str(register_file),
        "signing_key": str(home / SIGNING_KEY),
        "bundle": pin,
        "policy": str(home / "policy.toml"),
        "site": str(home / "site.toml"),
        "home": str(home),
        "port": port,
        "data_root": str(data_root) if data_root else None,
        "checkpoint": scenario.backbone.checkpoint,
    }
    settings = {key: value for key, value in node.items() if value is not None}
    write_private(files / "node.toml", tomli_w.dumps(settings).encode())
    return files / "node.toml"
