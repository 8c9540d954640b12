"""Real nodes at a real SuperLink: who may connect, and which code may run there."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import tomli_w

from casam_core.protocol.register import Keys, Register, new_signing_key, public_hex
from scenarios.deploy.certificates import new_authority, node_key, write_authority, write_private
from scenarios.deploy.local import make_tls
from scenarios.deploy.node_processes import Node, start_node
from scenarios.deploy.operator import ONLINE, list_nodes, register, unregister
from scenarios.engines.bundle import build_bundle, bundle_hash
from scenarios.engines.flower import submit
from scenarios.engines.superlink import SuperLink, Tls, flower_command, free_port, superlink
from tests.echo_app import write_echo_app

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Server:
    """A running SuperLink with its files and the app it runs."""

    link: SuperLink
    tls: Tls
    app: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One SuperLink with TLS and registered keys for all tests."""
    folder = tmp_path_factory.mktemp("server")
    app, tls = write_echo_app(folder / "app"), make_tls(folder / "operator")
    (folder / "home").mkdir()
    with superlink(folder / "home", app, {"CASAM_TEST_SESSION": str(os.getpid())}, tls) as link:
        yield Server(link, tls, app)


@dataclass(frozen=True)
class Site:
    """An institution's files."""

    folder: Path

    @property
    def key(self) -> Path:
        return self.folder / "node.pub"

    @property
    def log(self) -> Path:
        return self.folder / "node.log"


def make_site(folder: Path, server: Server, *, authority: Path | None = None, bundle: str = "0" * 64) -> Site:
    """A new key, an open policy, and the file that ties them together."""
    folder.mkdir(parents=True, exist_ok=True)
    private, public = node_key()
    write_private(folder / "node.key", private)
    (folder / "node.pub").write_bytes(public)
    (folder / "policy.toml").touch()
    signing = Keys(signing=public_hex(new_signing_key(folder / "signing.key")))
    register = Register(institutions={"north": signing}, server="0" * 64)
    (folder / "register.json").write_bytes(register.text())
    (folder / "site.toml").write_text('[tasks.polyp]\nreader = "phantom"\nphantom = "polyp"\n')
    facts = {
        "institution": "north",
        "superlink": f"127.0.0.1:{server.link.port}",
        "authority": str(authority or server.tls.authority),
        "key": "node.key",
        "register": "register.json",
        "signing_key": "signing.key",
        "bundle": bundle,
        "policy": "policy.toml",
        "site": "site.toml",
        "home": ".",
        "port": free_port(),
    }
    (folder / "node.toml").write_text(tomli_w.dumps(facts))
    return Site(folder)


def start(site: Site, server: Server, *options: str) -> Node:
    return start_node("north", site.folder / "node.toml", site.folder, server.link, *options)


def wait_for(what: Callable[[], object], seconds: float = 90) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(0.3)
    return bool(found)


def ended_with(node: Node, words: str) -> bool:
    """Whether the node gave up, and said why."""
    return wait_for(lambda: node.process.poll() is not None) and words in node.log.read_text()


def online(server: Server) -> int:
    return sum(status == ONLINE for status in list_nodes(server.link).values())


def run(server: Server, app: Path) -> str:
    """What a run of `app` printed."""
    lines: list[str] = []
    submit(server.link, app, {"ending": "return", "nodes": 1}, lines.append)
    return "\n".join(lines)


def test_the_pinned_bundle_runs_and_a_changed_one_is_refused_unopened(tmp_path: Path, server: Server) -> None:
    pin = bundle_hash(build_bundle(server.app))
    site = make_site(tmp_path / "north", server, bundle=pin)
    number = register(server.link, site.key)
    node = start(site, server)
    assert wait_for(lambda: online(server) == 1), node.log.read_text()

    # The positive control: the code that the site chose does run.
    assert "answer:  from " in run(server, server.app)
    unpacked = sorted((site.folder / "flower" / "apps").iterdir())
    assert [path.name.rpartition(".")[2] for path in unpacked] == [pin[:8]]

    other = write_echo_app(tmp_path / "other")
    planted = tmp_path / "planted"
    with (other / "echo" / "client.py").open("a") as code:
        code.write(f"\nopen({str(planted)!r}, 'w').write('ran')\n")
    printed = run(server, other)
    assert "error code: 7" in printed, printed  # Flower's INVALID_FAB
    assert "answer" not in printed
    assert not planted.exists()
    assert sorted((site.folder / "flower" / "apps").iterdir()) == unpacked
    changed = bundle_hash(build_bundle(other))
    assert f"refused: the server sends the bundle {changed}" in node.log.read_text()

    # The node is still there for what it does allow.
    assert "answer:  from " in run(server, server.app)
    assert number is not None
    unregister(server.link, number)
    assert wait_for(lambda: node.process.poll() is not None), "a revoked node goes on"


def test_a_key_that_is_not_registered_is_refused(tmp_path: Path, server: Server) -> None:
    node = start(make_site(tmp_path / "north", server), server)
    assert ended_with(node, "[code: 2004]"), node.log.read_text()


def test_a_node_without_a_key_is_refused(tmp_path: Path, server: Server) -> None:
    command = [flower_command("flower-supernode"), "--superlink", f"127.0.0.1:{server.link.port}"]
    trust = ["--root-certificates", str(server.tls.authority), "--port", str(free_port())]
    log = tmp_path / "node.log"
    with log.open("w") as file:
        environment = dict(server.link.environment)
        process = subprocess.Popen([*command, *trust], env=environment, stdout=file, stderr=file)
    assert ended_with(Node("nobody", process, log), "[code: 2001]"), log.read_text()


def test_a_node_does_not_speak_to_a_server_of_another_authority(tmp_path: Path, server: Server) -> None:
    write_authority(new_authority(), tmp_path)
    site = make_site(tmp_path / "north", server, authority=tmp_path / "ca.crt")
    register(server.link, site.key)
    node = start(site, server)
    assert wait_for(lambda: "CERTIFICATE_VERIFY_FAILED" in node.log.read_text()), node.log.read_text()
    assert online(server) == 0
    node.process.terminate()
    node.process.wait()


def test_a_node_is_healthy_when_the_server_knows_it(tmp_path: Path, server: Server) -> None:
    """A node that trusts another authority than the server's never hears from it, and ends at last."""
    write_authority(new_authority(), tmp_path)
    known = make_site(tmp_path / "north", server)
    stranger = make_site(tmp_path / "south", server, authority=tmp_path / "ca.crt")
    for site in (known, stranger):
        register(server.link, site.key)
        address = f"127.0.0.1:{free_port()}"
        node = start(site, server, "--metrics", address)
        seen: set[int] = set()

        def healthy(address: str = address, seen: set[int] = seen) -> bool:
            with contextlib.suppress(httpx.TransportError):
                seen.add(httpx.get(f"http://{address}/health", trust_env=False).status_code)
            return 200 in seen

        if site is known:
            assert wait_for(healthy), node.log.read_text()
            metrics = httpx.get(f"http://{address}/metrics", trust_env=False).text
            assert "casam_site_connected 1.0\n" in metrics
            assert (known.folder / "institution").read_text() == "north", "its home is its own from now on"
        else:
            log = node.log
            assert wait_for(lambda ask=healthy, log=log: ask() or "VERIFY_FAILED" in log.read_text())
            assert seen == {503}
        node.process.terminate()
        node.process.wait()


def test_a_key_is_rotated_and_the_old_one_no_longer_opens(tmp_path: Path, server: Server) -> None:
    old = make_site(tmp_path / "old", server)
    number = register(server.link, old.key)
    assert number is not None
    first = start(old, server)
    assert wait_for(lambda: online(server) == 1), first.log.read_text()

    new = make_site(tmp_path / "new", server)
    assert register(server.link, new.key) is not None
    unregister(server.link, number)
    assert wait_for(lambda: first.process.poll() is not None), "a revoked node goes on"
    second = start(new, server)
    assert wait_for(lambda: online(server) == 1), second.log.read_text()

    again = start(old, server)
    assert wait_for(lambda: again.process.poll() is not None), again.log.read_text()
    assert online(server) == 1
    second.process.terminate()
    second.process.wait()


def test_registering_a_key_twice_changes_nothing(tmp_path: Path, server: Server) -> None:
    site = make_site(tmp_path / "north", server)
    before = len(list_nodes(server.link))
    assert register(server.link, site.key) is not None
    assert register(server.link, site.key) is None
    assert len(list_nodes(server.link)) == before + 1
