"""`casam compare`: a row per method and seed, resumable, never a row without a finished run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from casam_core.config.scenario import Scenario
from casam_core.errors import RunError, ScenarioError
from casam_core.methods import METHODS
from scenarios.engines.inprocess import run_inprocess
from scenarios.study.compare import COLUMNS, claim, compare, paired_table, parse_grid, spread
from tests.conftest import tiny_table


def summary(method: str, seed: int) -> dict[str, Any]:
    return {
        "method": method, "seed": seed, "last_iou": 0.8, "avg_iou": 0.7, "ff_iou": None, "bwt_iou": None,
        "trained_parameters": 4352, "unseen": {"iou": [{"x": 0.1}, {"x": 0.5, "y": 0.7}]},
        "routing": {"accuracy": None}, "timing": {"seconds": 1.5},
    }  # fmt: skip


class FakeRuns:
    """Stands in for runs; remembers which were asked for and fails where told."""

    def __init__(self, broken: str = "") -> None:
        self.asked: list[tuple[str, int]] = []
        self.broken = broken
        self.overrides: list[Sequence[str]] = []

    def __call__(self, method: str, seed: int, folder: Path, overrides: Sequence[str]) -> None:
        assert not folder.exists()
        folder.mkdir(parents=True)
        if method == self.broken:
            raise RunError("interrupted")
        self.asked.append((method, seed))
        self.overrides.append(overrides)
        (folder / "summary.json").write_text(json.dumps(summary(method, seed)))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_has_every_figure_and_leaves_out_what_does_not_apply(tmp_path: Path) -> None:
    compare(parse_grid("frozen", "3"), tmp_path, FakeRuns(), print, {})
    (row,) = rows(tmp_path)
    assert tuple(row) == COLUMNS
    assert row["unseen_iou"] == "0.6"  # (0.5 + 0.7) / 2, at the last stage
    assert (row["method"], row["seed"], row["ff_iou"], row["routing_accuracy"]) == ("frozen", "3", "", "")


def test_an_interrupted_comparison_goes_on_where_it_stopped(tmp_path: Path) -> None:
    grid = parse_grid("casam,ewc,lwf", "0,1")
    with pytest.raises(RunError):
        compare(grid, tmp_path, FakeRuns(broken="ewc"), print, {})
    assert [row["method"] for row in rows(tmp_path)] == ["casam"]
    again = FakeRuns()
    found = compare(grid, tmp_path, again, print, {})
    assert again.asked == [("ewc", 0), ("lwf", 0), ("casam", 1), ("ewc", 1), ("lwf", 1)]
    assert len(found) == 6


def test_another_scenario_does_not_join_a_comparison(tmp_path: Path) -> None:
    claim(tmp_path, "abc")
    claim(tmp_path, "abc")
    with pytest.raises(RunError, match="another scenario"):
        claim(tmp_path, "def")


def test_a_tuned_learning_rate_is_used_and_stands_in_its_row(tmp_path: Path) -> None:
    runs = FakeRuns()
    compare(parse_grid("casam,frozen", "0"), tmp_path, runs, print, {"casam": 3e-4})
    assert runs.overrides == [("alignment.learning_rate=0.0003",), ()]
    assert [row["learning_rate"] for row in rows(tmp_path)] == ["0.0003", ""]


def test_all_means_every_method() -> None:
    assert parse_grid("all", "0").methods == tuple(METHODS)


@pytest.mark.parametrize(("methods", "seeds"), [("casam,none", "0"), ("casam", "one")])
def test_a_wrong_grid_is_refused(methods: str, seeds: str) -> None:
    with pytest.raises(ScenarioError, match="expected"):
        parse_grid(methods, seeds)


def test_mean_and_standard_deviation_by_hand() -> None:
    # mean (0.1 + 0.3) / 2 = 0.2; sample deviation sqrt((0.01 + 0.01) / 1) = 0.1414
    assert spread(["0.1", "0.3", ""], "last_iou") == "0.200 ± 0.141"
    assert spread(["", ""], "ff_iou") == "-"
    assert spread(["4352", "4352"], "trained_parameters") == "4352"


def test_two_methods_for_real(tmp_path: Path) -> None:
    def run(method: str, seed: int, folder: Path, overrides: Sequence[str]) -> None:
        run_inprocess(Scenario.model_validate(tiny_table(method=method, seed=seed)), folder, None)

    found = compare(parse_grid("frozen,casam", "0"), tmp_path, run, print, {})
    assert [row["trained_parameters"] == "0" for row in found] == [True, False]


def rendered(table: Table) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_methods_are_compared_seed_by_seed_by_hand() -> None:
    # Differences -0.1 and -0.3: mean -0.2, standard error 0.1; Student's factor of one degree is 12.706.
    found = {("ours", "0"): 0.8, ("ours", "1"): 0.9, ("theirs", "0"): 0.7, ("theirs", "1"): 0.6}
    rows = [{"method": method, "seed": seed, "last_iou": str(iou)} for (method, seed), iou in found.items()]
    table = paired_table(rows)
    assert table is not None
    text = rendered(table)
    assert "minus that of ours" in text
    assert "-0.200" in text
    assert "-1.471 .. +1.071" in text


def test_one_seed_or_one_method_is_no_comparison() -> None:
    one = [{"method": m, "seed": "0", "last_iou": "0.5"} for m in ("ours", "theirs")]
    assert paired_table(one) is None
    assert paired_table(one[:1]) is None
    assert paired_table([]) is None
