"""`casam bench disasters`: seeds are played once, in several processes, and noted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import casam_bench.speed.disaster_runs
from casam_bench.bench import Surroundings
from casam_bench.speed.disaster_runs import noted, play, run
from casam_core.errors import RunError
from scenarios.commands.bench_command import CasamEngines


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    silent: Callable[[Any], None] = lambda line: None  # noqa: E731
    return Surroundings(tmp_path, 8, 1, silent, silent, CasamEngines(), parts=tmp_path / "parts", seeds=2)


@pytest.mark.slow
def test_seeds_are_played_once_and_a_broken_law_is_counted(around: Surroundings, tmp_path: Path) -> None:
    figures = run(around)
    assert (figures["seeds"], figures["broken"]) == (2, 0)
    assert figures["a_second_and_core"] > 0
    home = tmp_path / "parts" / "disasters"
    before = {file: file.read_bytes() for file in home.glob("seeds-*.jsonl")}
    assert sorted(record["seed"] for record in noted(home)) == [0, 1]
    play(2, home, 1)  # another division into processes: nothing is left to play
    assert {file: file.read_bytes() for file in before} == before
    other = json.loads(next(iter(before.values())).splitlines()[0]) | {"seed": 2, "broken": ["a law"]}
    (home / "seeds-2-of-9.jsonl").write_text(
        json.dumps(other) + "\n" + json.dumps(other | {"seed": 3, "code": "older"}) + "\n"
    )
    assert run(replace(around, seeds=3))["broken"] == 1
    assert sorted(record["seed"] for record in noted(home)) == [0, 1, 2], "of this code only"


def test_it_needs_a_clone(around: Surroundings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(casam_bench.speed.disaster_runs, "ROOT", tmp_path)
    with pytest.raises(RunError, match="run this from a clone"):
        run(around)
