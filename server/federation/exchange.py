"""One exchange: a request to each of several nodes, and their answers or why there is none.

Flower's own send_and_receive waits three seconds between polls. Matching replies by node is not safe either,
because the SuperLink itself answers for a dead node. So requests are pushed, and replies are matched by
message id until the deadline.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import httpx
from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from casam_core.errors import RunError
from casam_core.protocol.limits import AnswerError
from casam_core.protocol.outcomes import REFUSALS, WORDS, Outcome
from casam_core.protocol.payload import Payload
from casam_core.protocol.wire import from_records, serialise, to_records
from server.federation.counters import Traffic

PATIENCE_SECONDS = 120.0
"""How long the SuperLink may be out of reach. Flower tries again by itself, but not where TLS timed out, as
it does on an overloaded machine."""

CANNOT_CONNECT = (httpx.ConnectTimeout, httpx.ConnectError)
"""Nothing was sent: to try again does nothing twice."""

POLL_SECONDS, POLL_SHARE, LONGEST_POLL_SECONDS = 0.02, 0.05, 1.0
"""The server polls less and less often: a pause is this share of the time waited so far, within bounds. So
polling makes an exchange at most that much longer."""

PER_CORE, FEWEST = 4, 24
"""Open requests of a simulation: enough that no core waits for the next one, which takes a tenth of a second
to arrive."""

UNREACHABLE = "unreachable"
"""The node that was asked is gone, or its process died."""

NO_ANSWER = "no-answer"
"""Nothing came before the deadline."""

UNREADABLE = "unreadable"
"""What came is not of our making."""

REJECTED = "rejected"
"""The result does not count (server/defence/admission.py)."""

BUNDLE_REFUSED = "bundle-refused"
"""A site's launcher pins another bundle (client/node/launcher.py)."""

WORKER_DIED = "ray.exceptions.ActorDiedError"
"""Part of the reason of an error when a simulation's worker died."""

LONGEST_REASON = 200
"""Names in it come from whoever sent them."""

LONGEST_INCIDENT = 64
"""Honest incident numbers are shorter."""

GRACE = 60.0
"""Seconds that a message lives in Flower beyond its deadline, so that an answer just in time is not lost."""

Check = Callable[[str, Payload, int], None]
"""Raises AnswerError for a result that may not count: (institution, payload, bytes)."""

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One message: to whom, to which node, of which Flower type, with what."""

    to: str
    node: int
    kind: str
    payload: Payload


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What became of one request.

    outcome: a word of Outcome, or UNREACHABLE, NO_ANSWER, UNREADABLE, REJECTED or BUNDLE_REFUSED. reply: set
    if and only if the outcome is ok. payload, bytes, request: what arrived, its size, the id of the request
    that it answers. reason: why it was rejected.
    """

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
        return self.outcome in REFUSALS


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
    """Send every request and wait for the answers.

    Args:
        requests: what is sent; every `to` stands once.
        deadline: seconds from now. A request that finds no room before is not sent.
        heard: called with each answer as it comes.
        check: called with every result before it is read; it rejects one by an AnswerError.
        enough: called with the answers so far; True ends the waiting early.
        at_once: most open requests; the others wait for answers to these. None: no limit.

    Returns:
        One answer per request, in the order of the requests, so that sums over them have one order.

    Raises:
        RunError: a simulation's worker died.
        httpx.ConnectError, httpx.ConnectTimeout: the SuperLink stayed out of reach for PATIENCE_SECONDS.
    """
    unsent = deque(requests)
    answers = {request.to: Answer[T](request.to, NO_ANSWER) for request in unsent}
    begun = reached = time.monotonic()
    waiting: dict[str, str] = {}
    while unsent or waiting:
        left = begun + deadline - time.monotonic()
        batch = next_batch(unsent, waiting, at_once, left)
        messages = [message_of(request, left) for request in batch]
        try:
            sent = grid.push_messages(messages) if messages else ()
            for message_id, message in zip(sent, messages, strict=True):
                to = unsent.popleft().to
                waiting[message_id] = to
                traffic.add(traffic.down, to, len(serialise(message.content)))
            waiting.pop("", None)  # Flower gives no id to a message that it could not store
            arrived = grid.pull_messages(list(waiting))
        except CANNOT_CONNECT:
            if time.monotonic() > reached + PATIENCE_SECONDS:
                raise
            time.sleep(LONGEST_POLL_SECONDS)
            continue
        reached = time.monotonic()
        for message in arrived:
            answer = read(waiting.pop(message.metadata.reply_to_message_id), message, traffic, of, check)
            answers[answer.to] = answer
            heard(answer)
        if time.monotonic() > begun + deadline or enough(answers):
            break
        if waiting:
            time.sleep(pause(time.monotonic() - begun, bool(unsent)))
    for answer in answers.values():
        if answer.outcome == NO_ANSWER:
            heard(answer)
    return answers


def next_batch(
    unsent: Iterable[Request], waiting: Collection[str], at_once: int | None, seconds: float
) -> list[Request]:
    """The next requests that find room beside those that wait for an answer; none after the deadline."""
    if seconds <= 0:
        return []
    return list(islice(unsent, None if at_once is None else at_once - len(waiting)))


def message_of(request: Request, seconds: float) -> Message:
    """A Flower message that can be answered for `seconds`."""
    records = to_records(request.payload)
    return Message(records, dst_node_id=request.node, message_type=request.kind, ttl=seconds + GRACE)


def at_once() -> int | None:
    """Most open requests in a simulation; None in deployment, where every institution begins at once.

    Flower's simulation engine looks, ten times a second and for every node, at every open message
    (InMemoryLinkState.get_message_ins): with a thousand of them one core does nothing else. Ray runs in this
    process only under that engine.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    return max(FEWEST, PER_CORE * int(ray.cluster_resources().get("CPU", 1)))


def pause(waited: float, unsent: bool) -> float:
    """Seconds until the next poll, after `waited` seconds. unsent: answers make room for other requests."""
    return POLL_SECONDS if unsent else min(max(POLL_SECONDS, POLL_SHARE * waited), LONGEST_POLL_SECONDS)


def patiently(call: Callable[[], T]) -> T:
    """Call again while no connection can be made, for PATIENCE_SECONDS."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return call()
        except CANNOT_CONNECT:
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
    """The answer in a message. A message that is not of our making is an outcome, not an exception.

    Raises:
        RunError: a simulation's worker died. Flower goes on handing it messages and starts no other, so
            chance would decide from then on which institutions answer.
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
            return Answer(to, UNREADABLE)
        outcome, reply, reason = judge(to, payload, size, of, check)
        incident = str(payload.config.get("incident", ""))[:LONGEST_INCIDENT]
    except Exception:  # what reading other names, types and shapes raises is open-ended
        return Answer(to, UNREADABLE)
    return Answer(to, outcome, reply, incident, payload, size, message.metadata.reply_to_message_id, reason)


def judge(
    to: str, payload: Payload, size: int, of: Callable[[Payload], T], check: Check
) -> tuple[str, T | None, str]:
    """(outcome, result if it is ok, reason if it is rejected) of a payload."""
    outcome = str(payload.config.get("outcome", Outcome.FAILED))
    if outcome != Outcome.OK:
        return outcome if outcome in WORDS else Outcome.FAILED, None, ""
    try:
        check(to, payload, size)
    except AnswerError as error:
        return REJECTED, None, str(error)[:LONGEST_REASON]
    return outcome, of(payload), ""


def all_settled(answers: Mapping[str, Answer[T]]) -> bool:
    """Whether to ask again would change nothing: all refused, or sent results that do not count."""
    return all(answer.refused or answer.outcome == REJECTED for answer in answers.values())


def results(answers: Mapping[str, Answer[T]]) -> dict[str, T]:
    """The results, by institution."""
    return {to: answer.reply for to, answer in answers.items() if answer.reply is not None}
