"""`casam deploy local` for real: the numbers of one process, an honest status, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from rich.console import Console

from casam_core.bank.bank import Bank
from casam_core.config.scenario import Scenario
from casam_core.config.toml import read_policy
from casam_core.protocol.audit import broken, read_log
from casam_core.protocol.register import Keys, Register, new_signing_key, public_hex
from scenarios.deploy import local
from server.run.run_folder import read_arrivals
from tests.conftest import tiny_table, with_policies
from tests.processes import carries
from tests.runs import FinishedRun, events, summary_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CASAM = str(Path(sys.executable).parent / "casam")
MARK = "CASAM_TEST_DEPLOY"


TABLE = with_policies(tiny_table(), north={"max_rounds": 2})
"""One institution allows no more than two rounds of training."""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """TABLE as a file."""
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(TABLE))
    return tmp_path / "tiny.toml"


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """`casam ...`; its temporary files go where the test can look for them."""
    (cwd / "tmp").mkdir(exist_ok=True)
    return subprocess.Popen(
        [CASAM, *arguments],
        cwd=cwd,
        env=os.environ | {MARK: str(cwd), "TMPDIR": str(cwd / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left_behind(cwd: Path) -> list[str]:
    """Processes that carry the test's mark, and temporary files but PyTorch's own cache."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        if carries(folder, f"{MARK}={cwd}"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found + [str(p) for p in (cwd / "tmp").iterdir() if not p.name.startswith("torchinductor")]


def test_a_deployment_gives_the_matrix_of_one_process(scenario: Path, finished_run: FinishedRun) -> None:
    cwd = scenario.parent
    deployed = start("deploy", "local", "tiny.toml", "--out", "deployed", cwd=cwd)
    said, failed = deployed.communicate()
    assert deployed.returncode == 0, said + failed
    assert said.splitlines()[-1] == f"Run folder: {cwd / 'deployed'}"
    assert left_behind(cwd) == []

    one, other = summary_of(finished_run(TABLE)), summary_of(cwd / "deployed")
    assert other["scenario_digest"] == one["scenario_digest"]
    for row, expected in zip(other["matrix"]["iou"], one["matrix"]["iou"], strict=True):
        assert row == pytest.approx(expected, abs=1e-5)
    assert other["zero_shot"]["iou"] == pytest.approx(one["zero_shot"]["iou"], abs=1e-5)

    for site in ("north", "south", "west"):
        home = cwd / "deployed" / "institutions" / site / "private"
        assert home.stat().st_mode & 0o777 == 0o700
        lines = read_log(home / "audit.jsonl")
        assert lines
        assert broken(lines) is None
        files = [path for path in home.rglob("*") if path.is_file()]
        # The institution's own signing key stays with its logs and receipts; the node's key does not.
        assert [path.name for path in files if b"PRIVATE KEY" in path.read_bytes()] == ["signing.key"]
    own = cwd / "deployed" / "institutions" / "north" / "private" / "policy.toml"
    assert read_policy(own).max_rounds == 2


def test_a_run_that_fails_exits_with_1_and_leaves_nothing(scenario: Path) -> None:
    cwd = scenario.parent
    process = start(
        "deploy", "local", "tiny.toml", "--out", "run", "--set", "deadlines.evaluate=0.001", cwd=cwd
    )
    said, failed = process.communicate()
    assert process.returncode == 1, said + failed
    assert "the run failed: stage 0: no institution could evaluate" in failed
    assert left_behind(cwd) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_nothing_outlives_an_interrupt_or_a_kill(scenario: Path, number: signal.Signals, status: int) -> None:
    cwd = scenario.parent
    process = start("deploy", "local", "tiny.toml", "--out", "run", cwd=cwd)
    assert process.stdout is not None
    for line in process.stdout:
        if "3 of 3 nodes connected" in line:
            break
    assert len(left_behind(cwd)) > 4, "server, nodes and files must be visible to this test"
    process.send_signal(number)
    process.communicate()
    assert process.returncode == status
    deadline = time.monotonic() + 60
    while left_behind(cwd) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left_behind(cwd) == []


def test_a_node_that_takes_the_name_of_another_has_no_part_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node of west is registered at the server, but its operator writes files that make it south."""
    honest = local.write_node

    def written(scenario: Scenario, name: str, home: Path, files: Path, *rest: Any) -> Path:
        node = honest(scenario, "south" if name == "west" else name, home, files, *rest)
        if name == "west":
            key = Keys(signing=public_hex(new_signing_key(files / "own.key")))
            own = Register(institutions={"south": key}, server="0" * 64)
            (files / "own.json").write_bytes(own.text())
            facts = tomllib.loads(node.read_text())
            facts |= {"register": "own.json", "signing_key": "own.key"}
            node.write_text(tomli_w.dumps(facts))
        return node

    monkeypatch.setattr(local, "write_node", written)
    table = tiny_table(stream=["histology"], participation={"missing": "skip"}, deadlines={"connect": 30.0})
    order = local.DeployOrder(out=tmp_path / "run")
    folder = local.deploy_local(Scenario.model_validate(table), order, Console())

    assert {event["institution"] for event in events(folder, "unregistered")} == {"south"}
    learned = Bank.open(folder / "bank")["histology"]
    assert learned.provenance.holders == ("south",)
    answered = {release.institution for release in read_arrivals(folder / "audit.jsonl")}
    assert answered == {"north", "south"}
    # The impostor's own audit log exists, so it did answer; the server took nothing of it.
    assert read_log(folder / "institutions" / "west" / "private" / "audit.jsonl")
