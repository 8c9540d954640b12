"""The benchmark of incremental evaluation, on a stream short enough to count by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from casam_bench.speed import evaluate
from tests.casam_bench.surroundings import surroundings


def test_a_stage_costs_what_changed_and_the_results_are_the_same_bits(tmp_path: Path) -> None:
    figures = evaluate.measure(surroundings(tmp_path), tmp_path, (2, 4))
    assert figures["identical"] == 1.0
    # Anew: 1 + 2 + 3 + 4 passes. Ours: one for each task's image, as no colour is taken for another.
    assert figures["passes_4"] == 4
    assert figures["passes_ratio_4"] == pytest.approx(10 / 4)
    assert figures["passes_ratio_2"] == pytest.approx(3 / 2)
    assert figures["with_frozen_ratio_4"] == pytest.approx(14 / 8)


def test_a_difference_between_the_two_ways_would_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget = evaluate.Side.forget

    def with_other_prompts(side: evaluate.Side, frozen: Path) -> None:
        forget(side, frozen)
        side.evaluator.spec = side.evaluator.spec.model_copy(update={"prompts": "point"})

    monkeypatch.setattr(evaluate.Side, "forget", with_other_prompts)
    assert evaluate.measure(surroundings(tmp_path), tmp_path, (2,))["identical"] == 0.0
