"""The in-process engine with several processes: the same bits, output, and ends without a process left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict
from rich.console import Console

from casam_core.config.scenario import Scenario
from casam_core.errors import RunError, RunInputError
from casam_core.protocol.fingerprint import ROOT
from scenarios.engines import Engine, workers
from scenarios.engines.inprocess import FIRST_NODE
from scenarios.engines.order import RunOrder
from scenarios.engines.preflight import preflight
from scenarios.engines.run import resume_run, run_scenario
from scenarios.engines.workers import WorkerGrid, worker_grid
from tests.conftest import tiny_table
from tests.golden.cases import record


@pytest.fixture
def grid() -> Iterator[WorkerGrid]:
    with worker_grid(2, 3, {"out": "unused"}) as made:
        yield made
    assert not multiprocessing.active_children()


def unreadable(node: int) -> Message:
    return Message(RecordDict(), dst_node_id=FIRST_NODE + node, message_type="query.identify")


def test_every_message_of_a_push_is_answered_and_belongs_to_its_node(grid: WorkerGrid) -> None:
    ids = grid.push_messages([unreadable(node) for node in (0, 1, 2, 0, 1, 2)])
    assert len(set(ids)) == 6
    for node, message_id in zip((0, 1, 2, 0, 1, 2), ids, strict=True):
        (reply,) = grid.pull_messages([message_id])
        assert reply.metadata.src_node_id == FIRST_NODE + node
        assert reply.metadata.reply_to_message_id == message_id
        assert reply.content.config_records["config"]["outcome"] == "bad-request"
    assert list(grid.pull_messages(ids)) == []


def test_a_worker_that_dies_is_named(grid: WorkerGrid) -> None:
    victim = multiprocessing.active_children()[0]
    assert victim.pid
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(RunError, match=r"a worker process died \(exit code -9\)"):
        grid.push_messages([unreadable(node) for node in (0, 1, 2)])


SERVER = """
import multiprocessing, sys
from tests.scenarios.engines.test_workers import work_for_ever
ours, theirs = multiprocessing.Pipe()
worker = multiprocessing.get_context("forkserver").Process(target=work_for_ever, args=(theirs,))
worker.start()
ours.send("an errand")
print(worker.pid, flush=True)
sys.stdin.read()
"""


def work_for_ever(pipe: Connection) -> None:
    workers.answer = lambda errand, grid: time.sleep(600)  # type: ignore[assignment,return-value]
    workers.serve(pipe, 1, {"out": "unused"}, dict(os.environ))


def test_a_worker_ends_with_its_server_even_while_it_works() -> None:
    command, pipe = [sys.executable, "-c", SERVER], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as server:
        assert server.stdout is not None
        worker = int(server.stdout.readline())
        server.kill()
    end = time.monotonic() + 60
    while running(worker):
        assert time.monotonic() < end
        time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    "name", ["secagg", *(pytest.param(name, marks=pytest.mark.slow) for name in ("open", "dp", "unlearn"))]
)
def test_two_workers_end_with_the_bits_of_one_process(name: str, tmp_path: Path) -> None:
    """Two rounds of training, noise, secure sums, and an institution that leaves and is unlearned."""
    one = record(name, tmp_path / "one")
    assert record(name, tmp_path / "two", partial(worker_grid, 2)) == one


def test_a_run_is_continued_with_as_many_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def noted(*arguments: object, grid_of: partial[object], **more: object) -> None:
        asked.append(grid_of)

    monkeypatch.setattr("scenarios.engines.run.run_inprocess", noted)
    monkeypatch.setattr("scenarios.engines.run.write_card", lambda folder: None)
    scenario = Scenario.model_validate(tiny_table())
    run_scenario(scenario, RunOrder(Engine.inprocess, None, tmp_path / "run", workers=3), Console())
    (tmp_path / "run" / "scenario.json").write_text(scenario.canonical_json())
    resume_run(tmp_path / "run", Console())
    assert [(made.func, made.args) for made in asked] == [(worker_grid, (3,))] * 2


def test_a_run_leaves_the_folder_alone_that_another_took_meanwhile(
    tmp_path: Path, tiny_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(*_: object) -> object:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "order.json").write_text("of the other run")
        return preflight(tiny_scenario, None)

    monkeypatch.setattr("scenarios.engines.run.preflight", taken)
    with pytest.raises(RunInputError, match="expected a new or empty folder"):
        run_scenario(tiny_scenario, RunOrder(Engine.inprocess, None, tmp_path / "run"), Console())
    assert (tmp_path / "run" / "order.json").read_text() == "of the other run"
