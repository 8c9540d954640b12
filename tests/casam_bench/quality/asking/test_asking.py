"""Answers beside full runs: what lies inside is counted, and what has no answer is counted apart."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from casam_bench.bench import csv_of, read_csv
from casam_bench.quality.asking import ask_cells
from casam_bench.quality.asking.ask_cells import rows_of
from casam_bench.quality.asking.ask_page import curve, needed_level, picture
from casam_bench.quality.asking.ask_tables import Row, figures_of, table_of
from casam_bench.quality.asking.changes import CHANGES, REAL, Change, scenario_of
from casam_core.config.scenario import Scenario
from tests.casam_bench.surroundings import surroundings
from tests.conftest import tiny_table

CHANGE = Change("quickstart", "router, epsilon 3", ("seed=1",))


def told(name: str, predicted: float | None, half: float, now: float | None = 0.5) -> dict[str, Any]:
    """One row of an answer."""
    span = {} if predicted is None else {"noise_low": predicted - half, "noise_high": predicted + half}
    wide = {} if predicted is None else {"low": predicted - half - 0.1, "high": predicted + half + 0.1}
    return {"institution": name, "task": "polyp", "now": now, "predicted": predicted, **span, **wide}


ANSWER = {
    "rows": [told("a", 0.5, 0.1), told("b", 0.4, 0.0), told("c", None, 0.0)],
    "mean": told("all", 0.45, 0.05) | {"task": "mean"},
    "draws": 5,
    "seconds": 2.0,
    "wall": 5.0,
    "worked": 4.0,
}


def rows(first: float, second: float, **more: float) -> list[Row]:
    """The rows of ANSWER beside a full run with these figures of a and b."""
    figures = {"a": {"polyp": first}, "b": {"polyp": second}, **{n: {"polyp": v} for n, v in more.items()}}
    return list(rows_of(CHANGE, ANSWER, {"figures": figures}, 0))


def test_a_figure_is_inside_its_interval_or_not() -> None:
    assert [row.inside for row in rows(0.59, 0.4)] == [True, True, True, True]
    assert [row.inside for row in rows(0.61, 0.4002)] == [False, False, True, False]
    assert [row.inside_printed for row in rows(0.61, 0.4002)] == [True, True, True, True]
    assert [row.inside for row in rows(0.5, 0.4, c=0.3)] == [True, True, False, True]  # c should be silent
    assert rows(0.6, 0.4)[-1].full == pytest.approx(0.5)  # the mean of those that leave now and then


def test_a_figure_that_leaves_against_the_prediction_is_outside() -> None:
    full = {"figures": {"b": {"polyp": 0.4}}}
    first = next(rows_of(CHANGE, ANSWER, full, 0))
    assert math.isnan(first.full)
    assert not first.inside


def test_questions_without_an_answer_are_counted_apart(tmp_path: Path) -> None:
    none = {"none": "no answer within 30 s: x; or run: casam study", "wall": 31.0, "worked": 30.0}
    other = replace(CHANGE, name="everything")
    found = [*rows(0.59, 0.5), *rows_of(other, none, {"ended": "nobody trains"}, 0)]
    figures = figures_of(found)
    assert (figures["answered"], figures["without"], figures["median_seconds"]) == (1, 1, 2.0)
    assert figures["inside, phantom: figures that noise moves"] == 1.0
    assert figures["inside, phantom: other figures"] == 0.5
    text = table_of(found)
    assert "| phantom: figures that noise moves | 1 | 1 | 100% | 100% |" in text
    assert text.endswith("quickstart, everything: no answer within 30 s: x.")
    (tmp_path / "ask.csv").write_text(csv_of(Row, found))
    assert table_of(read_csv(Row, tmp_path / "ask.csv")) == text


def test_the_curve_says_which_confidence_would_have_been_enough() -> None:
    edge, middle = rows(0.6, 0.4)[0], rows(0.5, 0.4)[0]
    assert needed_level(edge) == pytest.approx(0.9)
    assert needed_level(middle) == pytest.approx(0)
    assert dict(curve([edge, middle]))[0.5] == 0.5
    assert dict(curve([edge, middle]))[0.95] == 1.0
    assert picture([edge, middle]).startswith("<svg")


def test_there_are_forty_questions_and_each_has_a_scenario() -> None:
    assert len({change.slug for change in CHANGES}) == len(CHANGES) == 40
    assert sum(change.base == REAL for change in CHANGES) == 8
    for base in dict.fromkeys(change.base for change in CHANGES):
        names = {site.name for site in scenario_of(base).institutions} | {"*"}
        keys = [s.split(".") for change in CHANGES if change.base == base for s in change.settings]
        assert {key[1] for key in keys if key[0] == "institutions"} <= names


def test_cells_are_made_once_and_an_end_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real answer and a real full run on the tiny backbone."""
    never = Change("tiny", "no router", ('institutions.west.policy.router.share="never"',))
    impossible = Change("tiny", "no stage", ("institutions.west.policy.joins_at=-1",))
    monkeypatch.setattr(ask_cells, "CHANGES", (never, impossible))
    monkeypatch.setattr(ask_cells, "scenario_of", lambda base: Scenario.model_validate(tiny_table()))
    figures = ask_cells.run(surroundings(tmp_path, smoke=False))
    assert figures["inside, phantom: other figures"] == 1.0
    assert (figures["answered"], figures["without"]) == (1, 1)
    found = read_csv(Row, tmp_path / "ask" / "ask.csv")
    assert "joins_at" in found[-1].said
    monkeypatch.setattr(ask_cells.Bench, "answered", lambda self, change: pytest.fail("asked again"))
    assert ask_cells.run(surroundings(tmp_path, smoke=False)) == figures
