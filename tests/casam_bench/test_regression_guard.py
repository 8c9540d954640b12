"""The regression guard: ratios only, a fifth is allowed, and once is not enough."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from casam_bench import BENCHMARKS, SMOKE
from casam_bench.bench import Figures
from casam_bench.regression import TRIES, guard, losses, ratios_of, read_baseline, write_baseline
from casam_core.errors import RunError
from casam_core.protocol.fingerprint import ROOT

FIGURES = {"encode": {"ratio_vit_b": 2.5678, "seconds": 9.0}, "machine": {"cores": 2.0}}


def never(name: str) -> Figures:
    raise AssertionError(f"{name} was measured again")


def test_only_ratios_are_compared() -> None:
    assert ratios_of({**FIGURES, "evaluate": {"passes_ratio_9": 5.0, "ration": 1.0}}) == {
        "encode": {"ratio_vit_b": 2.5678},
        "evaluate": {"passes_ratio_9": 5.0},
    }


def test_a_baseline_is_written_and_read(tmp_path: Path) -> None:
    write_baseline(tmp_path / "b.json", FIGURES)
    assert read_baseline(tmp_path / "b.json") == {"encode": {"ratio_vit_b": 2.57}}


@pytest.mark.parametrize("content", ["", "[1]", '{"encode": 3}', '{"encode": {"ratio": "fast"}}'])
def test_a_file_that_is_no_baseline_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(RunError, match="--baseline: expected ratios"):
        read_baseline(tmp_path / "b.json")


def test_a_fifth_less_is_allowed_more_is_a_loss() -> None:
    assert losses({"ratio": 10.0}, {"ratio": 8.0}) == []
    assert losses({"ratio": 10.0}, {"ratio": 7.9}) == ["ratio fell to 7.9 (stored 10)"]
    assert losses({"ratio": 10.0}, {}) == ["ratio is missing (stored 10)"]


def test_gains_and_small_losses_pass_at_once() -> None:
    figures = {"encode": {"ratio": 9.0}}
    guard({"encode": {"ratio": 10.0}}, never, figures, lambda line: None)


def test_a_loss_that_does_not_come_again_was_the_machines() -> None:
    figures = {"encode": {"ratio": 5.0}}
    guard({"encode": {"ratio": 10.0}}, lambda name: {"ratio": 9.9}, figures, lambda line: None)
    assert figures == {"encode": {"ratio": 9.9}}


def test_a_loss_that_stays_fails_by_name() -> None:
    calls = []

    def slow(name: str) -> Figures:
        calls.append(name)
        return {"ratio": 5.0}

    figures = {"encode": {"ratio": 5.0}, "route": {"ratio": 3.0}}
    with pytest.raises(RunError, match=r"more than 20%: encode: ratio fell to 5 \(stored 10\)"):
        guard({"encode": {"ratio": 10.0}, "route": {"ratio": 3.0}}, slow, figures, lambda line: None)
    assert calls == ["encode"] * (TRIES - 1)


def test_the_stored_baseline_is_of_what_the_guard_runs() -> None:
    stored = json.loads((ROOT / "casam_bench" / "baseline.json").read_text())
    assert stored.keys() <= set(SMOKE) <= BENCHMARKS.keys()
    assert all(value > 0 for ratios in stored.values() for value in ratios.values())
