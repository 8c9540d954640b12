"""The page's tables follow from the CSV file beside it, and no method is shown with fewer than five seeds."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from casam_bench.quality.layer_page import DOCS, EVIDENCE
from casam_core.errors import RunInputError
from scenarios.export.paper_page import CSV, MARK, picture, tidy
from scenarios.export.paper_tables import (
    COMPARED,
    COSTS,
    QUALITY,
    ROUTING,
    complete,
    of_runs,
    part_of_page,
)


def rows_of(methods: dict[str, list[float]], order: str = "mixed") -> pd.DataFrame:
    """A run per method and seed: each figure is the method's value of that seed."""
    return pd.DataFrame(
        [
            {
                "method": method,
                "order": order,
                "seed": seed,
                **dict.fromkeys((*QUALITY, *ROUTING, *COSTS), value),
            }
            for method, values in methods.items()
            for seed, value in enumerate(values)
        ]
    )


OURS = [0.70, 0.72, 0.74, 0.76, 0.78]


def line_of(text: str, method: str, number: int = 0) -> str:
    """The row of a method in one of the tables."""
    return [line for line in text.splitlines() if line.startswith(f"| {method} |")][number]


def test_means_and_paired_differences_by_hand() -> None:
    worse = [value - lost for value, lost in zip(OURS, (0.09, 0.10, 0.11, 0.10, 0.10), strict=True)]
    text = of_runs(rows_of({"casam": OURS, "worse": worse, "equal": OURS}))
    # sd of 0.70 ... 0.78 is 0.0316, t of 4 degrees of freedom 2.776: 2.776 * 0.0316 / sqrt(5) = 0.0393
    assert "| 74.0 ± 3.9 |" in line_of(text, "casam")
    # sd of the losses 0.00707: 0.0088; t = -0.1 / 0.00316 = -31.6, p = 6e-6, ten tests: 6e-5
    assert line_of(text, "worse", 1).count("**-10.0 ± 0.9 (p < 0.001)**") == len(COMPARED)
    assert "+0.0 ± 0.0 (p 1.000)" in line_of(text, "equal", 1)
    assert "**" not in line_of(text, "equal", 1)


def test_a_method_with_four_seeds_is_not_shown() -> None:
    rows = rows_of({"casam": OURS, "short": OURS[:4]})
    assert set(complete(rows)["method"]) == {"casam"}
    assert "short" not in part_of_page(rows)


def test_orders_of_a_seed_are_one_value() -> None:
    rows = pd.concat([rows_of({"casam": OURS}), rows_of({"casam": OURS, "late": OURS}, "backwards")])
    together = part_of_page(rows).split("### All 2 orders together")[1]
    assert "10 runs, 5 seeds" in together
    assert "74.0 ± 3.9" in line_of(together, "casam")  # not narrower than one order's
    assert "late" not in together


def test_the_page_shows_what_its_csv_file_says() -> None:
    page, rows = (DOCS / "results.md").read_text(encoding="utf-8"), pd.read_csv(CSV)
    found = re.search(f"(?<=<!-- {MARK} -->\n).*?(?=\n<!-- end of {MARK} -->)", page, re.DOTALL)
    assert found is not None
    assert found.group() == part_of_page(rows)
    assert complete(rows).groupby(["method", "order"])["seed"].nunique().min() >= EVIDENCE
    assert CSV.with_suffix(".svg").read_text(encoding="utf-8") == picture(rows)


def test_a_folder_of_another_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunInputError, match="no results"):
        tidy(tmp_path)
    (tmp_path / "results.csv").write_text("policy,seed,status\nopen,0,finished\n")
    with pytest.raises(RunInputError, match="found no column method, order"):
        tidy(tmp_path)
