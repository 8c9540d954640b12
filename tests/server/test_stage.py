"""One stage as what it is: a function from what the server knew to what it knows now."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from casam_core.bank.bank import Bank
from casam_core.errors import RunError
from casam_core.methods import SHARED
from server.federation.federation import Federation
from server.stage import Clock, State, evaluate_stage, first_state, learn_stage, roll_back
from tests.banks import tiny_entry
from tests.runs import events
from tests.server.scripted import Scripted, refuses, scripted

NO_LAYER = refuses("adapter-not-shared")


def begun(path: Path, **changes: Any) -> tuple[Scripted, Any, State]:
    """A scripted run whose stage 0 is over: polyp of north, then histology of south and west."""
    run = scripted(path, **changes)
    federation = run.federation()
    return run, federation, first_state(federation)


def run_stage(federation: Federation, state: State) -> State:
    """A whole stage."""
    return evaluate_stage(federation, learn_stage(federation, state))


def test_before_the_first_stage_nothing_is_learned_and_everything_is_measured(tmp_path: Path) -> None:
    run, _, state = begun(tmp_path / "run")
    assert (state.stages, state.held, state.layer, state.bank.tasks) == ((), (), None, ())
    assert state.zero_shot.iou == {"polyp": 0.5, "histology": 0.5, "cardiac_mr": 0.5}
    assert all(site.kinds() == ["evaluate.stage"] for site in run.sites.values())


def test_entries_of_an_earlier_start_are_gone_before_anybody_is_sent_one(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    federation = run.federation()
    Bank.open(run.path / "bank", create=True).add(tiny_entry("polyp"))
    state = first_state(federation)
    assert state.bank.tasks == ()
    assert all(not site.copy for site in run.sites.values())


def test_a_stage_adds_what_it_learned_and_leaves_the_state_before_as_it_was(tmp_path: Path) -> None:
    run, federation, before = begun(tmp_path / "run")
    after = run_stage(federation, before)
    assert (before.stages, before.held) == ((), ())
    (stage,) = after.stages
    assert (stage.number, stage.task, stage.holders, stage.unlearned) == (1, "polyp", ("north",), ())
    entry = after.bank["polyp"]
    assert stage.parameters == sum(weights.size for weights in entry.layer.values())
    assert [(h.task, h.digest, h.stage, h.holders, h.leaves) for h in after.held] == [
        ("polyp", after.bank.digest_of("polyp"), 1, ("north",), False)
    ]
    assert list(stage.seconds) == ["align", "router", "evaluate"]
    assert after.layer is None  # one layer per task: none is trained on
    assert after.zero_shot is before.zero_shot
    assert stage.scores.routes["polyp"] == {"polyp": 6}
    assert after.counters["releases"]["north"] == before.counters["releases"]["north"] + 3
    assert after.members.keys() == run.sites.keys()


def test_two_stages_from_one_state_are_two_states(tmp_path: Path) -> None:
    """What a stage knows of the past comes from the state: here that it is the second one."""
    _, federation, before = begun(tmp_path / "run")
    first = run_stage(federation, before)
    second = run_stage(federation, first)
    assert [stage.task for stage in second.stages] == ["polyp", "histology"]
    assert second.stages[0] is first.stages[0]
    assert [held.holders for held in second.held] == [("north",), ("south", "west")]


def test_a_stage_whose_holders_all_refuse_is_counted_and_measured_and_adds_nothing(tmp_path: Path) -> None:
    run, federation, state = begun(tmp_path / "run")
    state = run_stage(federation, state)
    for name in ("south", "west"):
        run.sites[name].script["train.align"] = [NO_LAYER]
    after = run_stage(federation, state)
    stage = after.stages[-1]
    assert (stage.number, stage.task, stage.holders, stage.parameters) == (2, "histology", (), 0)
    assert list(stage.seconds) == ["align", "evaluate"]
    assert (after.held, after.bank.tasks) == (state.held, ("polyp",))
    assert stage.scores.routes["histology"] == {"identity": 12}
    assert "train.router" not in run.sites["south"].kinds()
    assert [(event["stage"], event["task"]) for event in events(run.path, "refused")] == [(2, "histology")]


def test_the_shared_layer_outlives_a_stage_that_nobody_trained(tmp_path: Path) -> None:
    run, federation, state = begun(tmp_path / "run", method="sequential")
    state = run_stage(federation, state)
    assert state.layer is not None
    for name in ("south", "west"):
        run.sites[name].script["train.align"] = [NO_LAYER]
    after = run_stage(federation, state)
    assert after.layer is state.layer
    assert (after.stages[-1].holders, after.stages[-1].parameters) == ((), state.stages[-1].parameters)
    assert events(run.path, "refused") == []
    # Each stage has a bank of its own with the one layer; the next one begins without the last one's.
    assert [bank.folder.name for bank in (state.bank, after.bank)] == ["stage-1", "stage-2"]
    assert after.bank.tasks == (SHARED,)
    for name, weights in after.bank[SHARED].layer.items():
        np.testing.assert_array_equal(weights, state.bank[SHARED].layer[name])


def test_a_method_that_learns_nothing_only_measures(tmp_path: Path) -> None:
    _, federation, state = begun(tmp_path / "run", method="frozen")
    after = run_stage(federation, state)
    assert (after.held, after.stages[0].holders, after.stages[0].parameters) == ((), (), 0)
    assert list(after.stages[0].seconds) == ["evaluate"]


@pytest.mark.parametrize("method", ["casam", "oracle"])
def test_canaries_are_asked_only_where_a_router_chooses(tmp_path: Path, method: str) -> None:
    run, federation, state = begun(tmp_path / "run", method=method)
    run_stage(federation, run_stage(federation, state))
    _, last = run.sites["north"].asked[-1]
    assert ("histology" in str(last.config.get("candidates"))) == (method == "casam")


def test_rolled_back_is_what_the_state_does_not_hold(tmp_path: Path) -> None:
    _, federation, state = begun(tmp_path / "run")
    state = run_stage(federation, state)
    state.bank.add(tiny_entry("histology"))
    roll_back(state.bank, state.held)
    assert state.bank.tasks == ("polyp",)
    assert state.bank.digest_of("polyp") == state.held[0].digest
    # Only an entry that some leaver will have unlearned may be missing: the stage would remove it again.
    state.bank.remove("polyp")
    leaves = (replace(state.held[0], leaves=True),)
    roll_back(state.bank, leaves, unlearning=True)
    for held, unlearning in ((leaves, False), (state.held, True)):
        with pytest.raises(RunError, match="the entry of polyp is missing"):
            roll_back(state.bank, held, unlearning=unlearning)


def test_the_laps_of_a_clock_are_a_partition_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 12.5, 12.5, 20.0])
    monkeypatch.setattr(
        "server.stage.time", SimpleNamespace(monotonic=now.__next__, process_time=lambda: 0.0)
    )
    clock = Clock()
    for part in ("align", "router", "evaluate"):
        clock.lap(part)
    assert clock.seconds == {"align": 2.5, "router": 0.0, "evaluate": 7.5}
