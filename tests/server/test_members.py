"""The lower half of a relay answers for all its members together, or not at all."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from casam_core.bank.bank import Bank, bank_digest
from casam_core.bank.entry_file import digest_of
from casam_core.config.participation import DeadlineSpec, ParticipationSpec
from casam_core.config.policy import Policy
from casam_core.errors import CasamError, RunError, ScenarioError
from casam_core.protocol.messages import (
    AlignReply,
    AlignRequest,
    CalibrateReply,
    CalibrateRequest,
    EvaluateReply,
    EvaluateRequest,
    ForgetReply,
    ForgetRequest,
    Holding,
    RouterReply,
    RouterRequest,
)
from casam_core.protocol.payload import Job, Payload
from casam_core.protocol.relayed import Asked, MembersReply, MembersRequest
from casam_core.protocol.schema import Message
from server.federation.federation import Federation
from server.members import answered, serve_members
from server.run.run_folder import RunFolder
from server.stream import run_stream
from tests.banks import tiny_entry
from tests.runs import events
from tests.server.scripted import Scripted, boosts, dies, refuses, says, scripted

MEMBERS = {"east": ("histology",), "mid": ("histology", "cardiac_mr"), "west": ("histology",)}
IMAGES = {"east": 12, "mid": 12, "west": 36}
FITTED = {"router": {"kind": "gaussian"}}
ALIGN, EVALUATE = AlignReply.kind, EvaluateReply.kind


class Members(Scripted):
    """Three scripted members, and one server of theirs for all questions of a test."""

    def ask(self, kind: str, question: Message) -> Payload:
        """What the relay answers above."""
        return self.answer_to(kind, question.to_payload(), self.scenario.common_digest())

    def answer_to(self, kind: str, question: Payload, learned: str) -> Payload:
        """The same for a question of any content, from a relay with any scenario."""
        if not hasattr(self, "met"):
            self.met = self.federation()
        return answered(self.met, Asked(self.path, kind, learned, math.inf, question))

    def restart(self) -> None:
        """The relay's server comes back with an empty folder, and has met nobody yet."""
        self.path = self.path.with_name("again")
        self.write_register()
        self.met = Federation(self.grid, self.scenario, RunFolder(self.path))

    def word(self, kind: str, question: Message) -> str:
        """The one word of an answer that is no result."""
        answer = self.ask(kind, question)
        assert answer.config.keys() == {"outcome"}
        assert not answer.arrays
        return str(answer.config["outcome"])

    @property
    def reason(self) -> str:
        """What the relay's own events say about the last question without a result."""
        return str(events(self.path, "not-relayed")[-1]["reason"])


def members(path: Path, **changes: Any) -> Members:
    """East, mid and west; the last has three times as many images."""
    made = scripted(path, MEMBERS, relayed=True, **changes)
    made.sites["west"].holds = {"histology": (36, 4, 18)}
    return Members(made.path, made.scenario, made.sites, made.grid)


@pytest.fixture
def relay(tmp_path: Path) -> Members:
    return members(tmp_path)


def job(stage: int = 2, task: str = "histology") -> Job:
    return Job("north", stage, task)


def test_the_members_images_are_counted_together(relay: Members) -> None:
    answer = relay.ask(MembersReply.kind, MembersRequest())
    found = MembersReply.of(answer)
    assert (found.members, found.backbone) == (3, "a" * 64)
    assert found.holdings == {"histology": Holding(60, 12, 30), "cardiac_mr": Holding(12, 4, 6)}


def test_a_layer_is_the_mean_weighted_by_images(relay: Members) -> None:
    """Scripted institutions move every weight by 0.01, 0.02 and 0.03."""
    reply = AlignReply.of(relay.ask(ALIGN, AlignRequest(job())))
    assert reply.images == 60
    moved = relay.ask(ALIGN, AlignRequest(job(), layer={k: np.zeros_like(v) for k, v in reply.layer.items()}))
    expected = (12 * 0.01 + 12 * 0.02 + 36 * 0.03) / 60
    for weights in AlignReply.of(moved).layer.values():
        assert np.allclose(weights, expected)


@pytest.mark.parametrize(
    ("behaviour", "word", "reason"),
    [
        (refuses("adapter-not-shared"), "adapter-not-shared", "mid: not trained"),
        (refuses("failed"), "members-missing", "mid: not trained"),
        (dies, "members-missing", "mid: not trained"),
        (says(images=-1), "members-missing", "mid: not trained"),
        (boosts(100), "members-missing", "mid: not admitted"),
    ],
)
def test_a_round_without_one_of_the_members_is_none(
    relay: Members, behaviour: Any, word: str, reason: str
) -> None:
    """A policy's refusal is one above, too, so that asking again is no use; all else is a missing answer."""
    relay.sites["mid"].script[ALIGN] = [behaviour] * 3
    assert relay.word(ALIGN, AlignRequest(job())) == word
    assert relay.reason == f"RefusalError: {reason}"


def test_a_holder_that_says_nothing_of_frozen_sam_does_not_speak_against_the_layer(tmp_path: Path) -> None:
    """With noise a member tells no such bit; the entry falls back only if all who tell it say so."""
    relay = members(tmp_path, training={"rounds": 1, "fallback_to_identity": True})
    for worse, expected in ((["east"], True), (["east", "mid", "west"], False)):
        for name in worse:
            relay.sites[name].script[ALIGN] = [says(improved=False)]
        assert AlignReply.of(relay.ask(ALIGN, AlignRequest(job()))).improved is expected


def test_who_leaves_is_not_asked_to_learn_a_task_again(relay: Members) -> None:
    """Only the server above knows the stage in which that happens, so nobody could say if it has left."""
    relay.sites["west"].policy = Policy(leaves_at=3)
    assert relay.word(ALIGN, AlignRequest(job(), again=True)) == "members-missing"
    assert ALIGN not in relay.sites["west"].kinds()


def test_a_server_that_came_back_meets_its_members_before_it_answers(relay: Members) -> None:
    """Else a sum over nobody would be complete, and a deletion by nobody signed."""
    request = ForgetRequest(job(), "south", ("e" * 64,))
    relay.ask(EVALUATE, evaluation())
    relay.restart()
    assert relay.ask(ForgetReply.kind, request).config["outcome"] == "ok"
    assert all(site.kinds()[-1] == ForgetReply.kind for site in relay.sites.values())


def test_a_relay_with_another_scenario_gets_no_answer(relay: Members) -> None:
    other = relay.scenario.model_copy(update={"seed": 5}).common_digest()
    assert relay.answer_to(ALIGN, AlignRequest(job()).to_payload(), other).config == {"outcome": "bad-data"}
    assert relay.sites["west"].kinds() == []


def test_what_both_scenarios_may_differ_in(relay: Members) -> None:
    changes: dict[str, Any] = {
        "name": "above", "description": "x", "relayed": False,
        "institutions": relay.scenario.institutions[:1],
        "deadlines": DeadlineSpec(train=5), "participation": ParticipationSpec(quorum=2),
    }  # fmt: skip
    same = relay.scenario.model_copy(update=changes)
    assert same.common_digest() == relay.scenario.common_digest()
    training = relay.scenario.training.model_copy(update={"epochs": 7})
    assert same.model_copy(update={"training": training}).common_digest() != same.common_digest()


@pytest.mark.parametrize(
    ("changes", "policy"),
    [
        ({"training": {"strategy": "fedadam"}}, {}),
        ({"method": "joint"}, {}),
        ({}, {"metrics": "noisy", "budget": {"epsilon_metrics": 1.0, "delta": 1e-3}}),
        ({}, {"leaves_at": 2, "on_leave": "unlearn"}),
    ],
)
def test_what_a_relay_cannot_promise_is_refused(
    tmp_path: Path, changes: dict[str, Any], policy: dict[str, Any]
) -> None:
    relay = members(tmp_path, **changes)
    relay.sites["west"].policy = Policy.model_validate(policy)
    assert relay.word(MembersReply.kind, MembersRequest()) == "bad-data"


def test_a_scenario_must_say_that_its_server_is_a_relay_and_then_no_run_begins(relay: Members) -> None:
    plain = relay.scenario.model_copy(update={"relayed": False})
    with pytest.raises(ScenarioError, match="members approve that sums go to another server"):
        serve_members(relay.grid, plain, RunFolder(relay.path / "a"), None, relay.path / "box")
    with pytest.raises(ScenarioError, match="casam deploy run"):
        run_stream(relay.grid, relay.scenario, RunFolder(relay.path / "b"))


def test_a_relay_that_cannot_begin_leaves_its_reason_in_the_run_folder(relay: Members) -> None:
    """There `casam deploy run` finds it; Flower itself says only that the run failed."""
    relay.path.mkdir(exist_ok=True)
    (relay.path / "box").write_text("no folder")
    for name, scenario, reason in (
        ("a", relay.scenario, "expected a folder of questions"),
        ("b", relay.scenario.model_copy(update={"relayed": False}), "relayed: expected true"),
    ):
        folder = RunFolder(relay.path / name)
        with pytest.raises(CasamError, match=reason):
            serve_members(relay.grid, scenario, folder, None, relay.path / "box")
        (failed,) = events(folder.path, "failed")
        assert reason in failed["reason"]


def test_a_file_stop_of_an_earlier_day_is_named(relay: Members) -> None:
    (relay.path / "box").mkdir(parents=True)
    (relay.path / "box" / "stop").touch()
    with pytest.raises(RunError, match="delete it and start again"):
        serve_members(relay.grid, relay.scenario, RunFolder(relay.path / "a"), None, relay.path / "box")


def test_a_holder_that_is_not_there_yet_is_missing(relay: Members) -> None:
    relay.sites["east"].policy = Policy(joins_at=3)
    assert relay.word(ALIGN, AlignRequest(job())) == "members-missing"
    assert relay.reason == "RefusalError: east: trains on (), expected ('histology',)"


def test_statistics_are_added_and_a_router_is_fitted_to_their_sum(relay: Members) -> None:
    added = RouterReply.of(relay.ask(RouterReply.kind, RouterRequest(job(), alone=False)))
    assert (added.images, float(added.router["count"][0])) == (60, 60.0)
    whole = RouterReply.of(relay.ask(RouterReply.kind, RouterRequest(job(), alone=True)))
    assert np.allclose(whole.router["mean_F"], added.router["sum_F"] / 60)
    asked = [
        RouterRequest.of(payload).alone for kind, payload in relay.sites["mid"].asked if "router" in kind
    ]
    assert asked == [False, False], "a member describes its images alone only if it is the only holder"


def test_one_holder_among_the_members_describes_its_task_alone(relay: Members) -> None:
    relay.scenario = relay.scenario.model_copy(update={"stream": ["polyp", "cardiac_mr"]})
    relay.ask(RouterReply.kind, RouterRequest(job(task="cardiac_mr"), alone=True))
    ((_, asked),) = [sent for sent in relay.sites["mid"].asked if sent[0] == RouterReply.kind]
    assert RouterRequest.of(asked).alone


def test_histograms_are_added_and_give_one_threshold(tmp_path: Path) -> None:
    relay = members(tmp_path, **FITTED)
    added = RouterReply.of(relay.ask(RouterReply.kind, RouterRequest(job(), alone=False)))
    assert len(added.folds) == relay.scenario.router.folds
    histogram = CalibrateReply.of(relay.ask(CalibrateReply.kind, CalibrateRequest(job(), list(added.folds))))
    assert histogram.histogram.sum() == 60
    alone = RouterReply.of(relay.ask(RouterReply.kind, RouterRequest(job(), alone=True)))
    assert alone.threshold is not None


def evaluation(known: int = 0) -> EvaluateRequest:
    """Of stage 1, whose one entry is polyp's, in a bank without entries: its institution shares none."""
    return EvaluateRequest(Job("north", 1), known, [], bank_digest({}))


def test_scores_are_means_over_all_test_images(relay: Members) -> None:
    for name, iou in (("east", 0.5), ("mid", 0.6), ("west", 0.9)):
        relay.sites[name].iou = iou
    results = EvaluateReply.of(relay.ask(EVALUATE, evaluation())).results
    assert results["histology"].images == 30
    assert results["histology"].iou == pytest.approx((6 * 0.5 + 6 * 0.6 + 18 * 0.9) / 30)
    assert results["histology"].routes == {"identity": 30}
    assert results["cardiac_mr"].iou == pytest.approx(0.6)
    assert results["histology"].statistics is None


def test_of_a_task_all_holders_are_in_the_mean_or_it_is_left_out(relay: Members) -> None:
    relay.sites["east"].script[EVALUATE] = [refuses("metrics-not-shared")]
    assert set(EvaluateReply.of(relay.ask(EVALUATE, evaluation())).results) == {"cardiac_mr"}


def test_scores_that_nobody_tells_are_not_shared_and_those_that_fail_are_missing(relay: Members) -> None:
    for outcome, word in (("metrics-not-shared", "metrics-not-shared"), ("failed", "members-missing")):
        for site in relay.sites.values():
            site.script[EVALUATE] = [refuses(outcome)]
        assert relay.word(EVALUATE, evaluation()) == word


def test_one_failing_canary_fails_for_all(relay: Members) -> None:
    """All members hold images of an older task, histology; the candidate is polyp's entry."""
    entries = [tiny_entry(task) for task in ("histology", "polyp")]
    bank = bank_digest({entry.task: digest_of(entry.to_bytes()) for entry in entries})
    request = EvaluateRequest(
        Job("north", 2), 0, [e.to_bytes() for e in entries], bank, candidates=("polyp",)
    )
    assert EvaluateReply.of(relay.ask(EVALUATE, request)).canary is False
    failed = {"canary": {"failed": 1}}
    relay.sites["west"].script[EVALUATE] = [lambda said: replace(said, metrics={**said.metrics, **failed})]
    again = replace(request, known=2, entries=[])
    assert EvaluateReply.of(relay.ask(EVALUATE, again)).canary is True


def test_members_are_sent_only_the_entries_that_they_lack(relay: Members) -> None:
    """The relay keeps a copy of the bank; of what the server above took back, its members keep nothing."""
    first, second, other = tiny_entry("histology"), tiny_entry("polyp"), tiny_entry("polyp", seed=1)
    for known, sent in ((0, [first]), (1, [second]), (1, [other])):
        tasks = ([first] if known else []) + sent
        bank = bank_digest({entry.task: digest_of(entry.to_bytes()) for entry in tasks})
        request = EvaluateRequest(Job("north", 2), known, [entry.to_bytes() for entry in sent], bank)
        assert relay.ask(EVALUATE, request).config["outcome"] == "ok"
    asked = [EvaluateRequest.of(sent) for kind, sent in relay.sites["west"].asked if kind == EVALUATE]
    assert [(request.known, len(request.entries)) for request in asked] == [(0, 1), (1, 1), (1, 1)]
    assert Bank.open(relay.path / "bank").digest_of("polyp") == digest_of(other.to_bytes())
    assert relay.sites["west"].copy["polyp"] == digest_of(other.to_bytes())


def test_a_bank_of_another_digest_is_refused(relay: Members) -> None:
    assert relay.word(EVALUATE, replace(evaluation(), bank="0" * 64)) == "bank-mismatch"


def test_members_delete_and_sign_or_the_relay_does_not_say_so(relay: Members) -> None:
    request = ForgetRequest(job(), "south", ("e" * 64,))
    assert relay.ask(ForgetReply.kind, request).config["outcome"] == "ok"
    assert Bank.open(relay.path / "bank", create=True).tasks == ()
    relay.sites["west"].script[ForgetReply.kind] = [says(signature="0" * 128)]
    assert relay.word(ForgetReply.kind, request) == "members-missing"


def test_a_question_that_nobody_can_read_does_not_end_the_relay(relay: Members) -> None:
    for kind in (ALIGN, "train.unheard-of"):
        answer = relay.answer_to(kind, Payload({"stage": "two"}), relay.scenario.common_digest())
        assert answer.config == {"outcome": "failed"}
    assert EvaluateReply.of(relay.ask(EVALUATE, evaluation())).results
