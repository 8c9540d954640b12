"""The server's part in a secure sum: Flower's SecAgg+ workflow over institutions instead of nodes.

The workflow sees a Grid whose nodes are members, numbered by their place in the scenario. The messages are
those of this project: they are logged and counted, and have outcomes. If members leave before any share was
sent, the sum starts again without them. Later they are dropouts, and the protocol continues as long as enough
members remain to unmask the sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    Parameters,
    Status,
    bytes_to_ndarray,
    parameters_to_ndarrays,
)
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key
from flwr.compat.common.recorddict_compat import fitres_to_recorddict, parameters_to_arrayrecord
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation import secaggplus_workflow as flower
from flwr.serverapp import Grid

from casam_core.privacy.keystream import masks
from casam_core.protocol.payload import Job, Payload
from casam_core.protocol.secure_sum import (
    COLLECT,
    MODULUS,
    RANGE,
    STEPS,
    Named,
    SecureReply,
    SecureRequest,
    shares_needed,
    total_of,
)
from casam_core.protocol.wire import packed, unpacked
from server.federation.exchange import results
from server.federation.federation import Federation

flower.pseudo_rand_gen = masks  # type: ignore[attr-defined,assignment]


@dataclass(frozen=True)
class SecureSum:
    """The members' summed answer, in the form of an open answer; payload None if too few members remained.

    refused: whether every institution that is not in the sum refused.
    """

    members: tuple[str, ...]
    payload: Payload | None
    refused: bool


def secure_sum(federation: Federation, kind: str, questions: Mapping[str, Payload]) -> SecureSum:
    """The sum of the institutions' answers to `questions` of one `kind`; no single answer becomes visible."""
    remaining, silent = list(questions), False
    while len(remaining) > 1:
        members = Members(federation, kind, {name: questions[name] for name in remaining})
        payload = attempt(members)
        silent |= members.silent
        if payload is not None:
            return SecureSum(members.survivors, payload, not silent)
        if not members.lost:
            return SecureSum((), None, refused=False)
        remaining = [name for name in remaining if name not in members.lost]
    return SecureSum((), None, not silent)


def attempt(members: Members) -> Payload | None:
    """One run of the protocol; None if it had to stop. `members.lost` then names the members that left."""
    directory = members.federation.members
    count = len(members.questions)
    least = max(directory[name].policy.minimum_cohort for name in members.questions)
    images = {name: directory[name].holdings[members.job.task].train for name in members.questions}
    workflow = flower.SecAggPlusWorkflow(
        num_shares=1.0,
        # If the sum is smaller than a member's policy requires, the member refuses by itself.
        reconstruction_threshold=min(shares_needed(count, least), count),
        max_weight=float(max(images.values())),
        clipping_range=RANGE,
        quantization_range=STEPS,
        modulus_range=MODULUS,
    )
    keeper, state, grid = SumKeeper(), flower.WorkflowState(), cast(Grid, members)
    context = as_flower_starts(members, keeper)
    for step in (workflow.setup_stage, workflow.share_keys_stage):
        # Flower cannot unmask the sum if a member leaves before it has shared its keys.
        if not step(grid, context, state) or members.lost:
            return None
    for step in (workflow.collect_masked_vectors_stage, workflow.unmask_stage):
        if not step(grid, context, state):
            return None
    assert keeper.parameters is not None  # the workflow was successful
    means: Named = dict(zip(members.names, parameters_to_ndarrays(keeper.parameters), strict=True))
    total = sum(images[name] for name in members.survivors)
    return total_of(members.kind, means, total)


@dataclass(frozen=True)
class MemberProxy:
    """The one fact about a member that the workflow reads."""

    node_id: int


class SumKeeper(FedAvg):
    """Takes the place of a Flower strategy: selects every member and keeps the workflow's result."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: Parameters | None = None
        self.numbers: list[int] = []

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Every member, without parameters: our own request carries the question."""
        return [
            (cast(ClientProxy, MemberProxy(number)), FitIns(Parameters([], ""), {}))
            for number in self.numbers
        ]

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: object
    ) -> tuple[Parameters | None, dict[str, bool | bytes | float | int | str]]:
        """Keep the sum, which every result contains."""
        self.parameters = results[0][1].parameters
        return None, {}


class Members:
    """Carries the workflow's messages to institutions and back, as a Grid whose nodes are members.

    lost: members without a valid answer to the last exchange. silent: whether any member was lost without a
    refusal. survivors: members that sent a masked share. names: of the arrays in the shares.
    """

    def __init__(self, federation: Federation, kind: str, questions: Mapping[str, Payload]) -> None:
        self.federation = federation
        self.kind = kind
        self.questions = questions
        self.job = Job.of(next(iter(questions.values())))
        self.lost: set[str] = set()
        self.silent = False
        self.survivors: tuple[str, ...] = ()
        self.names: tuple[str, ...] = ()
        places = [site.name for site in federation.scenario.institutions]
        self.named = {places.index(name) + 1: name for name in questions}

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """One exchange with members, in the scenario's order; returns only valid answers."""
        sent = {self.named[message.metadata.dst_node_id]: message for message in messages}
        requests = {name: self.request(name, sent[name]) for name in self.questions if name in sent}
        answers = self.federation.ask(requests, SecureReply)
        replies = alike(results(answers))
        self.lost = set(requests) - set(replies)
        self.silent |= any(not answers[name].refused for name in self.lost)
        if any(reply.step == COLLECT for reply in replies.values()):
            self.survivors = tuple(replies)
            self.names = next(iter(replies.values())).names
        return [as_flower_expects(unpacked(reply.protocol), sent[name]) for name, reply in replies.items()]

    def request(self, name: str, message: Message) -> SecureRequest:
        """The workflow's message as a request of this project."""
        protocol = message.content.config_records[RECORD_KEY_CONFIGS]
        step, question = str(protocol[Key.STAGE]), self.questions[name]
        return SecureRequest(Job.of(question), self.kind, step, packed(protocol), question)


def alike(replies: Mapping[str, SecureReply]) -> dict[str, SecureReply]:
    """The replies that can be added: those with the arrays and shapes of most replies."""

    def form(reply: SecureReply) -> tuple[object, ...]:
        masked = unpacked(reply.protocol).get(Key.MASKED_PARAMETERS, [])
        return (
            reply.step,
            reply.names,
            *(bytes_to_ndarray(array).shape for array in cast(list[bytes], masked)),
        )

    forms = {name: form(reply) for name, reply in replies.items()}
    usual = Counter(forms.values()).most_common(1)
    return {name: reply for name, reply in replies.items() if forms[name] == usual[0][0]}


def as_flower_expects(protocol: ConfigRecord, sent: Message) -> Message:
    """A member's answer in the form of an old Flower training result; only its protocol record is used."""
    content = fitres_to_recorddict(FitRes(Status(Code.OK, ""), NOTHING, 0, {}), keep_input=True)
    content.config_records[RECORD_KEY_CONFIGS] = protocol
    return Message(content, reply_to=sent)


def as_flower_starts(members: Members, keeper: SumKeeper) -> LegacyContext:
    """The context that the workflow reads before its first exchange."""
    keeper.numbers = list(members.named)
    state = RecordDict(
        {
            MAIN_CONFIGS_RECORD: ConfigRecord({WorkflowKey.CURRENT_ROUND: members.job.round}),
            MAIN_PARAMS_RECORD: parameters_to_arrayrecord(NOTHING, keep_input=True),
        }
    )
    return LegacyContext(Context(0, 0, {}, state, {}), strategy=keeper)


NOTHING = Parameters([], "")
