"""Who is there: the institutions behind Flower's node ids, asked anew at every stage.

Node ids are random and change when a SuperNode restarts; an institution's name does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from dataclasses import dataclass, field

from flwr.serverapp import Grid

from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.errors import RunError, ScenarioError
from casam_core.protocol.fingerprint import code_fingerprint
from casam_core.protocol.messages import (
    SCHEMA,
    Forecast,
    Holding,
    IdentifyReply,
    IdentifyRequest,
)
from casam_core.protocol.payload import Outcome
from server.federation.exchange import BUNDLE_REFUSED, Answer, Request, Traffic, exchange, patiently
from server.federation.polling import at_once

POLL_SECONDS = 0.5
STRANGERS_SECONDS = 10.0
"""How long nodes are waited for that are not needed: one may claim an institution twice, or hang."""
BROKEN_SITE = ("bad-data", "bad-policy", "bad-checkpoint", "failed", "not-allowed", "unreadable")
SAME_CODE = "stop the local SuperLink (or update that node) and run again"


@dataclass(frozen=True)
class Member:
    """One institution that answered: its node, how many images it holds of each task, what it allows, and
    how many private rounds of each task it can afford. simulated: its privacy noise is seeded."""

    node: int
    holdings: dict[str, Holding]
    policy: Policy
    forecasts: dict[str, Forecast] = field(default_factory=dict)
    simulated: bool = False


@dataclass(frozen=True)
class Directory:
    """The institutions of the scenario, in its order."""

    members: dict[str, Member]
    backbone: str
    compute: str


def identify(
    grid: Grid,
    scenario: Scenario,
    run: str,
    traffic: Traffic,
    away: Collection[str] = (),
    told: Collection[int] = (),
) -> Directory:
    """Ask every node until all institutions of the scenario have answered.

    away: those that are not waited for, though welcome. told: nodes that should know the scenario. Where
    `participation.missing` is "skip", whoever has not answered after `deadlines.connect` seconds, or cannot
    open its data, is left out; else that raises RunError. So do two nodes that claim one institution, always,
    and another version of code, message schema, backbone or preprocessing. ScenarioError when a task of the
    stream is held by nobody.
    """
    wanted = [site.name for site in scenario.institutions]
    skip = scenario.participation.missing == "skip"
    broken: set[int] = set()
    request = IdentifyRequest.telling(scenario.canonical_json(), run, code_fingerprint())
    known = set(told)
    deadline = scenario.deadlines.connect
    end = time.monotonic() + deadline
    replies: dict[int, IdentifyReply] = {}
    while True:
        new = [node for node in patiently(grid.get_node_ids) if node not in replies and node not in broken]
        requests = [
            Request(
                f"node {node}",
                node,
                "query.identify",
                (request.short() if node in known else request).to_payload(),
            )
            for node in new
        ]
        left = max(1.0, end - time.monotonic())
        answers = exchange(
            grid,
            requests,
            of=IdentifyReply.of,
            deadline=left,
            traffic=traffic,
            enough=everybody(replies.values(), {name for name in wanted if name not in away}),
            at_once=at_once(),
        )
        for node, answer in zip(new, answers.values(), strict=True):
            if answer.outcome == Outcome.OTHER_CODE:
                theirs = answer.payload.config.get("code", "an older one") if answer.payload else "another"
                raise RunError(f"code: the server runs {code_fingerprint()}, a node {theirs}; {SAME_CODE}")
            if answer.outcome == Outcome.UNKNOWN_SCENARIO:
                known.discard(node)
            if answer.outcome == BUNDLE_REFUSED:
                raise RunError(
                    "bundle: a site's launcher refuses the one this run sends; compare `casam bundle hash` "
                    "with `bundle` in the sites' node.toml (their logs name both)"
                )
            if answer.outcome in BROKEN_SITE and skip:
                broken.add(node)
            elif answer.outcome in BROKEN_SITE:
                raise RunError(
                    f"an institution cannot take part ({answer.outcome}, "
                    f"incident {answer.incident or 'unknown'}); its own log says why"
                )
            if answer.reply is not None:
                replies[node] = check(answer.reply)
        directory = collect(replies)
        missing = [name for name in wanted if name not in directory.members and name not in away]
        left_out = skip and directory.members and time.monotonic() > end
        if not missing or left_out:
            check_backbones(replies)
            check_preprocessing(replies)
            if not skip:
                check_stream(scenario, directory)
            members = {name: directory.members[name] for name in wanted if name in directory.members}
            return Directory(members, directory.backbone, directory.compute)
        if time.monotonic() > end:
            raise RunError(
                f"no answer from {', '.join(missing)} within {deadline:.0f} s; "
                f"connected: {', '.join(sorted(directory.members)) or 'nobody'}"
            )
        time.sleep(POLL_SECONDS)


def everybody(
    before: Iterable[IdentifyReply], needed: Set[str]
) -> Callable[[Mapping[str, Answer[IdentifyReply]]], bool]:
    """Asked again and again during an exchange: whether all that are needed have answered, and nodes that are
    not had a little time to.

    before: what earlier exchanges brought.
    """
    known = {name for reply in before for name in reply.institutions}
    complete: float | None = None

    def enough(answers: Mapping[str, Answer[IdentifyReply]]) -> bool:
        nonlocal complete
        now = {name for answer in answers.values() if answer.reply for name in answer.reply.institutions}
        if complete is None and needed <= known | now:
            complete = time.monotonic()
        return complete is not None and time.monotonic() - complete > STRANGERS_SECONDS

    return enough


def check(reply: IdentifyReply) -> IdentifyReply:
    """Refuse a node that runs other code or speaks another schema."""
    if reply.schema != SCHEMA:
        raise RunError(f"message schema: the server speaks {SCHEMA}, a node {reply.schema}; update the older")
    if reply.code != code_fingerprint():
        raise RunError(f"code: the server runs {code_fingerprint()}, a node {reply.code}; {SAME_CODE}")
    return reply


def check_backbones(replies: dict[int, IdentifyReply]) -> None:
    """All institutions must see images through the same frozen weights."""
    found = sorted({reply.backbone for reply in replies.values() if reply.institutions})
    if len(found) > 1:
        raise RunError(
            f"backbone: institutions hold different weights ({', '.join(found)}); use one checkpoint"
        )


def check_preprocessing(replies: dict[int, IdentifyReply]) -> None:
    """All institutions must prepare images alike, or equal weights would see other images."""
    found = sorted({reply.preprocessing for reply in replies.values() if reply.institutions})
    if len(found) > 1:
        raise RunError(
            f"preprocessing: institutions prepare images otherwise ({', '.join(found)}); "
            "install the versions of requirements.lock everywhere"
        )


def check_stream(scenario: Scenario, directory: Directory) -> None:
    """Every task of the stream is held by someone who is here."""
    held = {task for member in directory.members.values() for task in member.holdings}
    for task in scenario.stream:
        if task not in held:
            raise ScenarioError(f"task {task!r} of the stream is held by no connected institution")


def collect(replies: dict[int, IdentifyReply]) -> Directory:
    """Institutions by name; RunError when two nodes claim one."""
    members: dict[str, Member] = {}
    for node, reply in sorted(replies.items()):
        for name, holdings in reply.institutions.items():
            if name in members:
                raise RunError(f"two nodes claim to be institution {name!r}; start each institution once")
            members[name] = Member(
                node,
                dict(holdings),
                reply.policies[name],
                dict(reply.forecasts.get(name, {})),
                reply.simulated,
            )
    first = next((reply for reply in replies.values() if reply.institutions), None)
    return Directory(members, first.backbone if first else "", first.compute if first else "")
