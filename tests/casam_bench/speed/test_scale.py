"""The arithmetic around the simulation; the simulation itself is `casam bench scale`."""

from __future__ import annotations

from pathlib import Path

from casam_bench.speed import scale
from casam_bench.speed.memory import peak_of
from casam_bench.speed.scale import held_together
from client.node.worktime import Work, note
from server.run.summary_schema import read_summary
from tests.casam_bench.surroundings import surroundings


def test_everybody_is_asked_in_every_evaluation(tmp_path: Path) -> None:
    scenario = scale.scenario_of(4)
    assert [site.unseen for site in scenario.institutions] == [False, False, True, True]
    surroundings(tmp_path).engines.inprocess(scenario, tmp_path / "run")
    summary = read_summary(tmp_path / "run")
    assert summary.bytes.down.keys() == {site.name for site in scenario.institutions}
    assert scale.evaluation_seconds(summary) > 0


def test_what_institutions_computed_in_the_last_evaluation_is_added_up(tmp_path: Path) -> None:
    for name, seconds in {"a": 1.0, "b": 2.0}.items():
        private = tmp_path / "institutions" / name / "private"
        private.mkdir(parents=True)
        note(Work("", "train.align", 2, "task-1", 9.0, 9.0), private)
        note(Work("", "evaluate.stage", 1, "", 9.0, 9.0), private)
        note(Work("", "evaluate.stage", 2, "", 9.0, seconds), private)
    assert scale.computed(tmp_path) == 3.0


def test_memory_of_this_process_is_seen() -> None:
    before = held_together()
    held = bytearray(64 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    assert held_together() - before > 32 << 20


def test_the_peak_is_kept() -> None:
    values = iter([5, 9, 7])
    with peak_of(lambda: next(values, 7), 0.01) as peak:
        while next(iter(peak)) < 9:
            pass
    assert peak[0] == 9
