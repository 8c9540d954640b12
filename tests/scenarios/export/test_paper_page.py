"""The page's tables follow from the CSV file beside it, and no method is shown with fewer than five seeds."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from casam_bench.quality.layer_page import DOCS, EVIDENCE
from casam_core.errors import RunInputError
from scenarios.export.paper_page import CSV, MARK, TRIALS_CSV, picture, tidy
from scenarios.export.paper_tables import (
    COMPARED,
    COSTS,
    QUALITY,
    ROUTING,
    complete,
    costs,
    of_runs,
    of_trials,
    part_of_page,
)


def rows_of(methods: dict[str, list[float]], order: str = "mixed", rate: float = 0.1) -> pd.DataFrame:
    """A run per method and seed: each figure is the method's value of that seed."""
    return pd.DataFrame(
        [
            {
                "method": method,
                "order": order,
                "seed": seed,
                "learning_rate": rate,
                **dict.fromkeys((*QUALITY, *ROUTING, *COSTS), value),
            }
            for method, values in methods.items()
            for seed, value in enumerate(values)
        ]
    )


def trials_of(best: dict[str, float]) -> pd.DataFrame:
    """Three trials of each method, the middle one at 0.1; `best` says which rate won."""
    return pd.DataFrame(
        [
            {"method": method, "learning_rate": rate, "last_iou": 0.7 if rate == won else 0.6}
            for method, won in best.items()
            for rate in (0.03, 0.1, 0.3)
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
    trials = trials_of({"casam": 0.1, "short": 0.1})
    assert "| short | 7" not in part_of_page(rows, trials)


def test_orders_of_a_seed_are_one_value() -> None:
    rows = pd.concat([rows_of({"casam": OURS}), rows_of({"casam": OURS}, "backwards")])
    page = part_of_page(rows, trials_of({"casam": 0.1}))
    assert "### 2 orders, at the best of these rates\n\n10 runs, 5 seeds" in page
    assert "| casam | 74.0 ± 3.9 |" in page  # not narrower than one order's
    assert "| method | Last, mixed | Last, backwards | FF, mixed | FF, backwards |" in page


def test_only_runs_at_the_best_rates_are_shown() -> None:
    """A method that ran at its best rate in some orders is shown there; one that never did is named."""
    rows = pd.concat(
        [
            rows_of({"casam": OURS, "late": OURS, "slow": OURS}),
            rows_of({"late": [value + 0.05 for value in OURS]}, rate=0.3),
            rows_of({"casam": OURS, "late": OURS, "slow": OURS}, "backwards"),
        ]
    )
    page = part_of_page(rows, trials_of({"casam": 0.1, "late": 0.3, "slow": 0.3}))
    both, once = page.split("### 2 orders, at the best of these rates")[1].split(
        "### Order mixed, at the best of these rates: late"
    )
    assert "10 runs, 5 seeds" in both
    assert "| late |" not in both
    assert "10 runs, 5 seeds" in once
    assert "79.0 ± 3.9" in line_of(once, "late")
    assert "Without slow, which did not run at its best rate." in once
    assert "| slow |" not in both + once


def test_the_page_shows_what_its_csv_file_says() -> None:
    page, rows = (DOCS / "results.md").read_text(encoding="utf-8"), pd.read_csv(CSV)
    found = re.search(f"(?<=<!-- {MARK} -->\n).*?(?=\n<!-- end of {MARK} -->)", page, re.DOTALL)
    assert found is not None
    assert found.group() == part_of_page(rows, pd.read_csv(TRIALS_CSV))
    assert complete(rows).groupby(["method", "order"])["seed"].nunique().min() >= EVIDENCE
    for figure in QUALITY:  # or a mean is over other runs than its neighbours
        known = rows[figure].notna().groupby(rows["method"]).nunique()
        assert known.max() == 1, figure
    assert CSV.with_suffix(".svg").read_text(encoding="utf-8") == picture(rows)


def test_of_equally_good_rates_the_lower_is_bold() -> None:
    text = of_trials(trials_of({"casam": 0.1, "flat": 9}))
    assert line_of(text, "casam") == "| casam | 0.03: 60.0 | **0.1: 70.0** | 0.3: 60.0 |"
    assert line_of(text, "flat") == "| flat | **0.03: 60.0** | 0.1: 60.0 | 0.3: 60.0 |"


def test_a_folder_of_another_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunInputError, match="no results"):
        tidy(tmp_path)
    (tmp_path / "results.csv").write_text("policy,seed,status\nopen,0,finished\n")
    with pytest.raises(RunInputError, match="found no column method, order"):
        tidy(tmp_path)


def test_a_cost_that_no_run_of_a_method_has_is_a_dash() -> None:
    rows = rows_of({"casam": OURS, "new": OURS})
    rows.loc[rows["method"] == "new", "learning_seconds"] = float("nan")
    assert [line[-1] for line in costs(rows)] == ["1", "-"]
