"""How a task is learned from scripted holders: rounds, merging, routers, and answers that do not count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from casam_core.bank.bank import Bank
from casam_core.config.policy import Policy
from casam_core.errors import RunError, ScenarioError
from casam_core.protocol.messages import AlignReply, AlignRequest
from server.defence.admission import first_layer
from server.learning import learn_layer, learn_router, mean_correction
from tests.runs import events, result
from tests.server.scripted import (
    SECRET,
    Scripted,
    boosts,
    dies,
    refuses,
    scripted,
    stays_silent,
)

ONE_TASK = {"north": ("polyp",), "south": ("polyp",), "west": ("polyp",)}


def of_one_task(path: Path, **changes: Any) -> Scripted:
    """Three holders of the one task."""
    return scripted(path, ONE_TASK, **{"stream": ["polyp"]} | changes)


def rounds(number: int, **more: Any) -> dict[str, Any]:
    return {"epochs": 1, "batch_images": 4, "fallback_to_identity": False, "rounds": number, **more}


def test_the_layers_of_a_round_are_averaged_by_images_and_the_next_round_starts_there(tmp_path: Path) -> None:
    run = of_one_task(tmp_path / "run", training=rounds(2))
    run.sites["west"].holds = {"polyp": (36, 4, 6)}
    federation = run.federation()
    layer = learn_layer(federation, 1, "polyp", Bank.open(tmp_path / "bank", create=True))
    assert layer is not None
    assert layer.holders == ("north", "south", "west")
    assert layer.images == 60
    start = first_layer(run.scenario, "polyp")
    assert start is not None
    mean = (0.01 * 12 + 0.02 * 12 + 0.03 * 36) / 60
    for name, weights in layer.weights.items():
        np.testing.assert_allclose(weights, start[name] + 2 * mean, atol=1e-6)
    second = [payload for kind, payload in run.sites["north"].asked if kind == "train.align"][1]
    sent = AlignRequest.of(second).layer
    assert sent is not None
    np.testing.assert_allclose(sent[name], start[name] + mean, atol=1e-6)


def test_the_weights_of_a_single_holder_are_the_layer_to_the_last_bit(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    layer = learn_layer(run.federation(), 1, "polyp", Bank.open(tmp_path / "bank", create=True))
    start = first_layer(run.scenario, "polyp")
    assert layer is not None
    assert start is not None
    for name, weights in layer.weights.items():
        np.testing.assert_array_equal(weights, start[name] + np.float32(0.01))


def test_rounds_before_one_that_does_not_count_stand(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run", training=rounds(2))
    run.sites["north"].script["train.align"] = [lambda honest: honest, refuses("rounds-spent")]
    layer = learn_layer(run.federation(), 1, "polyp", Bank.open(tmp_path / "bank", create=True))
    assert layer is not None
    assert layer.holders == ("north",)


def test_who_trained_in_any_round_is_a_holder(tmp_path: Path) -> None:
    run = of_one_task(tmp_path / "run", training=rounds(2))
    run.sites["west"].script["train.align"] = [lambda honest: honest, refuses("rounds-spent")]
    assert run.run()["holders"] == {"polyp": ["north", "south", "west"]}
    assert [event["holders"] for event in events(run.path, "align")] == [
        ["north", "south", "west"],
        ["north", "south"],
    ]
    assert Bank.open(run.path / "bank")["polyp"].provenance.images == 36


def test_a_straggler_is_left_out_of_the_round(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run", deadlines={"train": 0.2})
    run.sites["west"].script["train.align"] = [stays_silent]
    assert run.run()["holders"]["histology"] == ["south"]
    (late,) = events(run.path, "no-result")
    assert (late["institution"], late["kind"], late["outcome"]) == ("west", "train.align", "no-answer")


@pytest.mark.parametrize("missing", ["stop", "skip"])
def test_below_the_quorum_the_scenario_says_what_happens(tmp_path: Path, missing: str) -> None:
    run = scripted(
        tmp_path / "run",
        stream=["histology"],
        participation={"quorum": 2, "missing": missing},
        deadlines={"train": 0.2},
    )
    run.sites["west"].script["train.align"] = [stays_silent]
    if missing == "stop":
        with pytest.raises(RunError, match=r"trained by 1 of 2 holders needed \(participation.quorum\)"):
            run.run()
        return
    assert run.run()["holders"]["histology"] == []
    (skipped,) = events(run.path, "skipped")
    assert skipped["holders"] == ["south"]


def test_without_retries_a_dead_holder_ends_the_run(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run", deadlines={"retries": 0})
    run.sites["north"].script["train.align"] = [dies]
    with pytest.raises(RunError, match="no holder of task 'polyp' could train"):
        run.run()


def test_one_of_two_holders_can_stay_out(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    run.sites["west"].script["train.align"] = [refuses("adapter-not-shared")]
    summary = run.run()
    assert summary["holders"]["histology"] == ["south"]
    assert run.sites["west"].kinds(stage=2) == ["train.align", "evaluate.stage"]


def test_a_layer_that_stays_at_home_leaves_the_task_to_frozen_sam(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    run.sites["north"].script["train.align"] = [refuses("adapter-not-shared")]
    summary = run.run()
    assert Bank.open(run.path / "bank").tasks == ("histology",)
    assert summary["holders"] == {"polyp": [], "histology": ["south", "west"]}
    assert summary["privacy"]["north"]["refusals"] == {"adapter-not-shared": 1}


def test_a_layer_that_beats_nothing_keeps_the_identity(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run", training={"epochs": 1, "fallback_to_identity": True})

    def no_better(honest: Any) -> Any:
        return type(honest)({**honest.config, "improved": False}, honest.arrays, honest.metrics)

    run.sites["north"].script["train.align"] = [no_better]
    run.run()
    assert [event["task"] for event in events(run.path, "fallback")] == ["polyp"]
    assert Bank.open(run.path / "bank")["polyp"].provenance.form == "identity"


def test_a_boosted_layer_does_not_outweigh_two_honest_holders(tmp_path: Path) -> None:
    run = of_one_task(tmp_path / "run")
    run.sites["west"].script["train.align"] = [boosts(1000.0)]
    summary = run.run()
    assert summary["holders"]["polyp"] == ["north", "south"]
    (rejected,) = events(run.path, "rejected")
    assert rejected["institution"] == "west"
    assert "times as far as its peers" in rejected["reason"]
    assert summary["privacy"]["west"]["rejections"] == {"train.align": 1}


def test_a_boosted_layer_of_a_single_holder_is_held_against_other_tasks(tmp_path: Path) -> None:
    tasks = {"north": ("polyp",), "south": ("histology",), "west": ("cardiac_mr",)}
    run = scripted(tmp_path / "run", tasks, stream=["polyp", "histology", "cardiac_mr"])
    run.sites["west"].script["train.align"] = [boosts(1000.0)]
    assert run.run()["holders"]["cardiac_mr"] == []
    assert [event["institution"] for event in events(run.path, "rejected")] == ["west"]


def test_layers_of_another_form_do_not_count(tmp_path: Path) -> None:
    """A method that trains a part of SAM: the server does not know its arrays, most holders do."""
    run = of_one_task(tmp_path / "run", method="decoder")
    for site in run.sites.values():
        site.weights = {"w": np.ones(3, np.float32)}
    run.sites["west"].weights = {"w": np.ones(4, np.float32)}
    assert run.run()["holders"]["polyp"] == ["north", "south"]
    (rejected,) = events(run.path, "rejected")
    assert rejected["reason"] == "the layer's arrays are not those of the others"


def test_importance_is_added_up_over_tasks_and_sent_with_the_anchor(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run", method="ewc")
    summary = run.run()
    assert summary["holders"] == {"polyp": ["north"], "histology": ["south", "west"]}
    first, second = (
        AlignRequest.of(payload)
        for name in ("north", "south")
        for kind, payload in run.sites[name].asked
        if kind == "train.align"
    )
    assert first.anchor is None
    assert first.importance is None
    assert second.anchor is not None
    assert second.importance is not None
    assert all((part == 1).all() for part in second.importance.values())
    assert Bank.open(run.path / "bank" / "stage-2").tasks == ("shared",)


def test_frozen_learns_nothing(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run", method="frozen")
    assert run.run()["trained_parameters"] == 0
    assert run.sites["north"].kinds() == ["evaluate.stage"] * 3


# --- Routers ---------------------------------------------------------------------------------------------


def test_a_single_holder_finishes_its_router_at_home(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    state, threshold = learn_router(run.federation(), 1, "polyp", ("north",))
    assert state.keys() == {"mean_F"}
    assert threshold == 1.5
    assert run.sites["north"].kinds() == ["train.router"]


def test_several_holders_send_sums_and_counts(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    alone, _ = learn_router(run.federation(), 2, "histology", ("south",))
    run = scripted(tmp_path / "other")
    state, threshold = learn_router(run.federation(), 2, "histology", ("south", "west"))
    np.testing.assert_allclose(state["mean_F"], alone["mean_F"], rtol=1e-6)  # both have the same features
    assert threshold is not None
    assert run.sites["west"].kinds() == ["train.router", "train.calibrate"]


@pytest.mark.parametrize("kind", ["train.router", "train.calibrate"])
@pytest.mark.parametrize("missing", ["stop", "skip"])
def test_a_task_that_no_holder_describes_is_used_by_its_name_alone(
    tmp_path: Path, kind: str, missing: str
) -> None:
    run = scripted(tmp_path / "run", participation={"missing": missing})
    for name in ("south", "west"):
        run.sites[name].script[kind] = [refuses("failed")]
    if missing == "stop":
        with pytest.raises(RunError, match="stage 2: no holder of task 'histology' could "):
            run.run()
        return
    run.run()
    entry = Bank.open(run.path / "bank")["histology"]
    assert (entry.router, entry.threshold) == ({}, None)
    assert [event["task"] for event in events(run.path, "skipped")] == ["histology"]


def test_a_router_that_is_not_shared_is_no_failure(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    run.sites["north"].script["train.router"] = [refuses("router-not-shared")]
    summary = run.run()
    assert Bank.open(run.path / "bank")["polyp"].threshold is None
    assert summary["holders"]["polyp"] == ["north"]
    assert events(run.path, "skipped") == []


# --- Secure sums -----------------------------------------------------------------------------------------


def test_three_institutions_learn_what_they_would_learn_in_the_open(tmp_path: Path) -> None:
    opened, summed = of_one_task(tmp_path / "open"), of_one_task(tmp_path / "summed")
    for site in summed.sites.values():
        site.policy = SECRET
    opened.run()
    summary = summed.run()
    one, other = (Bank.open(run.path / "bank")["polyp"] for run in (summed, opened))
    for name, weights in other.layer.items():
        np.testing.assert_allclose(one.layer[name], weights, atol=1e-6)
    np.testing.assert_allclose(one.router["mean_F"], other.router["mean_F"], rtol=1e-6, atol=1e-6)
    assert one.threshold == pytest.approx(other.threshold)
    assert one.provenance.holders == ("north", "south", "west")
    assert one.provenance.images == other.provenance.images
    hidden = {"server": 3, "co_holder": 2}
    for name in summed.sites:
        assert summary["privacy"][name]["anonymity"] == {"adapter": hidden, "router": hidden}
        assert set(summed.sites[name].kinds()) == {"evaluate.stage", "train"}


def test_a_sum_beside_an_open_holder_counts_as_one_layer_of_all_its_images(tmp_path: Path) -> None:
    run = of_one_task(tmp_path / "run")
    run.sites["north"].policy = run.sites["south"].policy = SECRET
    summary = run.run()
    assert summary["holders"]["polyp"] == ["north", "south", "west"]
    (align,) = events(run.path, "align")
    assert (align["images"], align["summed"]) == (36, ["north", "south"])
    assert summary["privacy"]["north"]["anonymity"]["adapter"] == {"server": 2, "co_holder": 1}
    assert summary["privacy"]["west"]["anonymity"]["adapter"] == {"server": 1, "co_holder": 2}


def test_a_member_that_refuses_leaves_and_the_others_still_add_up(tmp_path: Path) -> None:
    run = of_one_task(tmp_path / "run")
    for site in run.sites.values():
        site.policy = SECRET
    run.sites["west"].script["train"] = [refuses("cohort-too-small")]
    summary = run.run()
    assert summary["holders"] == {"polyp": ["north", "south"]}
    assert summary["privacy"]["west"]["refusals"] == {"cohort-too-small": 1}


def test_a_member_whose_process_dies_is_asked_again(tmp_path: Path) -> None:
    whole, lossy = of_one_task(tmp_path / "whole"), of_one_task(tmp_path / "lossy")
    for site in (*whole.sites.values(), *lossy.sites.values()):
        site.policy = SECRET
    lossy.sites["west"].script["train"] = [dies]
    summary = lossy.run()
    assert summary["holders"]["polyp"] == ["north", "south", "west"]
    assert summary["matrix"] == whole.run()["matrix"]
    assert result(lossy.path)["bank"] == result(whole.path)["bank"]
    assert [event["institutions"] for event in events(lossy.path, "retry")] == [["west"]]


@pytest.mark.parametrize("step", [2, 3], ids=["masked share", "unmask"])
def test_a_member_can_drop_out_after_it_shared_its_keys(tmp_path: Path, step: int) -> None:
    tasks = dict.fromkeys("abcd", ("polyp",))
    run = scripted(tmp_path / "run", tasks, stream=["polyp"], router={"kind": "nearest_mean"})
    for site in run.sites.values():
        site.policy = SECRET
    run.sites["d"].script["train"] = [*[lambda honest: honest] * step, refuses("failed")]
    summary = run.run()
    holders = ["a", "b", "c"] if step == 2 else ["a", "b", "c", "d"]
    assert summary["holders"]["polyp"] == holders


def test_of_two_nobody_may_drop_out(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run", stream=["histology"])
    for name in ("south", "west"):
        run.sites[name].policy = SECRET
    run.sites["west"].script["train"] = [lambda honest: honest, lambda honest: honest, refuses("failed")]
    with pytest.raises(RunError, match="no holder of task 'histology' could train"):
        run.run()


def test_a_cohort_whose_members_all_refuse_learns_nothing(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    for name in ("south", "west"):
        run.sites[name].policy = SECRET
        run.sites[name].script["train"] = [refuses("cohort-too-small")]
    assert run.run()["holders"]["histology"] == []


def test_strategies_that_look_at_each_layer_are_refused(tmp_path: Path) -> None:
    run = of_one_task(tmp_path / "run", training=rounds(1, strategy="fedmedian"))
    for site in run.sites.values():
        site.policy = SECRET
    with pytest.raises(ScenarioError, match="fedmedian needs each single layer, but north shares"):
        run.run()


@pytest.mark.parametrize("strategy", ["fedprox", "fedadam", "fedyogi"])
def test_strategies_that_need_only_the_mean_work_with_secure_sums(tmp_path: Path, strategy: str) -> None:
    run = of_one_task(tmp_path / "run", training=rounds(1, strategy=strategy))
    for site in run.sites.values():
        site.policy = SECRET
    assert run.run()["holders"]["polyp"] == ["north", "south", "west"]


@pytest.mark.parametrize("strategy", ["fedprox", "scaffold"])
def test_strategies_that_change_training_are_refused_where_a_layer_gets_noise(
    tmp_path: Path, strategy: str
) -> None:
    run = of_one_task(tmp_path / "run", training=rounds(1, strategy=strategy))
    noisy = {"adapter": {"noise": "dp"}, "budget": {"epsilon": 3.0, "delta": 0.01}}
    run.sites["south"].policy = Policy.model_validate(noisy)
    with pytest.raises(ScenarioError, match=f"{strategy} has no training with noise, but south shares"):
        run.run()


def test_scaffold_sends_each_holder_its_shift_from_the_second_round_on(tmp_path: Path) -> None:
    run = of_one_task(tmp_path / "run", training=rounds(2, strategy="scaffold"))
    run.run()
    first, second = (
        AlignRequest.of(asked) for kind, asked in run.sites["north"].asked if kind == "train.align"
    )
    assert first.control is None
    assert second.control is not None
    # The control variates are 0.01, 0.02 and 0.03, of equally many images.
    for shift in second.control.values():
        np.testing.assert_allclose(shift, 0.02 - 0.01, rtol=1e-4)


def test_the_layer_that_krum_takes_is_one_holders_own(tmp_path: Path) -> None:
    run = of_one_task(tmp_path / "run", training=rounds(1, strategy="krum"))
    summary = run.run()
    for name in ONE_TASK:
        assert summary["privacy"][name]["anonymity"]["adapter"]["co_holder"] == 1


def test_corrections_are_averaged_by_images_over_the_holders_that_told_one() -> None:
    layer = {"w": np.ones(1, np.float32)}
    replies = [
        AlignReply(layer, images, correction=told) for images, told in ((3, -0.2), (1, 0.2), (9, None))
    ]
    assert mean_correction(replies) == pytest.approx(-0.1)
    assert mean_correction(replies[2:]) is None
