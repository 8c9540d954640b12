"""kill -9 of what a run consists of: Ray's processes, one node of a deployment, a second server."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w

from tests.conftest import tiny_table
from tests.processes import carries
from tests.runs import FinishedRun, lines_in, result

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CASAM = str(Path(sys.executable).parent / "casam")
MARK = "CASAM_TEST_KILLS"


TABLE = tiny_table(training={"epochs": 80, "batch_images": 1, "fallback_to_identity": False})
"""It trains a few seconds per stage."""

ONE_STAGE = TABLE | {"stream": ["histology"], "training": TABLE["training"] | {"epochs": 20}}
"""Half of its exchanges; a node's exchange takes seconds."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With both tables as files."""
    tmp_path = tmp_path_factory.mktemp("kills")
    for name, table in (("tiny", TABLE), ("one-stage", ONE_STAGE)):
        (tmp_path / f"{name}.toml").write_text(tomli_w.dumps(table))
    return tmp_path


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """`casam ...`; whatever comes of it carries the test's mark in its environment."""
    return subprocess.Popen(
        [CASAM, *arguments],
        cwd=cwd,
        env=os.environ | {MARK: str(cwd)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def processes(cwd: Path) -> Iterator[tuple[int, int, str]]:
    """(process, its parent, its command line) of everything that carries the mark, or whose parent does:
    Ray's workers write their names over their environment."""
    listed = subprocess.run(
        ["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    ours = {pid for pid, _, _ in rows if carries(Path("/proc") / pid, f"{MARK}={cwd}")}
    return ((int(pid), int(parent), args) for pid, parent, args in rows if {pid, parent} & ours)


def victims(cwd: Path, name: str) -> list[int]:
    return [pid for pid, _, args in processes(cwd) if name in args.split(" --")[0]]


def reach(run: Path, lines: int, process: subprocess.Popen[str]) -> None:
    """Wait until the run has come that far."""
    end = time.monotonic() + 300
    while lines_in(run) < lines:
        assert process.poll() is None, f"it ended by itself: {process.communicate()[0]}"
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


RAY = ("ray::ClientAppActor", "raylet/raylet", "flwr-simulation", "gcs_server")


def test_whatever_of_ray_is_killed_the_run_ends_and_resumes(
    folder: Path, finished_run: FinishedRun, request: pytest.FixtureRequest
) -> None:
    """One run: its workers are killed, then Ray's node; in the long profile, --kills 25, also the process of
    both, and Ray's store of control, without which what is under way may well get to its end."""
    draw, run = random.Random(6), folder / "killed"
    for name in RAY if int(request.config.getoption("--kills")) >= 25 else RAY[:2]:
        begun, since = lines_in(run), time.monotonic()
        arguments = ["--resume", "killed"] if begun else ["tiny.toml", "--out", "killed"]
        process = start("run", *arguments, cwd=folder)
        reach(run, begun + draw.randrange(4, 7), process)
        found, killed = victims(folder, name), time.monotonic()
        assert found, f"no {name} to kill"
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        said, _ = process.communicate(timeout=240)
        now = time.monotonic()
        print(f"{name}: killed after {killed - since:.0f} s, ended {now - killed:.0f} s later")
        assert process.returncode == 1 or name == RAY[-1], f"{name}: {said}"
        assert (run / "summary.json").exists() == (process.returncode == 0)
        assert not list(processes(folder)), f"{name}: something is left"
        if name == RAY[0]:
            assert "the worker process of the simulation died" in said
    if not (run / "summary.json").exists():
        last = start("run", "--resume", "killed", cwd=folder)
        said, _ = last.communicate(timeout=300)
        assert last.returncode == 0, said
    assert result(run) == result(finished_run(TABLE))


def test_workers_end_with_their_run_and_the_run_resumes_with_workers(
    folder: Path, finished_run: FinishedRun
) -> None:
    """The in-process engine with two workers: its process is killed, and continued to the usual bits."""
    run, order = folder / "workers", ["--engine", "inprocess", "--workers", "2"]
    process = start("run", "tiny.toml", *order, "--out", run.name, cwd=folder)
    reach(run, 5, process)
    assert len(list(processes(folder))) > 2, "no worker is at work"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    end = time.monotonic() + 60
    while left := list(processes(folder)):
        assert time.monotonic() < end, f"something is left: {left}"
        time.sleep(0.1)
    said, _ = start("run", "--resume", run.name, cwd=folder).communicate(timeout=300)
    assert result(run) == result(finished_run(TABLE)), said


def test_nodes_that_are_killed_come_back_and_change_no_figure(
    folder: Path, finished_run: FinishedRun, request: pytest.FixtureRequest
) -> None:
    """One kill at a seeded moment; the long profile, --kills 25, has five."""
    kills, draw = max(1, int(request.config.getoption("--kills")) // 5), random.Random(7)
    run, number, done = folder / "deployed-0", 0, 0
    while done < kills:
        order = ("deploy", "local", "one-stage.toml", "--out", run.name, "--set", "deadlines.retries=6")
        process = start(*order, cwd=folder)
        for _ in range(min(2, kills - done)):
            reach(run, lines_in(run) + draw.randrange(2, 5), process)
            home = f"institutions/{draw.choice(('north', 'south', 'west'))}/node.toml"
            (launcher,) = [pid for pid, _, args in processes(folder) if home in args]
            os.kill(launcher, signal.SIGKILL)
            done += 1
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said
        assert "ended with status -9" in said
        assert result(run) == result(finished_run(ONE_STAGE))
        number += 1
        run = folder / f"deployed-{number}"
    print(f"{done} nodes killed in {number} runs")


def test_a_second_process_on_a_run_folder_is_refused_and_the_first_goes_on(folder: Path) -> None:
    long = ("--set", "training.epochs=150")
    first = start("run", "tiny.toml", "--engine", "inprocess", "--out", "run", *long, cwd=folder)
    reach(folder / "run", 4, first)
    second = start("run", "--resume", "run", cwd=folder)
    said, _ = second.communicate(timeout=120)
    assert second.returncode == 1, said
    assert f"run folder {folder / 'run'} is written to by another server" in said
    assert first.poll() is None, "the first must still run, or this shows nothing"
    assert first.wait(timeout=600) == 0
    assert (folder / "run" / "summary.json").exists()
