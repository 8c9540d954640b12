"""An institution sees how long each request took."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from casam_core.protocol.payload import Job
from client.node.worktime import Stopwatch, Work, note, noted


def test_lines_come_back_as_they_were_noted(tmp_path: Path) -> None:
    assert noted(tmp_path) == []
    lines = [
        Work("2026-01-01T00:00:00+00:00", "train.align", 1, "polyp", 2.5, 2.0, 0.0, []),
        Work("", "k", 2, "", 0, 0, 12.5, ["x"]),
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


def test_a_line_names_the_peak_of_device_memory_and_what_was_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {0: 3 << 20, 1: 1 << 20}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda number: held.update({number: 1 << 20}))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", held.__getitem__)
    watch = Stopwatch()
    held[0] = 2 << 20
    note(watch.work("train.align", Job("north", 3, "polyp"), ["images encoded together"]), tmp_path)
    (line,) = noted(tmp_path)
    assert (line.device_mib, line.halved) == (3.0, ["images encoded together"])
