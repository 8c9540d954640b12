"""An institution sees how long each request took."""

from __future__ import annotations

import time
from pathlib import Path

from casam_core.protocol.payload import Job
from client.node.worktime import Stopwatch, Work, note, noted


def test_lines_come_back_as_they_were_noted(tmp_path: Path) -> None:
    assert noted(tmp_path) == []
    lines = [
        Work("2026-01-01T00:00:00+00:00", "train.align", 1, "polyp", 2.5, 2.0),
        Work("", "k", 2, "", 0, 0),
    ]
    for line in lines:
        note(line, tmp_path)
    assert noted(tmp_path) == lines


def test_a_folder_that_is_not_there_costs_no_answer(tmp_path: Path) -> None:
    note(Work("", "k", 1, "", 0, 0), tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_waiting_is_no_processor_time() -> None:
    watch = Stopwatch()
    time.sleep(0.2)
    work = watch.work("evaluate.stage", Job("north", 3, "polyp"))
    assert (work.kind, work.stage, work.task) == ("evaluate.stage", 3, "polyp")
    assert work.seconds >= 0.2
    assert work.processor_seconds < 0.1
