"""The table of finders: means over seeds, intervals, and columns that only some seeds have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from casam_bench.bench import csv_of, read_csv
from casam_bench.quality.finder_quality import Row, ap50, tables
from casam_core.metrics.detection import Matched

NAN = float("nan")


def row(task: str, seed: int, ap50: float, iou_found: float, ap50_grid: float = NAN) -> Row:
    """One row; what is not named is alike in all."""
    return Row(
        kind="real",
        task=task,
        seed=seed,
        instances=20,
        ap50=ap50,
        recall=0.5,
        precision=0.75,
        iou_found=iou_found,
        iou_boxes=0.8,
        ap50_grid=ap50_grid,
        ap50_on_grid=ap50 if ap50_grid == ap50_grid else NAN,
        seconds=0.5,
        seconds_grid=30.0 if ap50_grid == ap50_grid else NAN,
        share=0.125,
        silent=0.625,
    )


ROWS = [row("nuclei", 0, 0.6, 0.7, 0.1), row("cells", 0, 0.2, 0.6, 0.0)]
ROWS += [row("nuclei", 1, 0.7, 0.8), row("cells", 1, 0.3, NAN)]


def test_a_line_is_the_mean_of_a_tasks_seeds_with_its_interval() -> None:
    line = next(line for line in tables(ROWS).splitlines() if line.startswith("| nuclei"))
    half = 12.706 * 0.1 / 2  # Student's with one degree of freedom
    assert line.split(" | ")[1] == f"0.65 ± {half:.2f}"
    assert line.split(" | ")[5] == f"5.0 ± {100 * half:.1f}"  # 0.8 less 0.7, and less 0.8


def test_the_interval_of_the_mean_is_over_seeds_and_not_over_tasks() -> None:
    line = tables(ROWS).splitlines()[-1]
    assert line.split(" | ")[:2] == ["| **mean**", f"0.45 ± {12.706 * 0.1 / 2:.2f}"]  # 0.4 and 0.5


def test_a_column_that_one_seed_has_is_the_mean_of_that_seed() -> None:
    lines = tables(ROWS).splitlines()
    assert [line.split(" | ")[7:9] for line in lines[-3:]] == [["0.10", "30"], ["0.00", "30"], ["0.05", "30"]]


def test_a_seed_without_a_hit_has_no_distance_to_true_boxes() -> None:
    line = next(line for line in tables(ROWS).splitlines() if line.startswith("| cells"))
    assert line.split(" | ")[5] == "20.0 ± nan"


def test_rows_come_back_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "finder.csv"
    path.write_text(csv_of(Row, ROWS))
    again = read_csv(Row, path)
    assert [(r.task, r.seed, r.ap50) for r in again] == [(r.task, r.seed, r.ap50) for r in ROWS]
    assert again[0].below == pytest.approx(0.1)


def test_average_precision_over_the_images_together() -> None:
    # By score: hit, miss, hit of 4 instances: precision 1 and 2/3 at recall 1/4 and 2/4.
    first = Matched(np.array([0.9, 0.2]), np.array([True, True]), np.array([0.8, 0.6, 0]))
    second = Matched(np.array([0.5]), np.array([False]), np.zeros(1))
    assert ap50([first, second]) == pytest.approx((1 + 2 / 3) / 4)
    nothing = Matched(np.zeros(0), np.zeros(0, bool), np.zeros(2))
    assert ap50([nothing]) == 0
    assert np.isnan(ap50([Matched(np.ones(1), np.zeros(1, bool), np.zeros(0))]))
