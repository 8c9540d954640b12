"""A deployment on one machine: a SuperLink with TLS and registered nodes, one process per institution.

It rehearses a deployment on several machines: the same launcher with a pinned bundle, the same files per
institution, and the same checks of certificates and keys. Only the network is the loopback.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w
from rich.console import Console

from casam_core.config.scenario import Scenario
from casam_core.config.site_file import read_site_file, simulated_task
from casam_core.errors import RunError, RunInputError, ScenarioError
from casam_core.protocol.fingerprint import ROOT
from casam_core.protocol.register import REGISTER, SIGNING_KEY, Keys, Register, new_signing_key, public_hex
from casam_core.protocol.relayed import STOP
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
from scenarios.engines.flower import FlowerRun, submit, terminable
from scenarios.engines.live import View, live_view, logged
from scenarios.engines.preflight import preflight
from scenarios.engines.public.frame_making import with_frame
from scenarios.engines.public.library_making import with_library
from scenarios.engines.run import check_completed, prepare, with_absolute_checkpoint
from scenarios.engines.superlink import SuperLink, Tls, free_port, superlink
from scenarios.inspection.site_files import site_text


@dataclass(frozen=True)
class DeployOrder:
    """The user's order.

    data_root: absolute. out: the run folder; by default runs/<scenario>-<time>. sites: a folder with one home
    per institution, which later runs use again; by default the homes are inside the run folder. relays: by
    institution that is a relay, the scenario of its members.
    """

    data_root: Path | None = None
    out: Path | None = None
    sites: Path | None = None
    relays: Mapping[str, Scenario] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """A running SuperLink with a node per institution. app: the code. register: the institutions' keys."""

    link: SuperLink
    app: Path
    register: Path
    nodes: Sequence[Node]


def deploy_local(scenario: Scenario, order: DeployOrder, console: Console) -> Path:
    """Run the scenario and return the run folder.

    No process, key or certificate remains, also after Ctrl-C.

    Raises:
        CasamError: the run failed; no summary.json exists then.
    """
    data_root = order.data_root
    if strangers := sorted(set(order.relays) - {site.name for site in scenario.institutions}):
        raise RunInputError(
            f"--relay: expected an institution of {scenario.name}, found {strangers[0]}; name the one that "
            "stands for others"
        )
    relays = {name: prepared(scenario, members, data_root) for name, members in order.relays.items()}
    scenario, folder = prepare(scenario, data_root, order.out, console)
    sites = order.sites.expanduser().resolve() if order.sites else None
    place = Deployed(scenario, folder, data_root, sites)
    with live_view(console) as show, logged(show, folder / "flower.log") as on_line:
        run_deployed(place, relays, on_line)
    return folder


def prepared(above: Scenario, members: Scenario, data_root: Path | None) -> Scenario:
    """The scenario of a relay's members with its public files; reads all data. Raises CasamError."""
    if not members.relayed:
        raise ScenarioError(f"--relay: expected relayed = true in {members.name}, which its members approve")
    if members.common_digest() != above.common_digest():
        raise ScenarioError(
            f"--relay: expected {members.name} and {above.name} to differ in institutions, deadlines, "
            "participation and admission only; compare their other keys"
        )
    members = with_absolute_checkpoint(members, data_root)
    preflight(members, data_root)
    return with_library(with_frame(members))


@dataclass(frozen=True)
class Deployed:
    """A scenario and its places. folder: of the run. sites: of the homes; by default in that of the run."""

    scenario: Scenario
    folder: Path
    data_root: Path | None
    sites: Path | None

    @property
    def homes(self) -> dict[str, Path]:
        """By institution, its home."""
        return {
            site.name: self.sites / site.name
            if self.sites
            else self.folder / "institutions" / site.name / "private"
            for site in self.scenario.institutions
        }

    def behind(self, relay: str, members: Scenario) -> Deployed:
        """The members of one of the institutions, which is a relay."""
        sites = self.sites / relay / "members" if self.sites else None
        return Deployed(members, self.folder / "relays" / relay, self.data_root, sites)


def run_deployed(here: Deployed, relays: Mapping[str, Scenario], on_line: View) -> None:
    """Start server and nodes, and run the scenario. Raises RunError.

    relays: by institution that is a relay, the scenario of its members.
    """
    groups = {name: here.behind(name, members) for name, members in relays.items()}
    boxes = {name: group.folder / "questions" for name, group in groups.items()}
    with terminable(), contextlib.ExitStack() as stack:
        for name, group in groups.items():
            stack.enter_context(served_by_members(group, boxes[name], on_line))
        network = stack.enter_context(running_network(here, boxes, on_line))
        settings = app_settings(here.scenario, here.folder, network.register)
        run = submit(network.link, network.app, settings, on_line)
        fallen = [node for node in network.nodes if node.process.poll() is not None]
    logs = ", ".join(str(node.log) for node in fallen or network.nodes)
    check_completed(run, here.folder, f"{here.folder / 'flower.log'} and in {logs}")


@contextlib.contextmanager
def running_network(here: Deployed, boxes: Mapping[str, Path], on_line: View) -> Iterator[Network]:
    """A SuperLink with TLS and a node per institution. Raises RunError.

    Keys and certificates are in a temporary folder, which is removed afterwards, also after a kill. boxes: by
    institution that is a relay, the folder of its questions.
    """
    register_file = make_register(here.folder, here.homes)
    pin = bundle_hash(build_bundle(ROOT))
    with tempfile.TemporaryDirectory(prefix="casam-") as folder:
        scratch = Path(folder)
        tls, home = make_tls(scratch / "operator"), scratch / "server"
        home.mkdir()
        app = stage_app(ROOT, home / "app")
        with superlink(home, app, {}, tls, scratch) as link:
            node_files = {}
            ports = different_ports(len(here.scenario.institutions))
            for site, port in zip(here.scenario.institutions, ports, strict=True):
                name, files = site.name, scratch / "institutions" / site.name
                node_files[name] = write_node(
                    here.scenario, name, here.homes[name], files, here.data_root, tls, link, pin,
                    register_file, port, boxes.get(name),
                )  # fmt: skip
                register(link, files / "node.pub")

            def start(name: str) -> Node:
                return start_node(name, node_files[name], here.homes[name], link)

            nodes = [start(name) for name in node_files]
            wait_until_connected(link, nodes, on_line)
            with kept_alive(nodes, start, on_line):
                yield Network(link, app, register_file, nodes)


@contextlib.contextmanager
def served_by_members(here: Deployed, box: Path, on_line: View) -> Iterator[None]:
    """During the with-block, a network of their own answers a relay's questions for its members.

    box: the folder of the questions. Raises RunError if the members' run failed.
    """
    box.mkdir(mode=0o700, parents=True)
    ended: list[FlowerRun] = []
    with running_network(here, {}, on_line) as network:
        settings = app_settings(here.scenario, here.folder, network.register, box)
        run = threading.Thread(
            target=lambda: ended.append(submit(network.link, network.app, settings, on_line)), name="members"
        )
        run.start()
        try:
            yield
        finally:
            (box / STOP).touch()
            run.join()
    if not ended:
        raise RunError(f"the members' run of {box} has no status; details in {here.folder}")
    check_completed(ended[0], here.folder, str(here.folder / "events.jsonl"), "relay.json")


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
    relay: Path | None = None,
) -> Path:
    """Write an institution's files: its key, its node file, and from the scenario its policy and site file.

    The institution then approves the scenario, as its privacy officer would do with `casam site approve`. A
    new home gets the simulation's key for splits, so that the rehearsal shows the simulation's figures.

    relay: the folder of the questions of an institution that stands for others.

    Returns the path of the node file.
    """
    files.mkdir(mode=0o700, parents=True)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    private, public = node_key()
    write_private(files / "node.key", private)
    write_public(files / "node.pub", public)
    policy = scenario.institution(name).policy.model_dump(mode="json", exclude_none=True)
    write_private(home / "policy.toml", tomli_w.dumps(policy).encode())
    held = {} if relay else scenario.institution(name).data
    tasks = {task: simulated_task(spec, scenario.seed) for task, spec in held.items()}
    text = tomli_w.dumps({"relay": str(relay)}) if relay else site_text(tasks)
    write_private(home / "site.toml", text.encode())
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
