"""Whole runs of the real code through simulated disasters."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path

import pytest

from tests.disasters.faults import Fault, Plan, plan_of
from tests.disasters.homes import CASES, SERVER
from tests.disasters.laws import Laws
from tests.disasters.planted import PLANTED
from tests.disasters.playing import know, play
from tests.disasters.shrink import shrink, story

FAST, SEEDS, TOGETHER = 50, 2000, 325
"""Seven processor minutes, a fifth of one in the fast tests; the others in parts, for tests on several cores.
`python -m tests.disasters --seeds N` plays more."""

PARTS = [range(first, first + TOGETHER) for first in range(FAST, SEEDS, TOGETHER)]

FOUND_BY = {
    "fsync left out": 0,
    "ledger after send": 2,
    "resume that trusts a torn file": 12,
    "stale request answered": 2,
    "acknowledgement before the rename": 2,
}
"""The first seed that finds each planted bug (`python -m tests.disasters --planted`)."""


@pytest.mark.parametrize("case", CASES)
def test_without_a_fault_every_law_holds(case: str) -> None:
    played = play(Plan(0, case, ()))
    assert (played.end, played.broken) == ("finished", [])


def test_one_seed_is_one_story() -> None:
    assert play(plan_of(78)).story == play(plan_of(78)).story


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "seeds", [range(FAST), *(pytest.param(part, marks=pytest.mark.slow) for part in PARTS)]
)
def test_no_seed_breaks_a_law(seeds: range) -> None:
    broken = {seed: played.broken for seed in seeds if (played := play(plan_of(seed))).broken}
    assert broken == {}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str) -> None:
    plan = plan_of(FOUND_BY[name])
    know(plan.case)
    with PLANTED[name]():
        assert play(plan).broken
    assert not play(plan).broken


def test_an_entry_that_changes_is_found(tmp_path: Path) -> None:
    """Both its name in the manifest of its bank, and its bytes."""
    laws, bank = Laws(Plan(0, "open", ())), tmp_path / "south/runs/run-0/bank"
    (bank / "entries").mkdir(parents=True)

    def named(digest: str, data: bytes) -> list[str]:
        (bank / "entries" / f"{digest}.entry").write_bytes(data)
        manifest = {"entries": [{"task": "polyp", "sha256": digest}]}
        (bank / "manifest.json").write_text(json.dumps(manifest))
        laws.unchanged(tmp_path / "south")
        return laws.broken

    one, other = hashlib.sha256(b"one").hexdigest(), hashlib.sha256(b"other").hexdigest()
    assert named(one, b"one") == []
    assert named(one, b"One") == ["south: the file of the entry of polyp changed"]
    assert named(other, b"other")[1:] == ["south: the entry of polyp changed"]


def test_what_fails_is_shrunk_to_its_cause_and_told() -> None:
    """A torn line of a log needs a full disk; the other faults are left out."""
    plan = plan_of(FOUND_BY["resume that trusts a torn file"])
    know(plan.case)
    with PLANTED["resume that trusts a torn file"]():
        least = shrink(play(plan))
    assert len(least.plan.faults) == 1
    assert "BROKEN: " in story(least)


@pytest.mark.parametrize("newer", [0, 1])
@pytest.mark.parametrize(
    ("case", "second", "seconds"),
    [
        ("skip", 0.5, 150.0),
        ("skip", 3.0, 25.0),
        ("open", 0.5, 150.0),
        ("open", 3.0, 25.0),
        ("private", 2.0, 25.0),
    ],
)
def test_a_node_that_is_upgraded_in_the_middle_is_refused_and_the_run_goes_on(
    case: str, second: float, seconds: float, newer: int
) -> None:
    """With `missing = "skip"` without the node, else as soon as it has the server's version again."""
    played = play(Plan(1, case, (Fault("upgrade", "south", second, seconds, newer),)))
    assert (played.end, played.broken) == ("finished", [])
    words = "the server stops: " + ("message schema: " if newer else "code: ")
    assert any(words in line for line in played.story) == (case != "skip")


@pytest.mark.parametrize("call", [40, 150, 260, 331, 400])
def test_wherever_the_server_loses_power_the_end_is_the_same(call: int) -> None:
    played = play(Plan(call, "private", (Fault("cut", SERVER, call, 1.0),)))
    assert (played.end, played.broken) == ("finished", [])


def test_a_folder_whose_name_could_not_be_synced_is_synced_before_a_release_leaves() -> None:
    """The disk refuses the sync and works again; the folder is there already."""
    for call in range(36, 50):
        played = play(Plan(135, "private", (Fault("disk", "south", call, 2, errno.ENOSPC),)))
        assert (played.end, played.broken) == ("finished", [])


def test_a_full_disk_leaves_no_half_line_in_the_events() -> None:
    """The next event would begin in the middle of it."""
    faults = tuple(Fault("disk", SERVER, call, 1, errno.ENOSPC) for call in range(20, 400, 7))
    played = play(Plan(1, "skip", faults))
    assert (played.end, played.broken) == ("finished", [])
