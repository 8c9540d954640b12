"""Medians of sides that take turns."""

from __future__ import annotations

import pytest

from casam_bench import timing


def test_sides_take_turns_and_the_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    order: list[str] = []
    durations = {"ours": iter([100.0, 1.0, 9.0, 2.0]), "theirs": iter([100.0, 4.0, 4.0, 4.0])}

    def side(name: str) -> None:
        order.append(name)
        now[0] += next(durations[name])

    monkeypatch.setattr(timing, "clock", lambda threads: lambda: now[0])
    sides = {name: lambda name=name: side(name) for name in durations}
    # The first call of each only warms up.
    assert timing.interleaved(sides, repeats=3, threads=1) == {"ours": 2.0, "theirs": 4.0}
    assert order == ["ours", "theirs"] * 4
