"""`casam watch`: what it makes of a run's events, alone and while they come."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scenarios.commands.report_commands import drawn
from scenarios.engines.watch import Events, RunView
from tests.casam_command import Casam
from tests.conftest import tiny_table, with_policies
from tests.runs import FinishedRun

EVALUATE, ALIGN, ROUTER = "evaluate.stage", "train.align", "train.router"
STORY: list[dict[str, Any]] = [
    {"event": "start", "time": 100, "scenario": "abc"},
    {"event": "met", "time": 101, "stream": ["polyp", "heart"],
     "institutions": {"a": ["polyp"], "b": ["heart"]}},
    {"event": "asked", "time": 101, "kind": EVALUATE, "stage": 0, "task": "", "institutions": ["a", "b"]},
    {"event": "answer", "time": 103, "institution": "a", "kind": EVALUATE, "stage": 0,
     "up": 50, "down": 70, "epsilon": {}, "iou": {"polyp": 0.5}},
    {"event": "no-result", "time": 104, "institution": "b", "kind": EVALUATE, "stage": 0,
     "outcome": "failed"},
    {"event": "evaluated", "time": 110, "stage": 0, "iou": {"polyp": 0.5, "heart": None}},
    {"event": "asked", "time": 111, "kind": ALIGN, "stage": 1, "task": "polyp", "institutions": ["a"]},
    {"event": "answer", "time": 125, "institution": "a", "kind": ALIGN, "stage": 1,
     "up": 150, "down": 170, "epsilon": {"epsilon-train": 2.5}, "iou": {}},
    {"event": "refusal", "time": 126, "institution": "a", "kind": ROUTER, "stage": 1, "outcome": "no"},
    {"event": "asked", "time": 127, "kind": EVALUATE, "stage": 1, "task": "", "institutions": ["a", "b"]},
    {"event": "evaluated", "time": 130, "stage": 1, "iou": {"polyp": 0.7}},
]  # fmt: skip


def told(*events: dict[str, Any]) -> RunView:
    view = RunView()
    for event in events:
        view.take(event)
    return view


def test_who_is_where_and_what_it_has_said_and_spent() -> None:
    view = told(*STORY)
    a, b = view.sites["a"], view.sites["b"]
    assert (a.states, b.states) == ({0: "done", 1: "refused"}, {0: "fault", 1: "measures"})
    assert (a.iou, a.epsilon, a.up, a.down) == ({"polyp": 0.5}, {"epsilon-train": 2.5}, 150, 170)
    assert (a.refusals, a.faults, b.refusals, b.faults) == (1, 0, 0, 1)
    assert (view.stage, view.status) == (1, "running")


def test_the_time_left_is_that_of_the_stages_before() -> None:
    assert told(*STORY[:6]).seconds_left(110) is None  # nothing was learned yet
    view = told(*STORY)  # stage 1 took 20 s, from 110 to 130
    assert view.seconds_left(130) == 20
    assert view.seconds_left(135) == 15
    assert view.seconds_left(999) == 0
    assert told(*STORY, {"event": "end", "time": 150}).seconds_left(150) == 0


def test_a_resumed_run_is_running_again_and_its_interruption_counts_for_no_stage() -> None:
    failed = {"event": "failed", "time": 140, "reason": "no holder could train"}
    view = told(
        *STORY, failed, {"event": "start", "time": 1140}, {"event": "resumed", "time": 1141, "stage": 1}
    )
    assert (view.status, view.reason) == ("running", "")
    assert view.seconds_left(1140) == 10  # stage 1 took 20 s, and 10 s of the next one came before the end


def test_events_of_later_versions_are_passed_by() -> None:
    assert told(*STORY, {"event": "comet", "time": 140}).last == 140


def test_a_line_that_is_still_being_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = Events(path)
    assert list(events.new()) == []
    path.write_text('{"event": "a"}\n{"event": ')
    assert [event["event"] for event in events.new()] == ["a"]
    with path.open("a") as file:
        file.write('"b"}\n')
    assert [event["event"] for event in events.new()] == ["b"]
    assert list(events.new()) == []


def test_the_picture_names_every_institution_stage_and_figure() -> None:
    screen = Console(width=160, record=True)
    screen.print(drawn(told(*STORY), "run-1", 135.0))
    text = screen.export_text()
    assert "run-1: stage 1 of 2, 35 s so far, about 15 s left" in text
    for word in ("0 frozen", "1 polyp", "2 heart", "refused", "fault", "measures", "0.500", "2.50", "150"):
        assert word in text, word


def test_a_run_of_a_thousand_still_fits_a_screen() -> None:
    names: dict[str, list[str]] = {f"s{number}": [] for number in range(1000)}
    met = {"event": "met", "time": 1, "stream": ["polyp"], "institutions": names}
    table = drawn(told(met, STORY[4]), "run", 5.0)
    assert table.row_count == 41
    screen = Console(width=120, record=True)
    screen.print(table)
    text = screen.export_text()
    assert "and 961 more" in text
    assert text.index("fault") < text.index("s1 ")  # those with something to say come first


@pytest.fixture
def finished(finished_run: FinishedRun) -> Path:
    """A whole run in which one refuses."""
    return finished_run(with_policies(tiny_table(), north={"adapter": {"share": "never"}}))


def test_a_true_runs_events_give_the_figures_of_its_summary(finished: Path) -> None:
    view = told(*Events(finished / "events.jsonl").new())
    summary = json.loads((finished / "summary.json").read_text())
    assert view.status == "completed"
    assert view.stream == ("polyp", "histology")
    assert {name: site.up for name, site in view.sites.items()} == summary["bytes"]["up"]
    assert {name: site.down for name, site in view.sites.items()} == summary["bytes"]["down"]
    assert view.sites["north"].states == {0: "done", 1: "refused", 2: "done"}
    for name, tasks in summary["statistics"].items():
        expected = {task: pytest.approx(found["iou"]["mean"]) for task, found in tasks.items()}
        assert view.sites[name].iou == expected


def test_plain_lines_end_with_the_run(finished: Path, casam: Casam) -> None:
    result = casam("watch", finished)
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert lines[-1].endswith("completed")
    assert any("stage 1: north refuses train.align: adapter-not-shared" in line for line in lines)
    assert any("south described" in line for line in lines)


def test_a_run_is_followed_while_it_is_written(finished: Path, tmp_path: Path, casam: Casam) -> None:
    lines = (finished / "events.jsonl").read_bytes().splitlines(keepends=True)
    target = tmp_path / "run" / "events.jsonl"
    target.parent.mkdir()

    def write() -> None:
        for line in lines:
            with target.open("ab") as file:
                file.write(line[:10])
            time.sleep(0.01)
            with target.open("ab") as file:
                file.write(line[10:])

    writer = threading.Thread(target=write)
    writer.start()
    result = casam("watch", "run")
    writer.join()
    assert result.status == 0
    assert result.out == casam("watch", finished).out


def test_a_failed_run_ends_with_its_reason_and_status_1(tmp_path: Path, casam: Casam) -> None:
    (tmp_path / "runs" / "x").mkdir(parents=True)
    failed = {"event": "failed", "time": 120, "reason": "no holder could train"}
    text = "".join(json.dumps(event) + "\n" for event in [*STORY, failed])
    (tmp_path / "runs" / "x" / "events.jsonl").write_text(text)
    result = casam("watch")  # the newest run below runs/
    assert (result.status, result.err) == (1, "error: the run failed: no holder could train\n")
    assert casam("watch", "runs/x", "--once").status == 1


def test_a_run_that_says_nothing_is_given_up_where_wanted(tmp_path: Path, casam: Casam) -> None:
    (tmp_path / "run").mkdir()
    text = "".join(json.dumps(event) + "\n" for event in STORY)
    (tmp_path / "run" / "events.jsonl").write_text(text)
    result = casam("watch", "run", "--silence", "1")
    assert result.status == 1
    assert "no event for" in result.err
    once = casam("watch", "run", "--once")
    assert once.status == 0
    assert "stage 1 of 2" in once.out


@pytest.mark.timeout(60)
def test_a_run_whose_server_was_killed_after_its_last_file_is_complete(tmp_path: Path, casam: Casam) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in STORY))
    (tmp_path / "run" / "summary.json").write_text("{}")
    assert casam("watch", "run").status == 0
    assert json.loads(casam("watch", "run", "--json").out.splitlines()[-1])["event"] == "end"
    assert json.loads(casam("watch", "run", "--once", "--json").out)["status"] == "completed"


def test_what_is_no_run_is_refused(tmp_path: Path, casam: Casam) -> None:
    assert "expected a run folder" in casam("watch", "nowhere").err
    assert "no run found in" in casam("watch").err
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text("{}")
    assert "watch one of its runs" in casam("watch", "study").err
