"""`casam bench`: lists, refuses, writes what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import benchmarks
from benchmarks.bench import Benchmark, Figures, Surroundings
from casam_core.errors import ScenarioError
from scenarios.cli import app


def test_without_a_name_the_benchmarks_are_listed() -> None:
    output = CliRunner().invoke(app, ["bench"]).output
    for name, benchmark in benchmarks.BENCHMARKS.items():
        assert name in output
        assert benchmark.description in output


def test_an_unknown_benchmark_is_refused_with_the_known_ones() -> None:
    result = CliRunner().invoke(app, ["bench", "speed"])
    assert isinstance(result.exception, ScenarioError)
    assert str(result.exception) == (
        f"benchmark: expected one of {', '.join(benchmarks.BENCHMARKS)}, found 'speed'"
    )


def test_figures_are_written_by_benchmark_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(around: Surroundings) -> Figures:
        around.say(f"home {around.home.name}")
        return {"answer": 42.0}

    monkeypatch.setattr(benchmarks, "BENCHMARKS", {"one": Benchmark("", run), "two": Benchmark("", run)})
    arguments = ["bench", "--all", "--json", str(tmp_path / "out.json"), "--home", str(tmp_path / "here")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "home here" in result.output
    assert json.loads((tmp_path / "out.json").read_text()) == {
        "one": {"answer": 42.0},
        "two": {"answer": 42.0},
    }
