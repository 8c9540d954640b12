"""A deployment on one machine: a SuperLink with TLS and registered nodes, one process per institution.

What is rehearsed here is what real machines do: the same launcher with a pinned bundle, the same files per
institution, the same checks of certificates and keys. Only the network is the loopback.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from rich.console import Console

from casam_core.config.scenario import Scenario
from casam_core.errors import RunError
from casam_core.protocol.fingerprint import ROOT
from client.site import check_below
from scenarios.deploy.bundle import build_bundle, bundle_hash
from scenarios.deploy.certificates import (
    new_authority,
    node_key,
    server_certificate,
    write_authority,
    write_private,
    write_public,
)
from scenarios.deploy.keeper import Node, kept_alive
from scenarios.deploy.nodes import ONLINE, list_nodes, register
from scenarios.engines.flower import stage_app, submit, terminable
from scenarios.engines.live import View, live_view
from scenarios.engines.preflight import preflight
from scenarios.engines.run import choose_folder, why_failed, with_absolute_checkpoint
from scenarios.engines.superlink import SuperLink, Tls, flower_command, free_port, last_lines, superlink
from scenarios.library_files import resolve_scenario

CONNECT_SECONDS = 120.0
"""How long nodes may take to appear; about 5 s on a quiet machine."""


@dataclass(frozen=True)
class DeployOrder:
    """What the user asked for. out: the run folder; by default runs/<scenario>-<time>. sites: where the
    institutions' homes lie, one folder each, and go on; by default inside the run folder."""

    scenario: str
    data_root: Path | None = None
    out: Path | None = None
    sites: Path | None = None
    overrides: tuple[str, ...] = ()


def deploy_local(order: DeployOrder, console: Console) -> Path:
    """Run it and return the run folder. Raises CasamError; then no summary.json exists, and in every case,
    also on Ctrl-C, no process, key or certificate is left."""
    scenario = resolve_scenario(order.scenario, list(order.overrides))
    data_root = order.data_root.expanduser().resolve() if order.data_root else None
    if data_root is not None and not data_root.is_dir():
        raise RunError(f"--data-root: expected a folder, found nothing at {data_root}; check the path")
    for spec in (spec for site in scenario.institutions for spec in site.data.values()):
        if spec.path is not None:
            check_below(spec.path, data_root)
    scenario = with_absolute_checkpoint(scenario, data_root)
    folder = choose_folder(scenario, order.out)
    homes = {
        site.name: order.sites.expanduser().resolve() / site.name
        if order.sites
        else folder / "institutions" / site.name / "private"
        for site in scenario.institutions
    }
    with console.status("checking data") as status:
        cost = preflight(scenario, data_root, lambda name: status.update(f"checking data: {name}"))
    console.print(f"{scenario.name}: {cost}", highlight=False, soft_wrap=True)
    folder.mkdir(parents=True, exist_ok=True)
    with live_view(console) as show, (folder / "flower.log").open("w") as log:

        def on_line(line: str) -> None:
            log.write(line.rstrip("\n") + "\n")
            log.flush()
            show(line)

        with tempfile.TemporaryDirectory(prefix="casam-") as scratch:
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
    """Server, nodes, run. Raises RunError. scratch: for what must not stay."""
    tls = make_tls(scratch / "operator")
    home = scratch / "server"
    home.mkdir()
    app = stage_app(ROOT, home / "app")
    pin = bundle_hash(build_bundle(ROOT))
    with terminable(), superlink(home, app, {}, tls, scratch) as link:
        node_files = {}
        for site in scenario.institutions:
            files = scratch / "institutions" / site.name
            node_files[site.name] = write_node(
                scenario, site.name, homes[site.name], files, data_root, tls, link, pin
            )
            register(link, files / "node.pub")

        def start(name: str) -> Node:
            return start_node(name, node_files[name], homes[name], link)

        nodes = [start(name) for name in node_files]
        wait_until_connected(link, nodes, on_line)
        settings = {"scenario": scenario.canonical_json(), "out": str(folder.parent), "run": folder.name}
        with kept_alive(nodes, start, on_line):
            run = submit(link, app, settings, on_line)
        fallen = [node for node in nodes if node.process.poll() is not None]
    if not run.ok or not (folder / "summary.json").exists():
        logs = ", ".join(str(node.log) for node in fallen or nodes)
        raise RunError(f"{why_failed(folder, run.status)}; details in {folder / 'flower.log'} and in {logs}")


def make_tls(folder: Path, names: tuple[str, ...] = ("localhost", "127.0.0.1")) -> Tls:
    """An authority and a server certificate in a new folder of the operator's."""
    folder.mkdir(mode=0o700, parents=True)
    authority = new_authority()
    write_authority(authority, folder)
    certificate, key = server_certificate(authority, names)
    tls = Tls(folder / "ca.crt", folder / "server.crt", folder / "server.key")
    write_public(tls.certificate, certificate)
    write_private(tls.key, key)
    return tls


def write_node(
    scenario: Scenario,
    name: str,
    home: Path,
    files: Path,
    data_root: Path | None,
    tls: Tls,
    link: SuperLink,
    pin: str,
) -> Path:
    """One institution's own files: its key, its policy (the scenario's word for it), its node file."""
    files.mkdir(mode=0o700, parents=True)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    private, public = node_key()
    write_private(files / "node.key", private)
    write_public(files / "node.pub", public)
    policy = scenario.institution(name).policy.model_dump(mode="json", exclude_none=True)
    write_private(home / "policy.toml", tomli_w.dumps(policy).encode())
    node: dict[str, str | int | None] = {
        "institution": name,
        "superlink": f"127.0.0.1:{link.port}",
        "authority": str(tls.authority),
        "key": "node.key",
        "bundle": pin,
        "policy": str(home / "policy.toml"),
        "home": str(home),
        "port": free_port(),
        "data_root": str(data_root) if data_root else None,
        "checkpoint": scenario.backbone.checkpoint,
    }
    settings = {key: value for key, value in node.items() if value is not None}
    write_private(files / "node.toml", tomli_w.dumps(settings).encode())
    return files / "node.toml"


def start_node(name: str, node_file: Path, home: Path, link: SuperLink) -> Node:
    """Start the institution's launcher; it ends with the SuperLink, whose mark it carries."""
    log = home / "node.log"
    # The server's Flower home is none of the node's business.
    environment = {key: value for key, value in link.environment.items() if key != "FLWR_HOME"}
    with log.open("ab") as file:
        process = subprocess.Popen(
            [flower_command("casam"), "node", str(node_file)],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Node(name, process, log)


def wait_until_connected(link: SuperLink, nodes: list[Node], on_line: View) -> None:
    """Return when every node is online. Raises RunError when one ended, or at the deadline."""
    deadline = time.monotonic() + CONNECT_SECONDS
    before = -1
    while True:
        online = sum(status == ONLINE for status in list_nodes(link).values())
        if online > before:
            on_line(f"casam | server | {online} of {len(nodes)} nodes connected")
            before = online
        if online == len(nodes):
            return
        for node in nodes:
            if node.process.poll() is not None:
                raise RunError(
                    f"the node of {node.institution} ended with status {node.process.returncode}; "
                    f"its log ({node.log}) ends:\n{last_lines(node.log)}"
                )
        if time.monotonic() > deadline:
            logs = ", ".join(str(node.log) for node in nodes)
            raise RunError(f"only {online} of {len(nodes)} nodes connected; their logs say why: {logs}")
        time.sleep(0.5)
