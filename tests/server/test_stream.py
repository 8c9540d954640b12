"""The stage loop over scripted institutions: who is asked what, who is missing, and how a run resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import server.stage
import server.stream
from casam_core.bank.bank import Bank
from casam_core.config.policy import Policy
from casam_core.errors import RunError
from casam_core.protocol.messages import EvaluateRequest, Forecast
from casam_core.protocol.payload import Payload
from tests.runs import events, result
from tests.server.scripted import Behaviour, Scripted, Site, dies, refuses, scripted, stays_silent

SKIP: dict[str, Any] = {"participation": {"missing": "skip"}, "deadlines": {"connect": 0.2}}


def test_every_stage_learns_one_task_and_measures_everybody(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    summary = run.run()
    assert summary["holders"] == {"polyp": ["north"], "histology": ["south", "west"]}
    assert summary["matrix"]["iou"] == [[0.5, None], [0.5, 0.5]]
    assert run.sites["north"].kinds() == [
        "evaluate.stage",
        "train.align",
        "train.router",
        "evaluate.stage",
        "evaluate.stage",
    ]
    assert run.sites["south"].kinds(stage=2) == [
        "train.align",
        "train.router",
        "train.calibrate",
        "evaluate.stage",
    ]
    assert [event["stage"] for event in events(run.path, "evaluated")] == [0, 1, 2]
    assert Bank.open(run.path / "bank").tasks == ("polyp", "histology")


def tells_personal(honest: Payload) -> Payload:
    """Says what a personal entry is worth."""
    score = {**honest.metrics["score.histology"], "personal": 0.7}
    return replace(honest, metrics={**honest.metrics, "score.histology": score})


@pytest.mark.parametrize("wanted", [True, False])
def test_a_personal_figure_is_taken_only_where_the_scenario_asks_for_it(tmp_path: Path, wanted: bool) -> None:
    run = scripted(tmp_path / "run", alignment={"personal": wanted})
    honest: Behaviour = lambda payload: payload  # noqa: E731
    run.sites["south"].script["evaluate.stage"] = [honest, honest, tells_personal]
    summary = run.run()
    assert summary.get("personal") == ({"south": {"histology": 0.7}} if wanted else None)
    assert (summary["privacy"]["south"]["rejections"] == {}) is wanted
    assert summary["matrix"]["iou"][1][1] == (0.5 if wanted else None)


def test_everybody_gets_every_entry_once(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    run.run()
    for site in run.sites.values():
        sent = [payload for kind, payload in site.asked if kind == "evaluate.stage"]
        assert [payload.config["known"] for payload in sent] == [0, 0, 1]
        assert [len(payload.arrays.get("entries", {})) for payload in sent] == [0, 1, 1]


def test_an_institution_that_takes_no_entries_of_others_is_sent_none(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    run.sites["north"].policy = Policy(accept_entries=False)
    run.run()
    assert list(run.sites["north"].copy) == ["polyp"]
    assert list(run.sites["south"].copy) == ["polyp", "histology"]


def test_a_copy_that_is_not_ours_is_sent_anew(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    run.sites["west"].script["evaluate.stage"] = [lambda honest: honest, refuses("bank-mismatch")]
    summary = run.run()
    assert summary["matrix"]["iou"] == [[0.5, None], [0.5, 0.5]]
    asked = [payload.config for kind, payload in run.sites["west"].asked if kind == "evaluate.stage"]
    assert [(config["stage"], config["known"]) for config in asked] == [(0, 0), (1, 0), (1, 0), (2, 1)]


def sent_to(site: Site) -> list[tuple[int, int, int, int]]:
    """(stage, known, entries, names) of every request to evaluate."""
    sent = [payload for kind, payload in site.asked if kind == "evaluate.stage"]
    asked = [(EvaluateRequest.of(payload), payload.config["stage"]) for payload in sent]
    return [(stage, q.known, len(q.entries), len(q.names)) for q, stage in asked]


def test_an_institution_with_a_mirror_is_sent_the_names_of_entries(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    run.sites["west"].mirror = tmp_path / "run" / "bank" / "entries"
    summary = run.run()
    assert summary["matrix"]["iou"] == [[0.5, None], [0.5, 0.5]]
    assert sent_to(run.sites["west"]) == [(0, 0, 0, 0), (1, 0, 0, 1), (2, 1, 0, 1)]
    assert sent_to(run.sites["north"]) == [(0, 0, 0, 0), (1, 0, 1, 0), (2, 1, 1, 0)]
    assert run.sites["west"].copy == run.sites["north"].copy
    assert summary["bytes"]["down"]["west"] < summary["bytes"]["down"]["north"]


def test_what_a_mirror_lacks_the_server_sends(tmp_path: Path) -> None:
    """At once, without a failure, and for the rest of the run; the copy of the bank is as it was."""
    run = scripted(tmp_path / "run")
    run.sites["west"].mirror = tmp_path / "empty"
    summary = run.run()
    assert summary["matrix"]["iou"] == [[0.5, None], [0.5, 0.5]]
    assert sent_to(run.sites["west"]) == [(0, 0, 0, 0), (1, 0, 0, 1), (1, 0, 1, 0), (2, 1, 1, 0)]
    assert len(events(run.path, "mirror-missed")) == 1
    assert events(run.path, "no-result") == []


def test_a_copy_that_was_lost_comes_from_the_mirror_whole(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    run.sites["west"].mirror = tmp_path / "run" / "bank" / "entries"
    honest: Behaviour = lambda honest: honest  # noqa: E731
    run.sites["west"].script["evaluate.stage"] = [honest, honest, refuses("bank-mismatch")]
    run.run()
    assert sent_to(run.sites["west"])[2:] == [(2, 1, 0, 1), (2, 0, 0, 2)]


@pytest.mark.parametrize("word", ["bank-mismatch", "not-in-mirror", "failed"])
def test_an_institution_that_never_takes_the_bank_does_not_hold_up_the_run(tmp_path: Path, word: str) -> None:
    run = scripted(tmp_path / "run")
    run.sites["west"].mirror = tmp_path / "run" / "bank" / "entries"
    run.sites["west"].script["evaluate.stage"] = [refuses(word)] * 20
    run.run()
    assert len(sent_to(run.sites["west"])) <= 6
    assert {event["outcome"] for event in events(run.path, "no-result")} == {word}


@pytest.mark.parametrize("misses", [refuses("failed"), stays_silent])
def test_who_fails_or_is_silent_beside_a_mirror_is_sent_entries_next_time(
    tmp_path: Path, misses: Behaviour
) -> None:
    """A node may wait for its mirror longer than the deadline; its scores of this one stage are missing."""
    run = scripted(tmp_path / "run", deadlines={"evaluate": 0.3})
    run.sites["west"].mirror = tmp_path / "run" / "bank" / "entries"
    run.sites["west"].script["evaluate.stage"] = [lambda honest: honest, misses]
    run.run()
    assert sent_to(run.sites["west"])[1:] == [(1, 0, 0, 1), (2, 0, 2, 0)]


def test_a_shared_layer_is_not_in_a_mirror(tmp_path: Path) -> None:
    """It is another entry in every stage, in a folder of the stage."""
    run = scripted(tmp_path / "run", method="fedavg")
    run.sites["west"].mirror = tmp_path / "run" / "bank" / "entries"
    run.run()
    assert all(names == 0 for *_, names in sent_to(run.sites["west"]))


def test_late_joiners_and_leavers_take_no_part_in_other_stages(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    run.sites["north"].policy, run.sites["west"].policy = Policy(leaves_at=2), Policy(joins_at=2)
    summary = run.run()
    assert summary["holders"] == {"polyp": ["north"], "histology": ["south", "west"]}
    assert [row[0] is None for row in summary["matrix"]["iou"]] == [False, True]  # gone with its images
    assert summary["zero_shot"]["iou"]["histology"] is None  # one of two holders was not there yet
    assert run.sites["north"].kinds(stage=2) == []
    assert run.sites["west"].kinds(stage=1) == []


def test_a_stage_whose_only_holder_has_not_joined_learns_nothing(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    run.sites["north"].policy = Policy(joins_at=2)
    assert run.run()["holders"]["polyp"] == []
    assert Bank.open(run.path / "bank").tasks == ("histology",)
    assert [event["task"] for event in events(run.path, "refused")] == ["polyp"]


def test_scores_that_stay_at_home_leave_empty_cells(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    run.sites["north"].script["evaluate.stage"] = [refuses("metrics-not-shared")] * 3
    summary = run.run()
    assert [row[0] for row in summary["matrix"]["iou"]] == [None, None]
    assert summary["complete"]["last_iou"] is False
    assert summary["privacy"]["north"]["refusals"] == {"metrics-not-shared": 3}
    assert list(run.sites["north"].copy) == ["polyp", "histology"]  # not sent anew: it has them


def test_how_far_a_budget_goes_is_said_at_the_start(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    budget = {"epsilon": 1.0, "delta": 1e-5}
    run.sites["north"].policy = Policy.model_validate({"adapter": {"noise": "dp"}, "budget": budget})
    run.sites["north"].forecasts = {"polyp": Forecast(1, 2, 0.25)}
    run.run()
    (said,) = events(run.path, "forecast")
    assert (said["institution"], said["affordable"], said["rounds"]) == ("north", 1, 2)
    assert said["router_share"] == 0.25


# --- Institutions that are missing -----------------------------------------------------------------------


def test_the_others_go_on_without_one_that_is_gone(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run", **SKIP)
    run.sites["north"].gone_at = 2
    summary = run.run()
    assert [event["institution"] for event in events(run.path, "absent")] == ["north"]
    first, second = summary["matrix"]["iou"]
    assert first[0] is not None
    assert second[0] is None  # of its task nobody has images any more: null, never an old figure
    assert second[1] is not None
    assert summary["complete"]["last_iou"] is False
    assert summary["holders"]["polyp"] == ["north"]  # its entry stays


def test_a_task_is_skipped_whose_only_holder_is_gone(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run", **SKIP)
    run.sites["north"].gone_at = 0
    summary = run.run()
    assert [event["task"] for event in events(run.path, "refused")] == ["polyp"]
    assert summary["holders"] == {"polyp": [], "histology": ["south", "west"]}


def test_the_run_stops_where_it_must_not_go_on_without(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run", deadlines={"connect": 1.0})
    run.sites["north"].gone_at = 2
    with pytest.raises(RunError, match="no answer from north within 1 s"):
        run.run()
    assert events(run.path, "failed")
    assert not (run.path / "summary.json").exists()


def test_one_that_comes_back_is_asked_again_from_the_next_stage_on(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run", **SKIP)
    north = run.sites["north"]

    def vanishes(honest: object) -> Any:
        north.connected = False
        return dies(honest)  # type: ignore[arg-type]

    def returns(honest: Any) -> Any:
        north.connected = True
        return honest

    north.script["evaluate.stage"] = [vanishes]
    run.sites["south"].script["evaluate.stage"] = [lambda honest: honest, returns]
    summary = run.run()
    assert [event["institution"] for event in events(run.path, "back")] == ["north"]
    assert summary["zero_shot"]["iou"]["polyp"] is None
    assert [row[0] for row in summary["matrix"]["iou"]] == [None, 0.5]


def test_nobody_who_can_evaluate_ends_the_run(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run", deadlines={"evaluate": 0.2})
    for site in run.sites.values():
        site.script["evaluate.stage"] = [stays_silent]
    with pytest.raises(RunError, match="stage 0: no institution could evaluate; their own logs say why"):
        run.run()


# --- Resuming --------------------------------------------------------------------------------------------


class PowerCutError(BaseException):
    """Nothing that the product catches."""


def cut(run: Scripted, module: Any, name: str, at: int, *, after: bool) -> None:
    """Run until the power goes at the n-th call of a function, before or after it did its work."""
    whole: Callable[..., Any] = getattr(module, name)
    calls = 0

    def cutting(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        done = whole(*args, **kwargs) if calls != at or after else None
        if calls == at:
            raise PowerCutError
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, cutting)
        with pytest.raises(PowerCutError):
            run.run()


CUTS = {
    "before anything was measured": (server.stream, "save", 1, False),
    "after the zero-shot measure": (server.stream, "save", 1, True),
    "in the middle of the first stage": (server.stage, "learn_layer", 1, True),
    "with an entry in the bank and no state that names it": (server.stream, "save", 2, False),
    "with a learned task that nobody was evaluated on": (server.stream, "save", 2, True),
    "after an evaluation that is on no disk": (server.stream, "save", 3, False),
    "between two stages": (server.stream, "save", 3, True),
    "before the last figures were written": (server.stream, "write_results", 1, False),
}


@pytest.mark.parametrize(("module", "name", "at", "after"), CUTS.values(), ids=list(CUTS))
@pytest.mark.parametrize("method", ["casam", "sequential", "ewc"])
def test_wherever_the_power_goes_the_end_is_the_same(
    tmp_path: Path, module: Any, name: str, at: int, after: bool, method: str
) -> None:
    broken, whole = (scripted(tmp_path / name, method=method) for name in ("cut", "whole"))
    cut(broken, module, name, at, after=after)
    assert not (broken.path / "summary.json").exists()
    broken.run(resume=True)
    whole.run()
    assert result(broken.path) == result(whole.path)
    lines = [json.loads(line) for line in (broken.path / "events.jsonl").read_text().splitlines()]
    assert lines[-1]["event"] == "end"
    assert sum(line["event"] == "start" for line in lines) == 2


@pytest.mark.parametrize("method", ["casam", "sequential"])
def test_an_entry_that_was_sent_is_not_learned_again(tmp_path: Path, method: str) -> None:
    """Not even where its holders would train another layer now, or none."""
    run = scripted(tmp_path / "run", method=method)
    cut(run, server.stream, "save", 3, after=False)
    sent = run.sites["west"].copy.copy()
    assert len(sent) == 1
    run.sites["north"].script["train.align"] = [refuses("rounds-spent")] * 9
    run.run(resume=True)
    assert run.sites["north"].kinds().count("train.align") == 1
    assert {task: run.sites["west"].copy[task] for task in sent} == sent or method == "sequential"
    assert result(run.path)["holders"]["polyp"] == ["north"]


def test_a_resumed_run_counts_on(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    run.sites["north"].script["train.align"] = [refuses("rounds-spent")]
    cut(run, server.stream, "save", 3, after=True)
    summary = run.run(resume=True)
    assert summary["privacy"]["north"]["refusals"] == {"rounds-spent": 1}
    assert summary["privacy"]["north"]["releases"] == 4  # a refusal, three evaluations
    assert [event["stage"] for event in events(run.path, "resumed")] == [1]


def test_who_went_away_before_the_cut_is_remembered_after_it(tmp_path: Path) -> None:
    """north's test images stay part of what a mean over everybody would need: null, and not fewer images."""
    stream = {"stream": ["polyp", "histology", "cardiac_mr"], **SKIP}
    broken, whole = (scripted(tmp_path / name, **stream) for name in ("cut", "whole"))
    broken.sites["north"].gone_at = whole.sites["north"].gone_at = 2
    cut(broken, server.stream, "save", 5, after=True)
    assert broken.run(resume=True)["matrix"]["iou"][-1][0] is None
    whole.run()
    assert result(broken.path) == result(whole.path)


def test_an_entry_that_was_lost_meanwhile_is_not_made_up(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    cut(run, server.stream, "save", 2, after=True)
    Bank.open(run.path / "bank").remove("polyp")
    with pytest.raises(RunError, match="the entry of polyp is missing since the run stopped"):
        run.run(resume=True)
