"""One exchange: replies matched by message id, counted bytes, named outcomes, no waiting for ever."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from flwr.app import Error, Message, RecordDict

from casam_core.protocol.messages import AlignReply
from casam_core.protocol.payload import Payload
from casam_core.protocol.wire import serialise, to_records
from scenarios.engines.inprocess import InProcessGrid, set_id
from server.federation import exchange as exchanges
from server.federation.counters import Traffic
from server.federation.exchange import Answer, Request, at_once, exchange, patiently, pause, read


class ScriptedGrid(InProcessGrid):
    """Answers as the test says: a payload, an error, or silence."""

    def __init__(self, script: dict[int, Payload | str | None]) -> None:
        super().__init__(0, {})
        self.script = script

    def get_node_ids(self) -> Iterable[int]:
        return list(self.script)

    def _deliver(self, message: Message) -> str:
        message_id = set_id(message)
        answer = self.script[message.metadata.dst_node_id]
        if isinstance(answer, Payload):
            self._replies[message_id] = Message(to_records(answer), reply_to=message)
        elif isinstance(answer, str):
            self._replies[message_id] = Message(Error(2, answer), reply_to=message)
        return message_id


ASK = Payload({"institution": "a", "stage": 1, "task": "", "round": 1})
OK = Payload(
    {"outcome": "ok"}, {"layer": {"w": np.arange(3, dtype=np.float32)}}, {"align": {"num-examples": 3}}
)


def ask(
    script: dict[int, Payload | str | None], deadline: float = 0.3
) -> tuple[dict[str, Answer[AlignReply]], Traffic]:
    traffic = Traffic()
    requests = [Request(f"site-{node}", node, "train.align", ASK) for node in script]
    grid = ScriptedGrid(script)
    return exchange(grid, requests, of=AlignReply.of, deadline=deadline, traffic=traffic), traffic


def test_an_answer_carries_its_reply() -> None:
    answers, _ = ask({1: OK})
    reply = answers["site-1"].reply
    assert answers["site-1"].ok
    assert reply is not None
    np.testing.assert_array_equal(reply.layer["w"], [0, 1, 2])


@pytest.mark.parametrize(
    "reply",
    [
        Payload({"outcome": "ok"}),
        Payload({"outcome": "ok"}, OK.arrays),
        Payload({"outcome": "ok"}, OK.arrays, {"align": {"images": 3}}),
    ],
)
def test_a_reply_of_another_shape_is_an_outcome(reply: Payload) -> None:
    answers, _ = ask({1: reply, 2: OK})
    assert answers["site-1"] == Answer("site-1", "unreadable")
    assert answers["site-2"].ok


def test_a_reply_without_settings_is_an_outcome() -> None:
    InProcessGrid(0, {})  # Message() asks who is sending
    stranger = Message(RecordDict(), dst_node_id=1, message_type="train")
    assert read("site-1", stranger, Traffic(), AlignReply.of) == Answer("site-1", "unreadable")


def test_silence_ends_at_the_deadline_with_an_outcome() -> None:
    start = time.monotonic()
    answers, _ = ask({1: None, 2: OK}, deadline=0.2)
    assert time.monotonic() - start < 2
    assert answers["site-1"].outcome == "no-answer"
    assert answers["site-2"].ok


def test_an_error_of_the_node_is_unreachable_and_its_text_goes_nowhere() -> None:
    answers, _ = ask({1: "patient 17 on /data/secret.png"})
    assert answers["site-1"] == Answer("site-1", "unreachable")


def test_a_refusal_keeps_its_word_and_incident() -> None:
    answers, _ = ask({1: Payload({"outcome": "bad-data", "incident": "beef"})})
    answer = answers["site-1"]
    assert (answer.outcome, answer.incident, answer.reply) == ("bad-data", "beef", None)
    assert not answer.refused
    assert answer.bytes > 0


def test_a_word_outside_the_closed_list_is_unreadable() -> None:
    answers, _ = ask({1: Payload({"outcome": "patient 17"}), 2: Payload({})})
    assert [answer.outcome for answer in answers.values()] == ["unreadable", "unreadable"]


def test_answers_stand_in_the_order_of_the_requests() -> None:
    answers, _ = ask({3: OK, 1: None, 2: OK}, deadline=0.1)
    assert list(answers) == ["site-3", "site-1", "site-2"]


def test_bytes_are_those_of_the_serialised_records() -> None:
    _, traffic = ask({1: OK})
    assert traffic.down == {"site-1": len(serialise(to_records(ASK)))}
    assert traffic.up == {"site-1": len(serialise(to_records(OK)))}


class CountingGrid(ScriptedGrid):
    """Notes how many requests are under way after every push; one is answered per look."""

    under_way: list[int]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(super().push_messages(messages))
        self.under_way.append(len(self._replies))
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return super().pull_messages(list(message_ids)[:1])


@pytest.mark.parametrize(("at_once", "most"), [(None, 5), (2, 2), (1, 1), (9, 5)])
def test_no_more_requests_are_under_way_than_may_be(at_once: int | None, most: int) -> None:
    grid = CountingGrid(dict.fromkeys(range(1, 6), OK))
    grid.under_way = []
    requests = [Request(f"site-{node}", node, "train.align", ASK) for node in grid.script]
    traffic = Traffic()
    answers = exchange(grid, requests, of=AlignReply.of, deadline=5, traffic=traffic, at_once=at_once)
    assert max(grid.under_way) == most
    assert list(answers) == [request.to for request in requests]
    assert all(answer.ok for answer in answers.values())
    assert traffic.down == {f"site-{node}": len(serialise(to_records(ASK))) for node in grid.script}


def test_a_request_that_found_no_room_before_the_deadline_is_not_answered_and_not_counted() -> None:
    grid = ScriptedGrid({1: None, 2: OK})
    requests = [Request(f"site-{node}", node, "train.align", ASK) for node in grid.script]
    traffic = Traffic()
    answers = exchange(grid, requests, of=AlignReply.of, deadline=0.1, traffic=traffic, at_once=1)
    assert [answer.outcome for answer in answers.values()] == ["no-answer", "no-answer"]
    assert traffic.down.keys() == {"site-1"}


def test_a_refused_bundle_is_an_outcome_of_its_own() -> None:
    """A site's launcher pins another; Flower answers in its place."""
    message = Message(RecordDict(), dst_node_id=1, message_type="query.identify")
    refused = Message(Error(7, "The FAB could not be verified."), reply_to=message)
    assert read("north", refused, Traffic(), AlignReply.of).outcome == "bundle-refused"


class UnreachableGrid(ScriptedGrid):
    """No connection can be made, the first `faults` times."""

    faults = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        if self.faults:
            self.faults -= 1
            raise httpx.ConnectTimeout("_ssl.c:975: The handshake operation timed out")
        return super().push_messages(messages)


def test_requests_that_did_not_leave_are_sent_again_and_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "LONGEST_POLL_SECONDS", 0.001)
    grid, traffic = UnreachableGrid({1: OK, 2: OK}), Traffic()
    grid.faults = 3
    requests = [Request(f"site-{node}", node, "train.align", ASK) for node in grid.script]
    answers = exchange(grid, requests, of=AlignReply.of, deadline=5, traffic=traffic)
    assert all(answer.ok for answer in answers.values())
    assert traffic.down == {f"site-{node}": len(serialise(to_records(ASK))) for node in grid.script}


@pytest.mark.parametrize("fault", [httpx.ConnectError("refused"), httpx.ReadTimeout("late")])
def test_an_exchange_ends_where_the_superlink_stays_away_or_may_have_been_reached(
    monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    monkeypatch.setattr(exchanges, "LONGEST_POLL_SECONDS", 0.001)
    monkeypatch.setattr(exchanges, "PATIENCE_SECONDS", 0.05)
    grid, calls = ScriptedGrid({1: OK}), []

    def push(messages: Iterable[Message]) -> Iterable[str]:
        calls.append(1)
        raise fault

    monkeypatch.setattr(grid, "push_messages", push)
    with pytest.raises(type(fault)):
        exchange(grid, [Request("a", 1, "train.align", ASK)], of=AlignReply.of, deadline=5, traffic=Traffic())
    assert (len(calls) == 1) == isinstance(fault, httpx.ReadTimeout)


def test_a_superlink_out_of_reach_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "LONGEST_POLL_SECONDS", 0.001)
    faults: list[Exception] = [httpx.ConnectTimeout("_ssl.c:975: The handshake operation timed out")] * 3

    def call() -> str:
        if faults:
            raise faults.pop()
        return "reached"

    assert patiently(call) == "reached"


def test_a_superlink_that_stays_away_ends_the_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "LONGEST_POLL_SECONDS", 0.001)
    monkeypatch.setattr(exchanges, "PATIENCE_SECONDS", 0.05)

    def call() -> str:
        raise httpx.ConnectError("refused")

    with pytest.raises(httpx.ConnectError):
        patiently(call)


@pytest.mark.parametrize("fault", [httpx.ReadTimeout("late"), httpx.WriteError("torn")])
def test_what_may_have_arrived_is_not_sent_twice(fault: Exception) -> None:
    calls = []

    def call() -> str:
        calls.append(1)
        raise fault

    with pytest.raises(type(fault)):
        patiently(call)
    assert len(calls) == 1


# --- How often the server polls, and how many requests are open ------------------------------------------


def test_a_pause_is_a_twentieth_of_what_was_waited_within_bounds() -> None:
    assert pause(0.1, unsent=False) == 0.02
    assert pause(2.0, unsent=False) == pytest.approx(0.1)
    assert pause(600.0, unsent=False) == 1.0


def test_while_requests_wait_for_room_answers_are_looked_for_at_once() -> None:
    assert pause(600.0, unsent=True) == 0.02


@pytest.mark.parametrize(("cores", "want"), [(None, 24), (2, 24), (6, 24), (64, 256)])
def test_a_simulation_asks_a_few_per_core(
    monkeypatch: pytest.MonkeyPatch, cores: int | None, want: int
) -> None:
    monkeypatch.setitem(sys.modules, "flwr.simulation", SimpleNamespace())
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert at_once() == want


def test_real_sites_all_begin_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "flwr.simulation", raising=False)
    assert at_once() is None
