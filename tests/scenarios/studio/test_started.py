"""Runs of the studio are `casam run` processes: they are followed, stopped as with Ctrl-C, and continued."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomli_w
from starlette.testclient import TestClient

from casam_core.errors import CasamError
from casam_core.protocol.fingerprint import ROOT
from scenarios.engines import Engine
from scenarios.studio import started
from scenarios.studio.pages import Studio
from scenarios.studio.serve import studio_at
from scenarios.studio.shelf import RunItem
from scenarios.studio.started import Starter, Step
from tests.conftest import tiny_table
from tests.runs import FinishedRun, result

WORKS = """
import signal, sys, time
print("quickstart: 3 tasks; starts", flush=True)
print("north: train polyp 3/48", flush=True)
print(sys.argv[1:], flush=True)
try:
    while True:
        time.sleep(0.05)  # a signal just before a long sleep would wait for its end
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Starter]:
    """A starter whose `casam` prints a step and waits for Ctrl-C."""
    monkeypatch.setattr(started, "COMMAND", (sys.executable, "-c", WORKS))
    starter = Starter(tmp_path)
    yield starter
    starter.stop_all()


def soon(true: Callable[[], object], seconds: float = 20) -> bool:
    """Whether it becomes true within some seconds."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(true())


def test_a_run_is_the_command_that_a_person_would_type(starter: Starter) -> None:
    begun = starter.start("quickstart", ["training.epochs=1"], Engine.inprocess, "mine", None)
    assert soon(lambda: len(begun.lines) == 2)
    typed = ["run", "quickstart", "--engine=inprocess", f"--out={starter.folder / 'mine'}"]
    assert begun.lines[1] == str([*typed, "--set=training.epochs=1"])
    assert begun.status == "working"
    assert starter.of(starter.folder / "mine") is begun


def test_steps_are_read_from_what_it_prints(starter: Starter) -> None:
    begun = starter.start("quickstart", [], Engine.inprocess, "", None)
    assert soon(lambda: begun.steps)
    assert begun.steps == {"north": Step("train polyp", 3, 48)}
    assert begun.folder.name.startswith("quickstart-")


def test_stop_is_ctrl_c(starter: Starter) -> None:
    begun = starter.start("quickstart", [], Engine.inprocess, "mine", None)
    assert soon(lambda: begun.steps)
    begun.stop()
    assert begun.status in ("stopping", "stopped")
    assert soon(lambda: not begun.working)
    assert (begun.status, begun.process.returncode) == ("stopped", 130)


def test_a_working_run_is_not_started_twice_and_a_stopped_one_can_be_continued(starter: Starter) -> None:
    begun = starter.start("quickstart", [], Engine.inprocess, "mine", None)
    with pytest.raises(CasamError, match="does not work, found a working one"):
        starter.resume(begun.folder)
    assert soon(lambda: begun.steps)
    begun.stop()
    begun.process.wait(20)
    again = starter.resume(begun.folder)
    assert soon(lambda: len(again.lines) == 2)
    assert again.lines[1] == str(["run", f"--resume={begun.folder}"])


def test_the_end_of_the_studio_stops_its_runs(starter: Starter) -> None:
    begun = [starter.start("quickstart", [], Engine.inprocess, name, None) for name in ("one", "two")]
    assert soon(lambda: all(run.steps for run in begun))
    starter.stop_all()
    assert [run.process.poll() for run in begun] == [130, 130]


def test_a_process_that_does_not_stop_is_ended(starter: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('a: b 1/2', flush=True); "
    )
    monkeypatch.setattr(started, "COMMAND", (sys.executable, "-c", deaf + "time.sleep(60)"))
    monkeypatch.setattr(started, "SECONDS_TO_STOP", 0.5)
    begun = starter.start("quickstart", [], Engine.inprocess, "mine", None)
    assert soon(lambda: begun.steps)
    starter.stop_all()
    assert begun.process.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("../out", [], "expected a folder name"),
        ("a/b", [], "expected a folder name"),
        ("", ["training.epochs=many"], "training.epochs"),
        ("", ["no.such.key=1"], "no"),
        ("-x", [], "folder name"),
    ],
)
def test_bad_orders_start_nothing(starter: Starter, name: str, changes: list[str], says: str) -> None:
    with pytest.raises(CasamError, match=says):
        starter.start("quickstart", changes, Engine.inprocess, name, None)
    assert starter.all() == []


def test_the_form_starts_a_run_and_its_page_follows_it(
    visitor: TestClient, studio: Studio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(started, "COMMAND", (sys.executable, "-c", WORKS))
    form = {
        "scenario": "quickstart",
        "changes": "training.epochs=1\n",
        "name": "from-form",
        "engine": "inprocess",
    }
    answer = visitor.post("/start", data=form)
    try:
        assert (answer.status_code, answer.headers["location"]) == (303, "/run?at=0/from-form")
        (begun,) = studio.starter.all()
        assert soon(lambda: begun.lines)
        page = visitor.get("/run?at=0/from-form").text
        assert "quickstart: 3 tasks; starts" in page
        assert "from-form" in visitor.get("/").text
        # It can be stopped before its folder exists.
        assert visitor.post("/run/stop", data={"at": "0/from-form"}).status_code == 303
        assert soon(lambda: begun.status == "stopped")
    finally:
        studio.starter.stop_all()


def test_a_run_folder_takes_no_other_run(tiny_runs: Path) -> None:
    with studio_at([tiny_runs / "done"], 0) as (door, server, _):
        guarded = server.config.app
        person = TestClient(guarded, base_url=f"http://127.0.0.1:{door.port}")
        assert person.get(door.address).status_code == 200
        html = person.get("/").text
        assert "done" in html
        assert 'action="/start"' not in html
        assert person.get("/run?at=0").status_code == 200
    with pytest.raises(CasamError, match="found only run folders"):
        Starter(None).start("quickstart", [], Engine.inprocess, "", None)


@pytest.mark.parametrize("scenario", ["/etc/passwd", "../x.toml", "file:0/../../x.toml", ""])
def test_only_scenarios_of_the_list_or_of_the_folders_start(
    visitor: TestClient, studio: Studio, scenario: str
) -> None:
    assert visitor.post("/start", data={"scenario": scenario}).status_code in (400, 404)
    assert studio.starter.all() == []


def test_only_an_interrupted_run_can_be_continued_and_only_an_own_one_stopped(visitor: TestClient) -> None:
    assert "interrupted" in visitor.post("/run/resume", data={"at": "0/done"}).text
    assert visitor.post("/run/resume", data={"at": "0/done"}).status_code == 400
    assert visitor.post("/run/stop", data={"at": "0/broken-off"}).status_code == 400


@pytest.mark.slow
def test_a_real_run_is_stopped_continued_and_ends_as_an_undisturbed_one(
    tmp_path: Path, finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    table = tiny_table(training={"epochs": 40, "batch_images": 4, "keep_best": False})
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(table))
    starter = Starter(tmp_path / "runs")
    try:
        begun = starter.start(str(tmp_path / "tiny.toml"), [], Engine.inprocess, "stopped", None)
        assert soon(lambda: (begun.folder / "state.json").exists() and begun.steps, seconds=120)
        begun.stop()
        begun.process.wait(60)
        assert begun.status == "stopped", begun.lines
        run = RunItem("0/stopped", begun.folder)
        assert run.resumable
        assert not run.finished
        again = starter.resume(begun.folder)
        again.process.wait(240)
        assert again.status == "completed", again.lines
        assert result(run.path) == result(finished_run(table))
    finally:
        starter.stop_all()
