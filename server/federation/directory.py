"""The directory: which institutions are behind Flower's node ids. The server asks again at every stage.

Node ids are random and change when a SuperNode restarts; an institution's name does not.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial

from flwr.serverapp import Grid

from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.errors import RunError, ScenarioError
from casam_core.model.layer_library import travelling_files
from casam_core.protocol.fingerprint import code_fingerprint
from casam_core.protocol.messages import (
    SCHEMA,
    Forecast,
    Holding,
    IdentifyReply,
    IdentifyRequest,
    identify_statement,
)
from casam_core.protocol.outcomes import NoResult, Outcome
from casam_core.protocol.register import Register
from server.federation.counters import Traffic
from server.federation.exchange import Answer, Request, at_once, exchange, patiently

ASK_AGAIN_SECONDS = 0.5
APPROVAL_SECONDS = 2.0
"""How long the server waits before it asks again a node where nobody approved the scenario."""
STRANGERS_SECONDS = 10.0
"""How long the server waits for nodes that it does not need: such a node may claim an institution of another
node, or may not answer at all."""
BROKEN_SITE = (
    Outcome.BAD_DATA,
    Outcome.BAD_REQUEST,
    Outcome.BAD_POLICY,
    Outcome.BAD_REGISTER,
    Outcome.BAD_CHECKPOINT,
    Outcome.FAILED,
    Outcome.NOT_ALLOWED,
    NoResult.UNREADABLE,
)
Proof = tuple[IdentifyReply, set[str]]
"""What the keys of a node's institutions prove of its reply, and the names of the others."""
SAME_CODE = "stop the local SuperLink (or update that node) and run again"


@dataclass(frozen=True)
class Member:
    """One institution that answered. holdings: by task, its images. forecasts: by task, how many private
    rounds it can afford. simulated: its privacy noise is seeded. mirrored: it gets entries by name."""

    node: int
    holdings: dict[str, Holding]
    policy: Policy
    forecasts: dict[str, Forecast] = field(default_factory=dict)
    simulated: bool = False
    mirrored: bool = False


@dataclass(frozen=True)
class Directory:
    """The institutions of the scenario, in its order.

    unregistered: (node, name) of claims that the key of that name did not sign. other_versions: nodes that
    are left out because they run another version, and the difference.
    """

    members: dict[str, Member]
    backbone: str
    compute: str
    preprocessing: str = ""
    unregistered: tuple[tuple[int, str], ...] = ()
    other_versions: tuple[tuple[int, str], ...] = ()


def identify(
    grid: Grid,
    scenario: Scenario,
    run: str,
    register: Register,
    absent: Collection[str] = (),
    told: Collection[int] = (),
) -> Directory:
    """Ask every node until all institutions of the scenario have answered.

    A node speaks for an institution only with a signature of the key that is registered for this name, over
    this request and its own reply. Other claims are ignored. The traffic is not counted: it depends on nodes
    and folder names, not on what is learned.

    Args:
        run: name of the run folder.
        register: the names and their keys.
        absent: institutions that the server does not wait for, but accepts.
        told: nodes that should know the scenario already; the request to them does not contain its text.

    Returns:
        The institutions that answered. If `participation.missing` is "skip", the result excludes institutions
        with no answer within `deadlines.connect` seconds, those that cannot open their data, and nodes with
        another version of code or message schema.

    Raises:
        RunError: an institution is missing, broken or of another version and `participation.missing` is
            "stop"; two connected nodes hold the key of one institution; or a node has another backbone or
            preprocessing.
        ScenarioError: no institution holds a task of the stream.
    """
    wanted = [site.name for site in scenario.institutions if site.name not in absent]
    skip = scenario.participation.missing == "skip"
    public = travelling_files(scenario)
    request = IdentifyRequest.telling(scenario.canonical_json(), run, code_fingerprint(), public)
    deadline = scenario.deadlines.connect
    end = time.monotonic() + deadline
    asked, said = Introductions(knowing=set(told)), ""
    while True:
        new = [node for node in patiently(grid.get_node_ids) if node not in asked.done]
        requests = fresh(request, new)
        proofs: dict[str, Proof] = {}
        answers = exchange(
            grid,
            [question(node, requests[f"node {node}"], known=node in asked.knowing) for node in new],
            of=IdentifyReply.of,
            deadline=max(1.0, end - time.monotonic()),
            traffic=Traffic(),
            heard=partial(prove, register, requests, proofs),
            enough=everybody(proofs, asked.replies.values(), set(wanted)),
            at_once=at_once(),
        )
        before = set(asked.replies)
        for node, answer in zip(new, answers.values(), strict=True):
            asked.take(node, proofs.get(answer.to), answer, skip=skip)
        check_once({node: reply for node, reply in asked.replies.items() if node not in before})
        directory = replace(
            collect(asked.replies),
            unregistered=tuple(sorted(asked.unregistered)),
            other_versions=tuple(asked.other_versions.items()),
        )
        missing = sorted(set(wanted) - directory.members.keys(), key=wanted.index)
        late = time.monotonic() > end
        if not missing or (skip and directory.members and late):
            return checked(directory, asked.replies, scenario)
        waits = unapproved(missing, len(asked.waiting), request.digest)
        if late:
            raise RunError(
                f"no answer from {', '.join(missing)} within {deadline:.0f} s; "
                f"connected: {', '.join(sorted(directory.members)) or 'nobody'}{others(directory)}"
                f"{waits and '; '}{waits}{asked.differences}"
            )
        if waits not in ("", said):
            said = waits
            print(f"casam | server | {waits}", flush=True)
        time.sleep(APPROVAL_SECONDS if waits else ASK_AGAIN_SECONDS)


@dataclass
class Introductions:
    """What the nodes answered so far.

    knowing: nodes that have the scenario. replies: what the registered names of a node say.
    broken: nodes that cannot take part. waiting: nodes where nobody approved the scenario yet.
    unregistered, other_versions: as in Directory.
    """

    knowing: set[int]
    replies: dict[int, IdentifyReply] = field(default_factory=dict)
    broken: set[int] = field(default_factory=set)
    waiting: set[int] = field(default_factory=set)
    unregistered: set[tuple[int, str]] = field(default_factory=set)
    other_versions: dict[int, str] = field(default_factory=dict)

    @property
    def done(self) -> Set[int]:
        """Nodes that are not asked again."""
        return self.replies.keys() | self.broken | self.other_versions.keys()

    @property
    def differences(self) -> str:
        """The end of a sentence about nodes of other versions."""
        return "".join(f"; {difference}" for difference in self.other_versions.values())

    def take(self, node: int, proof: Proof | None, answer: Answer[IdentifyReply], *, skip: bool) -> None:
        """Note one answer. proof: of its reply; None if it has none.

        Raises RunError without `skip` for a node of another version, and for a broken one (cannot_take_part).
        """
        self.waiting.discard(node)
        if difference := other_version(answer):
            if not skip:
                raise RunError(difference)
            self.other_versions[node] = difference
        elif proof is not None:
            self.replies[node], ignored = proof
            self.unregistered.update((node, name) for name in ignored)
        elif answer.outcome in (Outcome.UNKNOWN_SCENARIO, Outcome.WAITING_FOR_APPROVAL):
            self.knowing.discard(node)
            if answer.outcome == Outcome.WAITING_FOR_APPROVAL:
                self.waiting.add(node)
        elif cannot_take_part(answer, skip=skip):
            self.broken.add(node)


def unapproved(missing: Sequence[str], nodes: int, digest: str) -> str:
    """What people must do so that the run can start; "" if no node waits for an approval.

    missing: institutions without an answer.
    """
    if nodes == 0:
        return ""
    return (
        f"{nodes} of the nodes wait for an approval of scenario {digest[:12]} (missing: "
        f"{', '.join(missing) or 'nobody'}); at each site: `casam site review {digest[:12]}`, then "
        f"`casam site approve {digest[:12]}`"
    )


def fresh(request: IdentifyRequest, nodes: Iterable[int]) -> dict[str, IdentifyRequest]:
    """The requests of one exchange, by receiver, each with a nonce that was never used before."""
    return {f"node {node}": replace(request, nonce=secrets.token_hex(16)) for node in nodes}


def prove(
    register: Register,
    requests: Mapping[str, IdentifyRequest],
    proofs: dict[str, Proof],
    answer: Answer[IdentifyReply],
) -> None:
    """Put the proof of an answer with a reply among `proofs`, by receiver."""
    if answer.reply is not None:
        proofs[answer.to] = proven(register, requests[answer.to], answer.reply)


def proven(register: Register, request: IdentifyRequest, reply: IdentifyReply) -> Proof:
    """(the reply with those institutions whose registered key signed it in answer to this request, the names
    of the others)."""
    names = [
        name
        for name in reply.institutions
        if register.is_by(name, identify_statement(name, request, reply), reply.signatures.get(name, ""))
    ]
    kept = replace(
        reply,
        institutions={name: reply.institutions[name] for name in names},
        policies={name: reply.policies[name] for name in names},
    )
    return kept, reply.institutions.keys() - set(names)


def others(directory: Directory) -> str:
    """The claims that were ignored, as the end of a sentence; "" if there are none."""
    claims = ", ".join(f"{name} by node {node}" for node, name in directory.unregistered)
    return f"; not signed with the registered key: {claims} (compare the register files)" if claims else ""


def question(node: int, request: IdentifyRequest, *, known: bool) -> Request:
    """The identify request to one node. known: whether the node knows the scenario."""
    payload = (request.short() if known else request).to_payload()
    return Request(f"node {node}", node, "query.identify", payload)


def other_version(answer: Answer[IdentifyReply]) -> str:
    """How the node's version differs from the server's; "" if it does not, or does not say."""
    reply = answer.reply
    if answer.outcome == NoResult.BUNDLE_REFUSED:
        return (
            "bundle: a site's launcher refuses the bundle of this run; compare `casam bundle hash` "
            "with `bundle` in the sites' node.toml (their logs name both)"
        )
    if reply is not None and reply.schema != SCHEMA:
        return f"message schema: the server speaks {SCHEMA}, a node {reply.schema}; update the older"
    theirs: object = reply.code if reply is not None else ""
    if answer.outcome == Outcome.OTHER_CODE:
        theirs = answer.payload.config.get("code", "an older one") if answer.payload else "another"
    if theirs in ("", code_fingerprint()):
        return ""
    return f"code: the server runs {code_fingerprint()}, a node {theirs}; {SAME_CODE}"


def cannot_take_part(answer: Answer[IdentifyReply], *, skip: bool) -> bool:
    """Whether a node without a reply is broken and not asked again.

    Raises RunError if it is broken and `skip` is False: the run may not continue without it.
    """
    if answer.outcome in BROKEN_SITE and not skip:
        raise RunError(
            f"an institution cannot take part ({answer.outcome}, "
            f"incident {answer.incident or 'unknown'}); its own log says why"
        )
    return answer.outcome in BROKEN_SITE


def everybody(
    proofs: Mapping[str, Proof],
    before: Iterable[IdentifyReply],
    needed: Set[str],
) -> Callable[[Mapping[str, Answer[IdentifyReply]]], bool]:
    """A function that says whether an exchange can end: every needed institution has answered, and the other
    nodes had STRANGERS_SECONDS more.

    Args:
        proofs: of the replies in this exchange so far.
        before: replies of earlier exchanges.
        needed: names of institutions.
    """
    earlier = {name for reply in before for name in reply.institutions}
    complete: float | None = None

    def enough(answers: Mapping[str, Answer[IdentifyReply]]) -> bool:
        nonlocal complete
        if complete is None and needed <= earlier.union(
            *(reply.institutions for reply, _ in proofs.values())
        ):
            complete = time.monotonic()
        return complete is not None and time.monotonic() - complete > STRANGERS_SECONDS

    return enough


def checked(directory: Directory, replies: Mapping[int, IdentifyReply], scenario: Scenario) -> Directory:
    """The directory in the scenario's order, with the scenario's institutions only.

    Raises RunError if the institutions cannot learn together. Raises ScenarioError if no institution holds a
    task of the stream, unless participation.missing is "skip": a holder may connect later.
    """
    check_alike(replies)
    if scenario.participation.missing != "skip":
        check_stream(scenario, directory)
    found = directory.members
    members = {site.name: found[site.name] for site in scenario.institutions if site.name in found}
    return replace(directory, members=members)


def check_alike(replies: Mapping[int, IdentifyReply]) -> None:
    """Raise RunError unless all institutions have the same backbone weights and the same preprocessing."""
    hosts = [reply for reply in replies.values() if reply.institutions]
    backbones = sorted({reply.backbone for reply in hosts})
    if len(backbones) > 1:
        raise RunError(
            f"backbone: institutions hold different weights ({', '.join(backbones)}); use one checkpoint"
        )
    preparations = sorted({reply.preprocessing for reply in hosts})
    if len(preparations) > 1:
        raise RunError(
            f"preprocessing: institutions prepare images differently ({', '.join(preparations)}); "
            "install the versions of requirements.lock everywhere"
        )


def check_stream(scenario: Scenario, directory: Directory) -> None:
    """Raise ScenarioError unless a connected institution holds every task of the stream; behind a relay none
    need to."""
    held = {task for member in directory.members.values() for task in member.holdings}
    for task in scenario.stream:
        if task not in held and not scenario.relayed:
            raise ScenarioError(f"task {task!r} of the stream is held by no connected institution")


def check_once(arrived: Mapping[int, IdentifyReply]) -> None:
    """Raise RunError if two nodes that are connected at the same time hold the key of one institution."""
    names = [name for reply in arrived.values() for name in reply.institutions]
    for name in names:
        if names.count(name) > 1:
            raise RunError(f"two nodes claim to be institution {name!r}; start each institution once")


def collect(replies: Mapping[int, IdentifyReply]) -> Directory:
    """The institutions by name. A later reply replaces an earlier one: the node started again."""
    members = {
        name: Member(
            node,
            dict(holdings),
            reply.policies[name],
            dict(reply.forecasts.get(name, {})),
            reply.simulated,
            reply.mirrored,
        )
        for node, reply in replies.items()
        for name, holdings in reply.institutions.items()
    }
    first = next((reply for _, reply in sorted(replies.items()) if reply.institutions), None)
    if first is None:
        return Directory(members, "", "")
    return Directory(members, first.backbone, first.compute, first.preprocessing)
