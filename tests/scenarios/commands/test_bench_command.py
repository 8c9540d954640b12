"""`casam bench`: lists, refuses, writes what it measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import casam_bench
from casam_bench.bench import Benchmark, Figures, Surroundings
from casam_core.errors import RunError, ScenarioError
from scenarios.commands.cli import app


def test_without_a_name_the_benchmarks_are_listed() -> None:
    output = CliRunner().invoke(app, ["bench"]).output
    for name, benchmark in casam_bench.BENCHMARKS.items():
        assert name in output
        assert benchmark.description in output


def test_an_unknown_benchmark_is_refused_with_the_known_ones() -> None:
    result = CliRunner().invoke(app, ["bench", "speed"])
    assert isinstance(result.exception, ScenarioError)
    assert str(result.exception) == (
        f"benchmark: expected one of {', '.join(casam_bench.BENCHMARKS)}, found 'speed'"
    )


def answering(value: float) -> Callable[[Surroundings], Figures]:
    def run(around: Surroundings) -> Figures:
        around.say(f"home {around.home.name}, {'smoke' if around.smoke else 'whole'}")
        return {"answer": value, "ratio": value}

    return run


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four benchmarks that cost nothing; one says that it takes hours."""
    known = {
        "machine": Benchmark("", answering(1.0)),
        "one": Benchmark("", answering(42.0)),
        "two": Benchmark("", answering(7.0)),
        "long": Benchmark("", answering(0.0), by_name=True),
    }
    monkeypatch.setattr(casam_bench, "BENCHMARKS", known)
    monkeypatch.setattr(casam_bench, "SMOKE", ("two",))


def figures(path: Path) -> dict[str, float]:
    return {name: found["answer"] for name, found in json.loads(path.read_text()).items()}


@pytest.mark.usefixtures("answers")
def test_figures_are_written_by_benchmark_and_name(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = ["bench", "--all", "--json", str(out), "--home", str(tmp_path / "here")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "home here, whole" in result.output
    assert figures(out) == {"machine": 1.0, "one": 42.0, "two": 7.0}  # what takes hours is run by name


@pytest.mark.usefixtures("answers")
def test_the_machine_stands_beside_every_figure(tmp_path: Path) -> None:
    CliRunner().invoke(app, ["bench", "long", "--json", str(tmp_path / "out.json")])
    assert figures(tmp_path / "out.json") == {"machine": 1.0, "long": 0.0}


@pytest.mark.usefixtures("answers")
def test_the_smoke_run_is_small_and_compares_with_a_baseline(tmp_path: Path) -> None:
    baseline = tmp_path / "baseline.json"
    result = CliRunner().invoke(app, ["bench", "--smoke", "--new-baseline", str(baseline)])
    assert "smoke" in result.output
    assert json.loads(baseline.read_text()) == {"machine": {"ratio": 1.0}, "two": {"ratio": 7.0}}
    assert CliRunner().invoke(app, ["bench", "--smoke", "--baseline", str(baseline)]).exit_code == 0
    baseline.write_text('{"two": {"ratio": 10.0}}')
    out = tmp_path / "out.json"
    result = CliRunner().invoke(app, ["bench", "--smoke", "--baseline", str(baseline), "--json", str(out)])
    assert isinstance(result.exception, RunError)
    assert str(result.exception) == "slower than stored by more than 20%: two: ratio fell to 7 (stored 10)"
    assert figures(out) == {"machine": 1.0, "two": 7.0}  # what was measured is not lost


@pytest.mark.usefixtures("answers")
def test_what_was_measured_before_a_failure_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(around: Surroundings) -> Figures:
        raise RunError("no")

    monkeypatch.setitem(casam_bench.BENCHMARKS, "two", Benchmark("", fail))
    result = CliRunner().invoke(app, ["bench", "--all", "--json", str(tmp_path / "out.json")])
    assert isinstance(result.exception, RunError)
    assert figures(tmp_path / "out.json") == {"machine": 1.0, "one": 42.0}
