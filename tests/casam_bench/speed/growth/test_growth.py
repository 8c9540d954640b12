"""The cost model and its page; the cells at small sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from casam_bench.bench import csv_of, read_csv
from casam_bench.speed.growth import growth_cells
from casam_bench.speed.growth.growth_model import Point, model_of, models_of
from casam_bench.speed.growth.growth_page import tables
from tests.casam_bench.surroundings import surroundings


def test_a_straight_line_is_found_and_predicts_the_held_out_sizes() -> None:
    points = [Point("tasks", "open_ms", size, 3 + 0.5 * size) for size in (1, 10, 30, 100, 1000, 10_000)]
    model = model_of(points)
    assert model.base == pytest.approx(3)
    assert model.each == pytest.approx(0.5)
    assert model.errors == pytest.approx({30: 0, 10_000: 0}, abs=1e-9)


def test_a_size_that_is_held_out_changes_no_constant_and_is_a_miss() -> None:
    points = [Point("tasks", "open_ms", size, 2.0 * size) for size in (1, 10, 100, 1000)]
    grows = [*points, Point("tasks", "open_ms", 10_000, 40_000.0)]
    assert model_of(grows).each == pytest.approx(model_of(points).each)
    assert model_of(grows).worst == pytest.approx(0.5)


def test_points_survive_their_file(tmp_path: Path) -> None:
    points = [Point("institutions", "run_mib", 9, 0.1), Point("tasks", "score_ms", 10, 2.5)]
    (tmp_path / "growth.csv").write_text(csv_of(Point, points))
    assert read_csv(Point, tmp_path / "growth.csv") == points


def test_the_page_says_what_missed() -> None:
    straight = [Point("tasks", "open_ms", size, 1.0 * size) for size in (1, 10, 30)]
    bent = [Point("tasks", "score_ms", size, 1.0 * size**2) for size in (1, 10, 30)]
    text = tables([*straight, *bent])
    assert [line.split(" | ")[5] for line in text.splitlines()[-2:]] == ["met", "**missed**"]
    assert [model.over for model in models_of([*straight, *bent])] == ["tasks", "tasks"]


def test_a_cell_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cells" / "tasks-3.json"
    monkeypatch.setattr(growth_cells, "in_a_process", lambda measure, folder: {"open_ms": 1.0})
    assert growth_cells.kept(file, lambda folder: {}) == {"open_ms": 1.0}
    monkeypatch.delattr(growth_cells, "in_a_process")
    assert growth_cells.kept(file, lambda folder: {}) == {"open_ms": 1.0}


def test_a_bank_of_copies_is_a_bank(tmp_path: Path) -> None:
    found = growth_cells.cell_of_tasks(3, tmp_path)
    assert found.keys() == {"open_ms", "score_ms", "stage_ms", "task_mib"}
    assert min(found.values()) > 0


@pytest.mark.slow
def test_small_sizes_run_in_processes_of_their_own(tmp_path: Path) -> None:
    figures = growth_cells.run(surroundings(tmp_path))
    assert {"run_seconds_9", "run_mib_30", "score_ms_10", "worst_run_seconds"} <= figures.keys()
