"""Tables of ways of learning: what counts, by hand, and that the page shows what its CSV file says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from casam_bench.bench import csv_of, read_csv
from casam_bench.quality.layer_page import DOCS, EVIDENCE, filled, of_shared_places, picture, tables
from casam_bench.quality.layer_tables import (
    Row,
    figures_of,
    image_iou,
    interval,
    rows_of,
    standings,
)


def cell(way: str, seed: int, val: float, test: float) -> dict[str, Any]:
    """One image of one mask in each part; frozen SAM has 0.6 on validation and 0.7 on test images."""
    frozen = {"val": [[[0.0, 0.6]]], "test": [[[0.0, 0.7]]], "jittered": [[[0.0, 0.65]]]}
    found = {"steps": 5, "val": [[[0.0, val]]], "test": [[[0.0, test]]], "jittered": [[[0.0, test - 0.1]]]}
    return {"way": way, "task": "t", "seed": seed, "bytes": 8, "frozen": frozen, "at": {"3": found}}


CELLS = [cell("a", 0, 0.8, 0.8), cell("a", 1, 0.8, 0.6), cell("b", 0, 0.8, 0.9), cell("b", 1, 0.8, 0.7)]


MANY = [
    cell(way, seed, 0.8, better + 0.1 * (seed % 2))
    for way, better in (("a", 0.6), ("b", 0.7))
    for seed in range(5)
]
"""Enough seeds for the page; b is 0.1 better with every seed."""


def test_what_the_fallback_does_not_keep_counts_as_frozen_sam() -> None:
    (bad,), (good,) = (
        rows_of([cell("a", 0, 0.5, 0.9)], "phantom"),
        rows_of([cell("a", 0, 0.8, 0.9)], "phantom"),
    )
    assert (bad.kept, bad.iou, bad.jittered) == (0, 0.7, 0.65)
    assert (good.kept, good.iou, good.jittered) == (1, 0.9, 0.8)


def test_differences_are_paired_by_task_and_seed() -> None:
    first, other = standings(rows_of(CELLS, "phantom"), "a")
    assert (other.iou, other.above) == pytest.approx((0.8, 0.1))
    assert other.half == pytest.approx(0, abs=1e-9)
    assert (first.worst, first.unsafe) == pytest.approx((0.0, 0.0))  # the mean of both seeds: +0.1 and -0.1
    figures = figures_of(rows_of(CELLS, "phantom"), "a", "phantom")
    assert figures["points_phantom_b_3s"] == pytest.approx(10)


def test_an_interval_needs_two_values_and_an_image_its_instances() -> None:
    assert np.isnan(interval([0.1])[1])
    # Two values 1 apart: standard error 0.5, Student's t with one degree of freedom 12.71.
    assert interval([0.0, 1.0]) == pytest.approx((0.5, 6.353), abs=1e-3)
    assert image_iou([[[0.0, 0.2], [0.0, 0.4]], []]).tolist() == pytest.approx([0.3])


def test_rows_survive_their_file(tmp_path: Path) -> None:
    rows = rows_of(CELLS, "phantom")
    (tmp_path / "rows.csv").write_text(csv_of(Row, rows))
    assert read_csv(Row, tmp_path / "rows.csv") == rows


def test_tables_and_picture_show_every_way() -> None:
    rows: list[Row] = rows_of(MANY, "phantom")
    page = tables(rows)
    assert "**phantom tasks: 1, seeds: 5**" in page
    assert "| b | 8 | 3 | 5 | 5 | 0.740 | +10.0 ± 0.0 | +4.0 | +4.0 | 100 % | 0.640 |" in page
    assert "| t | 0.700 | 0.640 | 0.740 |" in page
    assert picture(rows).startswith("<svg")


def test_every_generated_table_of_the_results_has_the_seeds_that_make_it_evidence() -> None:
    """ "seeds: 5", "50 runs, 5 seeds"."""
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    told = [int(a or b) for a, b in re.findall(r"seeds: (\d+)\*|runs, (\d+) seeds", page)]
    assert len(told) > 8
    assert min(told) >= EVIDENCE


def test_a_way_with_four_seeds_is_not_on_the_page() -> None:
    few = [cell("c", seed, 0.8, 0.9) for seed in range(4)]
    assert tables(rows_of([*MANY, *few], "phantom")) == tables(rows_of(MANY, "phantom"))
    assert tables(rows_of(few, "phantom")) == ""


def test_the_picture_compares_ways_on_the_same_pairs() -> None:
    rows = rows_of([*CELLS, cell("c", 1, 0.8, 0.9)], "phantom")
    assert {(row.way, row.seed) for row in of_shared_places(rows)} == {("a", 1), ("b", 1), ("c", 1)}


def test_a_part_of_the_page_is_replaced_between_its_marks() -> None:
    page = "<!-- a -->\nold\n<!-- end of a -->\n<!-- b -->\nkept\n<!-- end of b -->\n"
    assert filled(page, "a", "new") == page.replace("old", "new")
    with pytest.raises(ValueError, match="expected the marks of c once on the page, found them 0 times"):
        filled(page, "c", "lost")
