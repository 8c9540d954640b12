"""A private release that could not be written down is not made; the splits of one dataset are added up."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from casam_core.config.policy import BudgetPolicy
from casam_core.privacy.accounting import Mechanism, calibrate
from casam_core.protocol.outcomes import Outcome, RefusalError
from client.data.splits import PARTS
from client.release.ledger import Ledger, Spend, check_budget, of_images

SPEND = Spend("2026-01-01T00:00:00+00:00", "run", "align", "polyp", "/data/polyp", "train", "image", 1.5)

BEFORE = [replace(SPEND, division="one", split=split) for split in PARTS]


def test_a_line_that_a_full_disk_cut_short_is_refused_and_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.add(SPEND, lambda spends: None)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: write(handle, data[:20]))
        with pytest.raises(OSError, match="No space left on device"):
            ledger.add(replace(SPEND, kind="router"), lambda spends: None)
    assert ledger.lines() == [SPEND]
    ledger.add(replace(SPEND, kind="metrics"), lambda spends: None)
    assert [spend.kind for spend in Ledger(ledger.path).lines()] == ["align", "metrics"]


def test_splits_of_one_division_have_budgets_of_their_own() -> None:
    for split in PARTS:
        assert [s.split for s in of_images(BEFORE, "/data/polyp", split, "one")] == [split]


@pytest.mark.parametrize(
    ("dataset", "division"),
    [("/data/polyp", "another"), ("/data/polyp", ""), ("/data", "one"), ("/data/polyp/part", "one")],
)
def test_a_dataset_that_was_divided_otherwise_counts_all_its_splits(dataset: str, division: str) -> None:
    """An image of the training split of today may have been a test image before."""
    assert of_images(BEFORE, dataset, "train", division) == BEFORE
    assert of_images(BEFORE, "/data/other", "train", division) == []


def test_lines_that_do_not_know_their_division_count_for_all_splits(tmp_path: Path) -> None:
    old = {key: value for key, value in vars(SPEND).items() if key != "division"}
    (tmp_path / "ledger.jsonl").write_text(json.dumps(old) + "\n")
    (line,) = Ledger(tmp_path / "ledger.jsonl").lines()
    assert line == SPEND
    assert of_images([line], "/data/polyp", "test", "one") == [line]


def test_a_changed_seed_or_key_does_not_open_a_second_budget() -> None:
    """Runs whose divisions differ, each within epsilon 3 on training and on test images: more in all."""
    budget = BudgetPolicy(epsilon=3.0, epsilon_metrics=3.0, delta=1e-4)
    noise = calibrate(lambda scale: [Mechanism(scale)], 2.9, 1e-4)
    trained = replace(SPEND, division="one", noise_multiplier=noise)
    tested = replace(SPEND, split="test", noise_multiplier=noise)
    same, other = replace(tested, division="one"), replace(tested, division="another")
    check_budget(of_images([trained], same.dataset, "test", same.division), [same], budget, 3.0, Path("l"))
    with pytest.raises(RefusalError) as refused:
        check_budget(
            of_images([trained], other.dataset, "test", other.division), [other], budget, 3.0, Path("l")
        )
    assert refused.value.outcome == Outcome.BUDGET_SPENT
