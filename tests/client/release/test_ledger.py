"""A private release that could not be written down is not made; the splits of one dataset are added up."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from casam_core.config.policy import BudgetPolicy
from casam_core.config.scenario import Scenario
from casam_core.errors import PolicyError
from casam_core.privacy.accounting import Mechanism, calibrate, epsilon_of
from casam_core.protocol.outcomes import Outcome
from client.data.splits import PARTS
from client.institution import Institution
from client.release.ledger import Ledger, Spend, account_of, check_budget, of_images
from client.site import hosted_sites
from tests.banks import tiny_backbone
from tests.conftest import phantom, tiny_table
from tests.refused import refused

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


CHANGES = {
    "a changed byte": lambda lines: [lines[0].replace(b"1.5", b"9.5"), *lines[1:]],
    "a removed line": lambda lines: lines[1:],
    "lines that changed places": lambda lines: [lines[1], lines[0], lines[2]],
    "a line twice": lambda lines: [lines[0], *lines],
    "a line without its hash": lambda lines: [*lines, json.dumps(asdict(SPEND)).encode() + b"\n"],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_ledger_is_refused(tmp_path: Path, change: str) -> None:
    """A cut at the end is found by the audit log, which remembers how many lines there were."""
    path = tmp_path / "ledger.jsonl"
    for kind in ("align", "router", "metrics"):
        Ledger(path).add(replace(SPEND, kind=kind))
    path.write_bytes(b"".join(CHANGES[change](path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(PolicyError, match=r"ledger.jsonl: line \d is not a line of a ledger"):
        Ledger(path).lines()
    with pytest.raises(PolicyError):
        Ledger(path).add(SPEND)


def test_every_changed_bit_of_a_ledger_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path).add(SPEND)
    Ledger(path).add(replace(SPEND, kind="router"))
    good = path.read_bytes()
    for place in range(good.index(b"\n")):  # the first line; the last byte of a line makes two lines one
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(PolicyError):
            Ledger(path).lines()


def test_lines_of_an_earlier_version_count_in_the_hashes_after_them(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    old = [
        json.dumps(asdict(replace(SPEND, kind=kind)), sort_keys=True) + "\n" for kind in ("align", "router")
    ]
    path.write_text("".join(old))
    assert [spend.kind for spend in Ledger(path).lines()] == ["align", "router"]
    Ledger(path).add(replace(SPEND, kind="metrics"))
    assert [spend.kind for spend in Ledger(path).lines()] == ["align", "router", "metrics"]
    path.write_text(path.read_text().replace('"kind": "align"', '"kind": "aligm"'))
    with pytest.raises(PolicyError, match="line 3 is not a line of a ledger"):
        Ledger(path).lines()


def test_a_line_that_the_disk_refused_leaves_no_mark_in_the_next_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.add(SPEND)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: 0)
        with pytest.raises(OSError, match="No space"):
            ledger.add(replace(SPEND, kind="router"))
    ledger.add(replace(SPEND, kind="metrics"))
    other = Ledger(tmp_path / "other.jsonl")
    for kind in ("align", "metrics"):
        other.add(replace(SPEND, kind=kind))
    assert ledger.path.read_bytes() == other.path.read_bytes()


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
    check_budget(of_images([trained], same.dataset, "test", same.division), [same], budget, Path("l"))
    with refused(Outcome.BUDGET_SPENT):
        check_budget(of_images([trained], other.dataset, "test", other.division), [other], budget, Path("l"))


@pytest.mark.parametrize(("first", "then"), [("train", "test"), ("test", "train")])
def test_where_splits_are_mixed_the_smaller_budget_counts(first: str, then: str) -> None:
    """A training image of today may be a test image tomorrow: epsilon 10 for metrics is not for it."""
    budget = BudgetPolicy(epsilon=1.0, epsilon_metrics=10.0, delta=1e-4)
    before = replace(SPEND, split=first, division="one", noise_multiplier=10.0)
    after = replace(SPEND, split=then, division="two", noise_multiplier=1.0)  # epsilon 4.3 alone
    check_budget([], [replace(after, split="test")], budget, Path("l"))
    with refused(Outcome.BUDGET_SPENT, match="the budget is 1"):
        check_budget(of_images([before], after.dataset, then, "two"), [after], budget, Path("l"))


def test_an_account_counts_every_split_that_was_ever_evaluated(tmp_path: Path) -> None:
    """A run that evaluates validation images tells what the test images have cost before."""
    policy = {"metrics": "noisy", "budget": {"epsilon_metrics": 8.0, "delta": 0.01}}
    sites = [{"name": "a", "data": {"polyp": phantom("polyp", 24)}, "policy": policy}]
    table = tiny_table(stream=["polyp"], institutions=sites, evaluation={"split": "val"})
    scenario = Scenario.model_validate(table)
    node = {"partition-id": 0, "num-partitions": 1}
    (site,) = hosted_sites(scenario, "run", node, {"out": str(tmp_path)})
    institution = Institution(site, scenario, tiny_backbone())
    tested = replace(
        SPEND,
        dataset=institution.dataset("polyp"),
        division=institution.task("polyp").division,
        split="test",
        noise_multiplier=1.0,
    )
    Ledger(site.ledger).add(tested)
    account = account_of(institution)
    assert account is not None
    assert account.metrics == epsilon_of([tested.mechanism], 0.01)
