"""The compose demo for real: containers, a run, what they can and cannot reach, a kill. `make test-deploy`.

Runs in order: the containers of the first test are those of the last.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from casam_core.config.library import resolve_scenario
from scenarios.engines import Engine as RunEngine
from scenarios.engines.order import RunOrder
from scenarios.engines.run import run_scenario
from scenarios.printing import console
from tests.deploy.engine import ROOT, Engine, NoEngineError, base_image, call, engine, thin_image

pytestmark = [pytest.mark.slow, pytest.mark.deploy, pytest.mark.timeout(1800)]

DEMO = ROOT / "docker" / "demo.toml"
SMALL = [
    "backbone.name=tiny",
    "training.epochs=1",
    "training.fallback_to_identity=false",
    "compute.device=cpu",
]
NORTH, SOUTH, WEST = "north", "south", "west"


@dataclass(frozen=True)
class Demo:
    """The compose project, up."""

    engine: Engine
    environment: dict[str, str]

    def command(self, *arguments: str) -> list[str]:
        files = [
            "-f",
            str(ROOT / "docker" / "compose.yml"),
            "-f",
            str(ROOT / "tests" / "deploy" / "compose.test.yml"),
        ]
        return [*self.engine.compose, *files, *arguments]

    def compose(self, *arguments: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        return call(self.command(*arguments), timeout, self.environment)

    def container(self, service: str) -> str:
        """Id of a service's container: its name differs between versions of compose."""
        found = self.compose("ps", "-q", service).stdout.strip()
        assert found, f"no container of {service}"
        return found

    def shell(self, service: str, script: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """A shell script inside a service's container, as its own user."""
        return self.engine.run("exec", self.container(service), "sh", "-c", script, timeout=timeout)

    def python(self, service: str, program: str) -> str:
        """What a Python program printed inside a service's container."""
        result = self.engine.run("exec", self.container(service), "python", "-c", program, timeout=120)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout.strip()

    def address(self, service: str) -> str:
        """A service's address; the gateway has several."""
        networks = self.engine.output(
            "inspect", "-f", "{{json .NetworkSettings.Networks}}", self.container(service)
        )
        return next(str(network["IPAddress"]) for network in json.loads(networks).values())

    def scenario_run(self, folder: str, *settings: str) -> list[str]:
        """The `run` service with the demo scenario, small."""
        changes = [part for setting in (*SMALL, *settings) for part in ("--set", setting)]
        return self.command("run", "--rm", "run", "/demo/demo.toml", "--out", f"/runs/{folder}", *changes)

    def approve(self, *settings: str) -> None:
        """Every institution approves that scenario, in a container like its node's."""
        changes = [part for setting in (*SMALL, *settings) for part in ("--set", setting)]
        mounted = f"{DEMO}:/demo/demo.toml:ro"
        for name in (NORTH, SOUTH, WEST):
            said = self.compose(
                *("run", "--rm", "--no-deps", "-v", mounted, name),
                *("casam", "site", "approve", "/demo/demo.toml", "--node", "/site/node.toml", *changes),
            )
            assert said.returncode == 0, said.stdout + said.stderr
            assert f"{name} approves demo" in said.stdout

    def read(self, path: str) -> str:
        """A file of a run folder."""
        return self.engine.output("exec", self.container("superlink"), "cat", f"/runs/{path}")

    def logs(self) -> str:
        """The end of what every container said."""
        return self.compose("logs", "--tail=40").stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Base image, thin image, compose up; at the end everything down, with its volumes."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip(
            f"the test image borrows this environment and has Python 3.11, not {sys.version.split()[0]}"
        )
    try:
        with engine() as running:
            image = thin_image(running, base_image(running), tmp_path_factory.mktemp("build"))
            environment = {
                "CASAM_IMAGE": image,
                "CASAM_SITE_PACKAGES": sysconfig.get_path("purelib"),
                "COMPOSE_PROJECT_NAME": f"casamtest{os.getpid()}",
            }
            demo = Demo(running, environment)
            try:
                up = demo.compose("up", "-d")
                assert up.returncode == 0, up.stdout + up.stderr + demo.logs()
                yield demo
            finally:
                down = demo.compose("--profile", "run", "down", "-v", "--timeout", "5", "--remove-orphans")
            left = running.output("ps", "-aq", "--filter", f"name={environment['COMPOSE_PROJECT_NAME']}")
            assert down.returncode == 0, down.stdout + down.stderr
            assert left == ""
    except NoEngineError as error:
        pytest.skip(f"no container engine: {error}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of the same scenario over the same images, in this one process."""
    folder = tmp_path_factory.mktemp("alone")
    described = importlib.util.spec_from_file_location("setup", ROOT / "docker" / "setup.py")
    assert described is not None
    assert described.loader is not None
    setup = importlib.util.module_from_spec(described)
    described.loader.exec_module(setup)
    for name, task in ((NORTH, "polyp"), (SOUTH, "cardiac_mr"), (WEST, "histology")):
        setup.write_images(folder / "data" / task, task, name)
    changes = [*SMALL, 'stream=["polyp", "histology"]']
    order = RunOrder(RunEngine.inprocess, folder / "data", folder / "run")
    run_scenario(resolve_scenario(str(DEMO), changes), order, console())
    summary: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text())
    return summary


def test_a_run_in_containers_gives_the_matrix_of_one_process(demo: Demo, alone: dict[str, Any]) -> None:
    demo.approve('stream=["polyp", "histology"]')
    result = call(demo.scenario_run("first", 'stream=["polyp", "histology"]'), 1500, demo.environment)
    assert result.returncode == 0, result.stdout + result.stderr + demo.logs()
    assert "Run folder: /runs/first" in result.stdout
    summary = json.loads(demo.read("first/summary.json"))
    assert summary["scenario_digest"] == alone["scenario_digest"]
    for row, expected in zip(summary["matrix"]["iou"], alone["matrix"]["iou"], strict=True):
        assert row == pytest.approx(expected, abs=1e-5)
    assert summary["zero_shot"]["iou"] == pytest.approx(alone["zero_shot"]["iou"], abs=1e-5)
    assert all(summary["complete"].values())


def test_a_failed_run_exits_with_1_and_says_why(demo: Demo) -> None:
    demo.approve("deadlines.evaluate=0.001")
    result = call(demo.scenario_run("failed", "deadlines.evaluate=0.001"), 900, demo.environment)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "the run failed: stage 0: no institution could evaluate" in result.stdout + result.stderr


CONNECT = """
import socket
try:
    socket.create_connection(({host!r}, {port}), timeout=5).close()
    print("open")
except OSError as error:
    print("closed")
"""


def test_institutions_reach_neither_each_other_nor_the_superlink(demo: Demo) -> None:
    # The positive control first: somebody does listen in south, and the gateway gets through to it.
    demo.engine.output("exec", "-d", demo.container(SOUTH), "python", "-m", "http.server", "7777")
    south, superlink = demo.address(SOUTH), demo.address("superlink")
    listening = CONNECT.format(host=south, port=7777)
    deadline = time.monotonic() + 60
    while (answer := demo.python("gateway", listening)) != "open" and time.monotonic() < deadline:
        time.sleep(1)
    assert answer == "open"
    assert demo.python(NORTH, listening) == "closed"
    assert demo.python(NORTH, CONNECT.format(host=SOUTH, port=7777)) == "closed"

    assert demo.python("gateway", CONNECT.format(host=superlink, port=8000)) == "open"
    assert demo.python(NORTH, CONNECT.format(host=superlink, port=8000)) == "closed"
    assert demo.python(NORTH, CONNECT.format(host="gateway", port=9092)) == "open"


POST = """
import http.client, ssl
trusted = ssl.create_default_context(cafile={authority!r})
connection = http.client.HTTPSConnection({host!r}, {port}, context=trusted, timeout=20)
connection.putrequest("POST", {path!r}, skip_accept_encoding=True)
connection.putheader("content-length", "0")
connection.putheader("content-type", "application/x-protobuf")
connection.endheaders()
print(connection.getresponse().status)
"""


@pytest.mark.parametrize(
    "path", ["/v1/control/list-runs", "/v1/control/start-run", "/v1/fleet/../control/list-runs"]
)
def test_an_institution_cannot_call_what_starts_runs(demo: Demo, path: str) -> None:
    through = POST.format(authority="/site/ca.crt", host="gateway", port=9092, path=path)
    assert demo.python(NORTH, through) == "404"


def test_the_same_call_beside_the_gateway_is_answered(demo: Demo) -> None:
    """The positive control: it is the gateway that refuses, and it lets what nodes need through."""
    beside = POST.format(
        authority="/server/ca.crt", host="superlink", port=8000, path="/v1/control/list-runs"
    )
    assert demo.python("gateway", beside) != "404"
    needed = POST.format(authority="/site/ca.crt", host="gateway", port=9092, path="/v1/fleet/pull-messages")
    assert demo.python(NORTH, needed) != "404"


def test_an_institution_sees_its_own_images_and_cannot_write_them(demo: Demo) -> None:
    for service, task in ((NORTH, "polyp"), (SOUTH, "cardiac_mr"), (WEST, "histology")):
        assert demo.shell(service, "ls /data").stdout.split() == [task]
        assert int(demo.shell(service, f"ls /data/{task}/images | wc -l").stdout) == 26
        for place in ("/data/planted", f"/data/{task}/images/0000.png", "/site/policy.toml", "/app/planted"):
            refused = demo.shell(service, f"echo x > {place}")
            assert refused.returncode != 0
            assert "Read-only file system" in refused.stderr
        assert demo.shell(service, "echo x > /institution/planted && rm /institution/planted").returncode == 0


def test_every_institution_is_a_user_of_its_own_without_powers(demo: Demo) -> None:
    users = {
        service: demo.shell(service, "id -u").stdout.strip() for service in (NORTH, SOUTH, WEST, "superlink")
    }
    assert len(set(users.values())) == 4
    assert "0" not in users.values()
    for service in users:
        powers = demo.shell(service, "grep -E 'CapEff|NoNewPrivs' /proc/1/status").stdout.split()
        assert powers == ["CapEff:", "0000000000000000", "NoNewPrivs:", "1"]


def test_only_trusted_and_registered_parties_meet(demo: Demo) -> None:
    """Another node in north's place: without a key, with one nobody registered, without the authority."""
    command = (
        "timeout 200 flower-supernode --superlink gateway:9092 --port 9100 {} > /tmp/log 2>&1; cat /tmp/log"
    )

    def said_by(arguments: str) -> str:
        return demo.shell(NORTH, command.format(arguments), timeout=240).stdout

    trust = "--root-certificates /site/ca.crt"
    no_key = said_by(trust)
    assert "404" in no_key, no_key  # the gateway has no way in for nodes without keys
    demo.shell(NORTH, "casam deploy key --out /tmp/stranger.key")
    stranger = said_by(f"{trust} --auth-supernode-private-key /tmp/stranger.key")
    assert "[code: 2004]" in stranger, stranger
    own = "--auth-supernode-private-key /site/node.key"
    untrusting = said_by(f"{own} --max-retries 1 --max-wait-time 10")
    assert "CERTIFICATE_VERIFY_FAILED" in untrusting, untrusting
    for said in (no_key, stranger, untrusting):
        assert "SuperNode ID" not in said


def test_an_institution_killed_at_work_comes_back_and_the_run_goes_on(demo: Demo) -> None:
    container = demo.container(WEST)

    def started() -> int:
        said = demo.engine.run("logs", container)  # Flower speaks on both
        assert said.returncode == 0, said.stderr
        return (said.stdout + said.stderr).count("Receiving: evaluate.stage")

    demo.approve('stream=["histology"]')
    before, lives = started(), restarts(demo, container)
    run = subprocess.Popen(
        demo.scenario_run("killed", 'stream=["histology"]'),
        env=os.environ | demo.environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with run:
        wait_until(lambda: started() > before or run.poll() is not None, 600)
        if run.poll() is not None:
            said, _ = run.communicate()
            pytest.fail(f"the run ended before anybody could be killed: {said}{demo.logs()}")
        # Killed as a machine that loses its power; the engine starts it again by the restart policy.
        os.kill(int(demo.engine.output("inspect", "-f", "{{.State.Pid}}", container)), signal.SIGKILL)
        said, _ = run.communicate(timeout=1200)
    assert run.returncode == 0, said + demo.logs()
    assert restarts(demo, container) > lives
    events = [json.loads(line) for line in demo.read("killed/events.jsonl").splitlines()]
    lost = [event for event in events if event["event"] == "no-result"]
    assert [(event["institution"], event["kind"]) for event in lost] == [(WEST, "evaluate.stage")]
    summary = json.loads(demo.read("killed/summary.json"))
    assert summary["zero_shot"]["iou"]["histology"] is not None, "it was asked again"
    assert summary["holders"] == {"histology": [WEST]}
    assert summary["matrix"]["iou"][-1][0] is not None


def restarts(demo: Demo, container: str) -> int:
    """How often the engine has started it again."""
    return int(demo.engine.output("inspect", "-f", "{{.RestartCount}}", container))


def wait_until(what: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.3)
