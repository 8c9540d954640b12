"""A run folder is read through its documented files, and what is not one is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from casam_core.errors import RunError
from scenarios.report.parts import Notice
from scenarios.report.reading import labels, read_all, read_run
from scenarios.report.sections.record import course
from scenarios.report.sections.timeline import timeline
from tests.scenarios.report.making import events_of, scenario_of, write_events, write_run


def test_a_run_is_read_whole(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "one"), "one")
    assert run.institutions == ["north", "south", "west", "heart", "visitor"]
    assert run.stages == 3
    assert len(run.arrivals) == 5
    assert run.audit_fault is None
    assert run.summary.privacy["south"].epsilon_train == 2.25


def test_keys_of_older_and_newer_runs_do_no_harm(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", new_key={"of": "tomorrow"})
    content = json.loads((folder / "summary.json").read_text())
    del content["noise"], content["routing"]["margins"]
    (folder / "summary.json").write_text(json.dumps(content))
    run = read_run(folder, "one")
    assert run.summary.noise is None
    assert run.summary.routing.margins == {}


def test_an_event_without_a_stage_belongs_to_the_one_measured_next(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "one"), "one")
    assert [(e.name, e.stage) for e in run.events if e.name in ("refusal", "no-result")] == [
        ("no-result", 2),
        ("refusal", 3),
    ]


def test_the_timeline_by_hand(tmp_path: Path) -> None:
    deeds = timeline(read_run(write_run(tmp_path / "one"), "one"))
    assert {name: [deed.state for deed in row] for name, row in deeds.items()} == {
        "north": ["waited", "trained", "waited", "waited"],
        "south": ["waited", "waited", "trained", "waited"],
        "west": ["away", "away", "trained", "waited"],
        "heart": ["waited", "waited", "waited", "trained"],
        "visitor": ["waited", "waited", "failed", "waited"],
    }
    assert deeds["heart"][3].notes == ("router: router not shared",)
    assert deeds["west"][0].notes == ("has not joined yet",)


def test_a_torn_last_event_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one")
    whole = read_run(folder, "one").events
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"time": 1.0, "ev')
    assert read_run(folder, "one").events == whole


def test_an_altered_audit_log_is_said_not_believed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one")
    log = folder / "audit.jsonl"
    log.write_text(log.read_text().replace('"bytes": 5000', '"bytes": 1', 1))
    run = read_run(folder, "one")
    assert run.arrivals == ()
    assert "altered" in (run.audit_fault or "")


def test_the_place_of_a_checkpoint_is_not_passed_on(tmp_path: Path) -> None:
    scenario = scenario_of(backbone={"name": "vit_b", "checkpoint": "/home/somebody/sam.pth"})
    run = read_run(write_run(tmp_path / "one", scenario), "one")
    assert "somebody" not in json.dumps(run.scenario)


def narrowed(path: Path) -> None:
    """A matrix that lacks a column."""
    summary = json.loads(path.read_text())
    summary["matrix"]["iou"] = [row[:2] for row in summary["matrix"]["iou"]]
    path.write_text(json.dumps(summary))


@pytest.mark.parametrize("damage", ["missing", "[1]", '["a"]', "{"])
def test_events_that_end_too_early_are_said_and_claim_no_undisturbed_run(tmp_path: Path, damage: str) -> None:
    folder = write_run(tmp_path / "one")
    lines = (folder / "events.jsonl").read_text().splitlines()
    whole = course(read_run(folder, "one"))
    assert not any("events.jsonl" in getattr(block, "text", "") for block in whole.blocks)
    if damage == "missing":
        (folder / "events.jsonl").unlink()
    else:
        (folder / "events.jsonl").write_text("\n".join([*lines[:2], damage, *lines[3:]]) + "\n")
    said = [block.text for block in course(read_run(folder, "one")).blocks if isinstance(block, Notice)]
    assert said[0].startswith("events.jsonl is missing, or damaged before the end")
    assert not any("No refusals" in text for text in said)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "no such folder"),
        (lambda folder: [f.unlink() for f in folder.iterdir()], "neither summary.json nor a study"),
        (lambda folder: (folder / "summary.json").unlink(), "without summary.json.*casam run --resume"),
        (lambda folder: (folder / "summary.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "summary.json").write_text("[]"), "expected schema 1"),
        (lambda folder: (folder / "summary.json").write_text('{"schema": 2}'), "expected schema 1"),
        (lambda folder: (folder / "summary.json").write_text('{"schema": 1}'), "missing"),
        (lambda folder: (folder / "scenario.json").write_text("{}"), "expected a resolved scenario"),
        (
            lambda folder: (folder / "scenario.json").write_text('{"institutions": [{"nme": "x"}]}'),
            "expected a resolved scenario",
        ),
        (lambda folder: narrowed(folder / "summary.json"), "a column for each task"),
    ],
)
def test_what_is_no_finished_run_is_refused_by_what_it_is(tmp_path: Path, spoil, words: str) -> None:
    folder = write_run(tmp_path / "one")
    spoil(folder)
    with pytest.raises(RunError, match=words) as refusal:
        read_run(folder, "one")
    assert "\n" not in str(refusal.value)


def test_a_failed_run_is_refused_with_its_reason(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one")
    (folder / "summary.json").unlink()
    write_events(folder, [*events_of([]), {"event": "failed", "reason": "no answer from north"}])
    with pytest.raises(RunError, match="failed: no answer from north"):
        read_run(folder, "one")


def test_a_study_is_its_finished_runs_and_says_which_are_not(tmp_path: Path) -> None:
    for name in ("b-0", "a-0"):
        write_run(tmp_path / "study" / "runs" / name)
    (tmp_path / "study" / "runs" / "c-0").mkdir()
    found = read_all([tmp_path / "study"])
    assert [run.label for run in found.runs] == ["a-0", "b-0"]
    assert found.skipped == ("c-0",)
    assert found.answers == ()


def test_a_study_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study" / "runs" / "c-0").mkdir(parents=True)
    with pytest.raises(RunError, match="finished runs"):
        read_all([tmp_path / "study"])


def test_runs_are_called_by_as_much_of_their_path_as_tells_them_apart(tmp_path: Path) -> None:
    assert labels([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]
    with pytest.raises(RunError, match="twice"):
        labels([tmp_path, tmp_path])
