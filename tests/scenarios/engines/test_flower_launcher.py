"""The launcher against a tiny Flower app: honest status, nothing left behind, no mutual disturbance."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from casam_core.errors import RunError
from scenarios.engines import flower, processes
from scenarios.engines.bundle import stage_app
from scenarios.engines.flower import FlowerRun, run_flower_app
from scenarios.engines.run import cards_for
from scenarios.engines.superlink import flower_command
from tests.echo_app import write_echo_app


@pytest.fixture
def app_dir(tmp_path: Path) -> Path:
    """A Flower app that is in no environment: only the bundle can provide its code."""
    return write_echo_app(tmp_path / "app")


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path) -> Iterator[None]:
    """After each test: no process of a run; a killed launcher's guardian needs a moment."""
    yield
    deadline = time.monotonic() + 20
    while (left := _leftovers()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, f"still running: {left}"


def _leftovers() -> dict[int, str]:
    """Processes that this test's runs have started, recognised by a variable of our own."""
    needle = f"CASAM_TEST_SESSION={os.getpid()}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if needle in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def _ray_folder(lines: list[str]) -> Path:
    return Path(next(line.split("ray keeps: ")[1] for line in lines if "ray keeps: " in line))


def _run(app_dir: Path, home: Path, lines: list[str], ending: str, nodes: int = 2) -> FlowerRun:
    return run_flower_app(
        app_dir,
        {"ending": ending, "nodes": nodes, "note": f'quotes " and ümlauts in {home.name}'},
        nodes=nodes,
        home=home,
        on_line=lines.append,
        environment={"EXTRA": f"extra-{home.name}", "CASAM_TEST_SESSION": str(os.getpid())},
    )


@pytest.mark.slow
def test_completed_run(app_dir: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    run = _run(app_dir, tmp_path / "home", lines, "return", nodes=3)
    assert run.ok, "\n".join(lines)
    assert run.status == "finished:completed"
    text = "\n".join(lines)
    assert 'note: quotes " and ümlauts in home' in text
    assert "nodes: 3" in text
    assert text.count("answer: extra-home from ") == 3
    assert text.count(f"niceness: {os.nice(0)}") == 3, "no program of the same user goes before the clients"
    assert "\x1b" not in text
    assert not _ray_folder(lines).exists()
    sources = {line.rsplit(" ", 1)[-1] for line in lines if "answer: " in line}
    assert all(str(tmp_path / "home") in source for source in sources), "clients must run the run's own code"


@pytest.mark.slow
def test_failing_server_is_reported(app_dir: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    run = _run(app_dir, tmp_path / "home", lines, "raise", nodes=1)
    assert not run.ok
    assert run.status == "finished:failed"
    assert "the server gives up" in run.details + "\n".join(lines)


@pytest.mark.slow
def test_exit_of_the_server_ends_cleanly(app_dir: Path, tmp_path: Path) -> None:
    """Flower counts sys.exit in a simulated ServerApp as completed: our ServerApp must not do it."""
    run = _run(app_dir, tmp_path / "home", [], "exit", nodes=1)
    assert run.status == "finished:completed"


@pytest.mark.slow
def test_two_runs_at_once(app_dir: Path, tmp_path: Path) -> None:
    outputs: list[list[str]] = [[], []]
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(_run, app_dir, tmp_path / name, lines, ending, 1)
            for name, lines, ending in zip(("one", "two"), outputs, ("return", "raise"), strict=True)
        ]
        first, second = (job.result() for job in jobs)
    assert first.ok
    assert second.status == "finished:failed"
    assert "extra-one" in "\n".join(outputs[0])
    assert "extra-two" not in "\n".join(outputs[0])
    assert "extra-two" in "\n".join(outputs[1])


@pytest.mark.slow
def test_interrupt_ends_everything(app_dir: Path, tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        if "waiting" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_flower_app(
            app_dir,
            {"ending": "wait"},
            nodes=1,
            home=tmp_path / "home",
            on_line=interrupt,
            environment={"CASAM_TEST_SESSION": str(os.getpid())},
        )
    assert not _leftovers()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_launcher_leaves_nothing(app_dir: Path, tmp_path: Path, number: signal.Signals) -> None:
    program = """
        import sys
        from pathlib import Path
        from scenarios.engines.flower import run_flower_app
        def show(line):
            print(line, flush=True)
        app, home = map(Path, sys.argv[1:])
        run_flower_app(app, {"ending": "wait"}, nodes=1, home=home, on_line=show)
    """
    launcher = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(app_dir), str(tmp_path / "home")],
        env=os.environ | {"CASAM_TEST_SESSION": str(os.getpid())},
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        text=True,
    )
    with launcher:
        assert launcher.stdout is not None
        lines: list[str] = []
        while "waiting" not in "".join(lines):
            lines.append(next(launcher.stdout).rstrip())
        assert len(_leftovers()) > 3, "the run's processes must be visible to this test"
        launcher.send_signal(number)
    assert launcher.returncode != 0
    deadline = time.monotonic() + 20
    while _ray_folder(lines).exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _ray_folder(lines).exists()


@pytest.mark.slow
def test_unknown_key_never_starts(app_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="could not start") as caught:
        run_flower_app(app_dir, {"endnig": "x"}, nodes=1, home=tmp_path / "home", on_line=lambda line: None)
    assert "endnig" in str(caught.value)


def test_superlink_that_cannot_start(app_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "fake-superlink"
    fake.write_text("#!/bin/sh\necho the disk is full\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setattr(
        "scenarios.engines.superlink.flower_command",
        lambda name: str(fake) if name == "flower-superlink" else flower_command(name),
    )
    with pytest.raises(RunError, match="SuperLink could not start") as caught:
        _run(app_dir, tmp_path / "home", [], "return")
    assert "the disk is full" in str(caught.value)
    assert "status 3" in str(caught.value)


def test_used_home_and_missing_app_are_refused(app_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="pyproject"):
        _run(tmp_path / "nowhere", tmp_path / "home", [], "return")
    with pytest.raises(RunError, match="new or empty"):
        _run(app_dir, app_dir, [], "return")


def test_staged_app_holds_only_what_is_packed(app_dir: Path, tmp_path: Path) -> None:
    (app_dir / ".venv").mkdir()
    (app_dir / ".venv" / "big.py").touch()
    (app_dir / "runs").mkdir()
    (app_dir / "echo" / "__pycache__").mkdir()
    staged = stage_app(app_dir, tmp_path / "staged")
    files = sorted(p.relative_to(staged).as_posix() for p in staged.rglob("*") if p.is_file())
    assert files == ["echo/__init__.py", "echo/client.py", "echo/server.py", "pyproject.toml"]


def test_ray_is_given_no_more_than_the_nodes_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert "init-args-num-cpus=3" in flower._federation(3, 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert "init-args-num-cpus=4" in flower._federation(3, 4)
    # Ray refuses to connect to a cluster that it is told the size of.
    assert "init-args" not in flower._federation(3, 1, own_ray=False)


def test_a_process_stays_known_when_its_mark_and_parent_are_gone() -> None:
    mark = f"test-known-{os.getpid()}"
    script = "env -i sh -c 'trap \"\" TERM; sleep 60' & sleep 60"
    shell = subprocess.Popen(["sh", "-c", script], env=os.environ | {processes.MARKER: mark})
    time.sleep(0.5)
    family = processes.marked_processes(mark)
    assert len(family) == 4
    assert processes.end_processes(mark, grace=0.5) == set()
    assert shell.wait() != 0
    assert not processes.marked_processes(mark, family)


def test_processes_are_found_by_their_mark_and_ended() -> None:
    mark = f"test-{os.getpid()}"
    shell = subprocess.Popen(
        ["sh", "-c", "env -i sleep 60 & sleep 60"], env=os.environ | {processes.MARKER: mark}
    )
    deadline = time.monotonic() + 5
    while len(processes.marked_processes(mark)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(processes.marked_processes(mark)) == 3, "also the child that lost its environment"
    assert processes.end_processes(mark) == set()
    assert shell.wait() != 0


@pytest.mark.parametrize(
    ("workers", "cards", "share"),
    [(16, 0, 0.0), (16, 1, 0.0), (16, 2, 0.125), (5, 2, 0.3333), (1, 4, 1.0), (8, 8, 1.0)],
)
def test_ray_gives_every_card_equally_many_workers(workers: int, cards: int, share: float) -> None:
    assert flower.share_of_a_card(workers, cards) == share
    if cards > 1:
        assert cards * int(1 / share) >= workers or share == 1.0


def test_ray_is_told_of_the_cards_only_if_there_is_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert "init-args-num-gpus" not in flower._federation(8, 1, cards=1)
    told = flower._federation(8, 1, cards=2)
    assert "client-resources-num-gpus=0.25" in told
    assert "init-args-num-gpus=2" in told
    assert "num-gpus=0.0" in flower._federation(8, 1, own_ray=False, cards=2)


def test_a_named_card_and_a_part_of_a_card_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [cards_for(device) for device in ("auto", "cuda", "cuda:1", "cpu", "mps")] == [4, 4, 0, 0, 0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-9f2c")
    assert cards_for("auto") == 0
