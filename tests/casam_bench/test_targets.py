"""The table of docs/performance.md: what was wanted, what was found, and what nobody measured."""

from __future__ import annotations

from casam_bench import BENCHMARKS
from casam_bench.targets import TARGETS, Target, rows


def test_a_target_is_met_or_missed() -> None:
    faster = Target("encode", "ratio", "", "higher", 2.5)
    assert (faster.met(2.5), faster.met(2.4), faster.wish) == (True, False, "≥ 2.5")
    smaller = Target("route", "ms", "", "lower", 5)
    assert (smaller.met(5.0), smaller.met(5.1)) == (True, False)
    assert Target("machine", "cores", "").met(2.0) is None


def test_every_target_is_a_row_and_says_how_it_stands() -> None:
    table = list(rows({"route": {"ms_1000": 6.0, "wrong": 0.0}, "wire": {"entry_bytes": 87968.0}}))
    assert len(table) == len(TARGETS)
    by_figure = {line[1].split("`")[1]: line for line in table}
    assert by_figure["ms_1000"][2:] == ("6", "≤ 0.5", "**missed**")
    assert by_figure["wrong"][2:] == ("0", "≤ 0", "met")
    assert by_figure["entry_bytes"][2:] == ("87,968", "", "")
    assert "not measured" in by_figure["passes_ratio_9"]


def test_targets_are_of_benchmarks_that_exist() -> None:
    assert {target.benchmark for target in TARGETS} <= BENCHMARKS.keys()
