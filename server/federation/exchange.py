"""One exchange: a request to each of several nodes, and for each an answer or the reason why none came.

Flower's own send_and_receive waits three seconds between polls. It is not safe to match replies by node,
because the SuperLink itself answers for a dead node. This module therefore pushes the requests and matches
replies by message id until the deadline.
"""

from __future__ import annotations

import os
import re
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

from casam_core.errors import RunError, plain
from casam_core.protocol.limits import Allowed, AnswerError
from casam_core.protocol.messages import ENVELOPE
from casam_core.protocol.outcomes import REFUSALS, WORDS, NoResult, Outcome
from casam_core.protocol.payload import AUDIT, Payload
from casam_core.protocol.schema import Text
from casam_core.protocol.wire import from_records, serialise, to_records
from server.federation.counters import Traffic

PATIENCE_SECONDS = 120.0
"""How long the SuperLink may be out of reach. Flower itself tries again, but not after a timeout of TLS, as
it happens on an overloaded machine."""

CANNOT_CONNECT = (httpx.ConnectTimeout, httpx.ConnectError)
"""Errors after which nothing was sent, so it is safe to try again."""

POLL_SECONDS, POLL_SHARE, LONGEST_POLL_SECONDS = 0.02, 0.05, 1.0
"""The server polls less and less often: a pause is POLL_SHARE of the time waited so far, between the other
two values. An exchange is longer by at most this share."""

WORKER_DIED = "ray.exceptions.ActorDiedError"
"""Part of the reason of an error when a simulation's worker died."""

INCIDENT = re.compile("[0-9a-f]{4,16}")
NO_NUMBER = "unnumbered"
"""Stands for an incident number that is none (client/node/incidents.py)."""

REFUSAL = Allowed(
    {
        "outcome": lambda value: value in WORDS,
        "incident": lambda value: isinstance(value, str),
        "code": Text("[0-9a-f]{16}").fits,
        AUDIT: ENVELOPE[AUDIT],
    }
)
"""What an institution may send instead of a result."""

GRACE = 60.0
"""Seconds that Flower keeps a message after its deadline, so that an answer just in time is not lost."""

Check = Callable[[str, Payload, int], None]
"""(institution, payload, bytes) -> None; raises AnswerError for an invalid result."""

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One message. to: the institution. node: its node id. kind: Flower's message type. payload: content."""

    to: str
    node: int
    kind: str
    payload: Payload


@dataclass(frozen=True)
class Answer(Generic[T]):
    """The result of one request.

    outcome: a word of Outcome or NoResult. reply: set if and only if the outcome is ok. payload: as it
    arrived. bytes: its size. request: id of the message that it answers. reason: why it was rejected.
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
        requests: the requests; every `to` occurs once.
        of: reads a reply from a payload.
        deadline: seconds from now. Requests that still wait for room then are not sent.
        traffic: counts the bytes of requests and answers.
        heard: called with each answer when it arrives.
        check: called with every result before it is read; raises AnswerError to reject it.
        enough: called with the answers so far; True ends the exchange early.
        at_once: maximum number of open requests; the others wait. None: no limit.

    Returns:
        One answer per request, in the order of the requests, so that sums over them have one order.

    Raises:
        RunError: a simulation's worker died.
        httpx.ConnectError, httpx.ConnectTimeout: the SuperLink stayed out of reach for PATIENCE_SECONDS.
    """
    unsent = deque(requests)
    answers = {request.to: Answer[T](request.to, NoResult.NO_ANSWER) for request in unsent}
    begun = reached = time.monotonic()
    waiting: dict[str, Request] = {}
    while unsent or waiting:
        left = begun + deadline - time.monotonic()
        batch = next_batch(unsent, waiting, at_once, left)
        messages = [message_of(request, left) for request in batch]
        try:
            sent = grid.push_messages(messages) if messages else ()
            for message_id, message in zip(sent, messages, strict=True):
                waiting[message_id] = unsent.popleft()
                traffic.add(traffic.down, waiting[message_id].to, len(serialise(message.content)))
            waiting.pop("", None)  # Flower gives no id to a message that it could not store
            arrived = pulled(grid, waiting)
        except CANNOT_CONNECT:
            if time.monotonic() > reached + PATIENCE_SECONDS:
                raise
            time.sleep(LONGEST_POLL_SECONDS)
            continue
        reached = time.monotonic()
        for message_id, found in arrived.items():
            answer = read(waiting.pop(message_id).to, found, traffic, of, check)
            answers[answer.to] = answer
            heard(answer)
        if time.monotonic() > begun + deadline or enough(answers):
            break
        if waiting:
            time.sleep(pause(time.monotonic() - begun, bool(unsent)))
    for answer in answers.values():
        if answer.outcome == NoResult.NO_ANSWER:
            heard(answer)
    return answers


def pulled(grid: Grid, waiting: Mapping[str, Request]) -> dict[str, Message | None]:
    """The answers that are there, by the request's id; None: it cannot be rebuilt, or is another node's.

    Each is pulled alone. Flower rebuilds an answer from bytes of the sender's choice; an error in one would
    otherwise take the others of the same poll with it. Raises CANNOT_CONNECT if there is no answer yet.
    """
    found: dict[str, Message | None] = {}
    for message_id, request in waiting.items():
        try:
            for message in grid.pull_messages([message_id]):
                found[message_id] = message if answers_to(request, message_id, message) else None
        except httpx.HTTPError:
            if not found:
                raise
            break
        except Exception:  # rebuilding unknown bytes can raise any exception
            found[message_id] = None
    return found


def answers_to(request: Request, message_id: str, message: Message) -> bool:
    """Whether the message is the answer of the node that was asked; Flower itself answers with errors."""
    about = message.metadata
    return message.has_error() or (about.src_node_id, about.reply_to_message_id) == (request.node, message_id)


def next_batch(
    unsent: Iterable[Request], waiting: Collection[str], at_once: int | None, seconds: float
) -> list[Request]:
    """The next requests to send, up to `at_once` open ones; none after the deadline."""
    if seconds <= 0:
        return []
    return list(islice(unsent, None if at_once is None else at_once - len(waiting)))


def message_of(request: Request, seconds: float) -> Message:
    """A Flower message that can be answered for `seconds`."""
    records = to_records(request.payload)
    return Message(records, dst_node_id=request.node, message_type=request.kind, ttl=seconds + GRACE)


def at_once() -> int | None:
    """Maximum number of open requests in a simulation; None in deployment, where all nodes start at once.

    Flower's simulation engine checks every open message ten times a second for every node
    (InMemoryLinkState.get_message_ins). With a thousand messages this needs one whole core. Only the process
    that simulates nodes imports Flower's simulation package, and it does so before the first node exists.
    """
    return simulated_at_once() if "flwr.simulation" in sys.modules else None


def simulated_at_once() -> int:
    """A request takes a tenth of a second to arrive; with so many under way no core waits for it."""
    return max(24, 4 * (os.cpu_count() or 1))


def pause(waited: float, unsent: bool) -> float:
    """Seconds until the next poll, after `waited` seconds. unsent: whether requests wait to be sent."""
    return POLL_SECONDS if unsent else min(max(POLL_SECONDS, POLL_SHARE * waited), LONGEST_POLL_SECONDS)


def patiently(call: Callable[[], T]) -> T:
    """Call the function again while it cannot connect, for at most PATIENCE_SECONDS."""
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
    message: Message | None,
    traffic: Traffic,
    of: Callable[[Payload], T],
    check: Check = lambda to, payload, size: None,
) -> Answer[T]:
    """The answer in a message. A message that cannot be read is an outcome, not an exception.

    No text of an answer that is no result goes further than this: its word is of a closed list, its incident
    has the form of a number, and anything else makes it unreadable.

    Raises:
        RunError: a simulation's worker died. Flower continues to send it messages and starts no other worker,
            so chance would decide from then on which institutions answer.
    """
    if message is None:
        return Answer(to, NoResult.UNREADABLE)
    if message.has_error():
        if WORKER_DIED in (message.error.reason or ""):
            raise RunError(
                f"{to}: the worker process of the simulation died (killed, or no memory left for it); "
                "`casam run --resume RUN` continues after the last finished stage"
            )
        refused = message.error.code == ErrorCode.INVALID_FAB
        return Answer(to, NoResult.BUNDLE_REFUSED if refused else NoResult.UNREACHABLE)
    size = len(serialise(message.content))
    traffic.add(traffic.up, to, size)
    try:
        payload = from_records(message.content)
        if not all(type(value) in (str, int, float, bool) for value in payload.config.values()):
            return Answer(to, NoResult.UNREADABLE)
        outcome, reply, reason = judge(to, payload, size, of, check)
        incident = str(payload.config.get("incident", ""))
        if incident and not INCIDENT.fullmatch(incident):
            incident = NO_NUMBER
    except Exception:  # reading unknown names, types and shapes can raise any exception
        return Answer(to, NoResult.UNREADABLE)
    return Answer(to, outcome, reply, incident, payload, size, message.metadata.reply_to_message_id, reason)


def judge(
    to: str, payload: Payload, size: int, of: Callable[[Payload], T], check: Check
) -> tuple[str, T | None, str]:
    """(outcome, reply if the outcome is ok, reason if it is rejected) of a payload. size: its bytes."""
    outcome = payload.config["outcome"]
    if outcome != Outcome.OK:
        REFUSAL.check(payload)
        return str(outcome), None, ""
    try:
        check(to, payload, size)
    except AnswerError as error:
        return NoResult.REJECTED, None, plain(str(error))
    return str(outcome), of(payload), ""


def all_settled(answers: Mapping[str, Answer[T]]) -> bool:
    """Whether asking again would change nothing: every institution refused or sent an invalid result."""
    return all(answer.refused or answer.outcome == NoResult.REJECTED for answer in answers.values())


def results(answers: Mapping[str, Answer[T]]) -> dict[str, T]:
    """The replies of successful answers, by institution."""
    return {to: answer.reply for to, answer in answers.items() if answer.reply is not None}
