"""One exchange with some institutions: a request each, their answers or why there is none.

Flower's own send_and_receive waits three seconds between polls, and matching by node is not safe
(an error of a dead node comes from the SuperLink); so requests are pushed, and replies are matched
by message id until the deadline.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Generic, TypeVar

import httpx
from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from casam_core.errors import RunError
from casam_core.protocol.answer_check import AnswerError
from casam_core.protocol.payload import Outcome, Payload
from casam_core.protocol.wire import from_records, serialise, to_records
from server.federation.polling import LONGEST_POLL_SECONDS, pause

PATIENCE_SECONDS = 120.0
"""How long the SuperLink may be out of reach. Flower tries again by itself, but not where TLS is what timed
out, as it does on an overloaded machine."""

UNREACHABLE = "unreachable"
"""The node that was asked is gone, or its process died."""

WORKER_DIED = "ray.exceptions.ActorDiedError"
"""Stands in the reason of an error when it was a simulation's worker."""

REJECTED = "rejected"
"""What came is not what may come (server/defence/admission.py)."""

BUNDLE_REFUSED = "bundle-refused"
"""A site's launcher pins another bundle (client/node/launcher.py)."""

LONGEST_REASON = 200
"""Names in it come from whoever sent them."""

LONGEST_INCIDENT = 64
"""Honest incident numbers are shorter."""

GRACE = 60.0
"""How much longer than its deadline a message lives in Flower, which would else drop what is just in time."""

Check = Callable[[str, Payload, int], None]
"""Raises AnswerError for a result that may not count: (from whom, what, bytes)."""

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One message: to whom, of which Flower type, with what."""

    to: str
    node: int
    kind: str
    payload: Payload


@dataclass(frozen=True)
class Answer(Generic[T]):
    """outcome: a word of Outcome, `no-answer`, `unreachable`, `unreadable`, `rejected` or `bundle-refused`.
    reply is set iff ok. payload, bytes, request: what arrived, its size, the id of the request it answers.
    reason: why it was rejected."""

    to: str
    outcome: str
    reply: T | None = None
    incident: str = ""
    payload: Payload | None = None
    bytes: int = 0
    request: str = ""
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether there is a result."""
        return self.outcome == Outcome.OK

    @property
    def refused(self) -> bool:
        """Whether the institution decided not to answer."""
        return self.outcome in Outcome.REFUSALS


@dataclass
class Traffic:
    """Bytes of serialised records per institution: up = from the institution, down = to it."""

    up: dict[str, int] = field(default_factory=dict)
    down: dict[str, int] = field(default_factory=dict)

    def add(self, direction: dict[str, int], institution: str, count: int) -> None:
        """Count some bytes."""
        direction[institution] = direction.get(institution, 0) + count


def exchange(
    grid: Grid,
    requests: Iterable[Request],
    *,
    of: Callable[[Payload], T],
    deadline: float,
    traffic: Traffic,
    heard: Callable[[Answer[T]], None] = lambda answer: None,
    check: Check = lambda to, payload, size: None,
    enough: Callable[[Mapping[str, Answer[T]]], bool] = lambda answers: False,
    at_once: int | None = None,
) -> dict[str, Answer[T]]:
    """Send every request and wait at most `deadline` seconds for the answers, which `of` reads.

    Returns one Answer per request by institution, in the order of the requests, so that whatever is
    summed over them is summed in one order. `heard` is told of each answer as it comes; `check` is shown
    every result with its bytes before it is read, and rejects it by an AnswerError.
    `enough` ends the waiting early; it is shown what has come. at_once: so many requests are under way, the
    others wait for answers to these (None: all are).
    """
    unsent = deque(requests)
    order = [request.to for request in unsent]
    begun = time.monotonic()
    end = begun + deadline
    waiting: dict[str, str] = {}
    answers: dict[str, Answer[T]] = {}
    while unsent or waiting:
        left = end - time.monotonic()
        room = len(unsent) if at_once is None else min(len(unsent), at_once - len(waiting))
        if left > 0:  # what nobody would wait for is not asked
            waiting |= send(grid, [unsent.popleft() for _ in range(room)], left, traffic)
        for message in patiently(partial(grid.pull_messages, list(waiting))):
            answer = read(waiting.pop(message.metadata.reply_to_message_id), message, traffic, of, check)
            answers[answer.to] = answer
            heard(answer)
        if (unsent or waiting) and (time.monotonic() > end or enough(answers)):
            break
        if waiting:
            time.sleep(pause(time.monotonic() - begun, bool(unsent)))
    for to in order:
        if to not in answers:
            answers[to] = Answer(to, "no-answer")
            heard(answers[to])
    return {to: answers[to] for to in order}


def send(grid: Grid, requests: Sequence[Request], seconds: float, traffic: Traffic) -> dict[str, str]:
    """Push requests that may be answered for so many seconds; to whom each went, by message id."""
    messages = []
    for request in requests:
        records = to_records(request.payload)
        traffic.add(traffic.down, request.to, len(serialise(records)))
        messages.append(
            Message(records, dst_node_id=request.node, message_type=request.kind, ttl=seconds + GRACE)
        )
    sent = patiently(lambda: grid.push_messages(messages)) if messages else ()
    return {message_id: request.to for message_id, request in zip(sent, requests, strict=True) if message_id}


def patiently(call: Callable[[], T]) -> T:
    """Try again while no connection can be made: then nothing was sent, and nothing is done twice."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return call()
        except (httpx.ConnectTimeout, httpx.ConnectError):
            if time.monotonic() > end:
                raise
            time.sleep(LONGEST_POLL_SECONDS)


def read(
    to: str,
    message: Message,
    traffic: Traffic,
    of: Callable[[Payload], T],
    check: Check = lambda to, payload, size: None,
) -> Answer[T]:
    """What a reply says; a reply that is not of our making is an outcome, not an exception.

    Raises RunError when a simulation's worker died: Flower goes on handing it messages and starts no other,
    so whether an institution answers would be chance from then on.
    """
    if message.has_error():
        if WORKER_DIED in (message.error.reason or ""):
            raise RunError(
                f"{to}: the worker process of the simulation died (killed, or no memory left for it); "
                "`casam run --resume RUN` goes on behind the last finished stage"
            )
        return Answer(to, BUNDLE_REFUSED if message.error.code == ErrorCode.INVALID_FAB else UNREACHABLE)
    size = len(serialise(message.content))
    traffic.add(traffic.up, to, size)
    try:
        payload = from_records(message.content)
        if not all(type(value) in (str, int, float, bool) for value in payload.config.values()):
            return Answer(to, "unreadable")
        arrived = Answer[T](
            to,
            Outcome.FAILED,
            incident=str(payload.config.get("incident", ""))[:LONGEST_INCIDENT],
            payload=payload,
            bytes=size,
            request=message.metadata.reply_to_message_id,
        )
        outcome = str(payload.config.get("outcome", Outcome.FAILED))
        if outcome != Outcome.OK:
            return replace(arrived, outcome=outcome) if outcome in Outcome.ALL else arrived
        try:
            check(to, payload, size)
        except AnswerError as error:
            return replace(arrived, outcome=REJECTED, reason=str(error)[:LONGEST_REASON])
        return replace(arrived, outcome=outcome, reply=of(payload))
    except Exception:  # what reading other names, types and shapes raises is open-ended
        return Answer(to, "unreadable")


def all_settled(answers: Mapping[str, Answer[T]]) -> bool:
    """Whether asking again changes nothing: everybody decided not to answer, or is not to be believed."""
    return all(answer.refused or answer.outcome == REJECTED for answer in answers.values())


def results(answers: Mapping[str, Answer[T]]) -> dict[str, T]:
    """What those said that answered, by institution."""
    return {to: answer.reply for to, answer in answers.items() if answer.reply is not None}
