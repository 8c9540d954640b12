"""The server's part in a secure sum: Flower's SecAgg+ workflow over institutions instead of nodes.

The workflow sees a Grid whose nodes are members, numbered by their place in the scenario. The messages are
those of this project: they are logged and counted, and have outcomes. If members leave before any share was
sent, the sum starts again without them. Later they are dropouts, and the protocol continues as long as enough
members remain to unmask the sum.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    Parameters,
    Status,
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
from casam_core.protocol.messages import tasks_asked
from casam_core.protocol.outcomes import Outcome
from casam_core.protocol.payload import Job, Payload
from casam_core.protocol.secure_sum import (
    AGREE,
    COLLECT,
    MODULUS,
    RANGE,
    RESOLUTION,
    SETUP,
    SHARE_KEYS,
    SIGNATURE,
    SIGNATURES,
    SIGNERS,
    STEPS,
    UNMASK,
    NamedArrays,
    SecureReply,
    SecureRequest,
    Sum,
    keys_digest,
    masked_array,
    question_digest,
    shares_needed,
    total_of,
    weight_for,
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
    images = {
        name: sum(directory[name].holdings[task].train for task in tasks_asked(asks.config, members.job))
        for name, asks in members.questions.items()
    }
    workflow = flower.SecAggPlusWorkflow(
        num_shares=1.0,
        # If the sum is smaller than a member's policy requires, the member refuses by itself.
        reconstruction_threshold=min(shares_needed(count, least), count),
        max_weight=weight_for(max(images.values())),
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
    if not workflow.collect_masked_vectors_stage(grid, context, state) or not members.agree(state.threshold):
        return None
    means = unmasked(workflow, members, context, state, keeper)
    if means is None:
        return None
    return total_of(members.kind, means, sum(images[name] for name in members.survivors))


def unmasked(
    workflow: flower.SecAggPlusWorkflow,
    members: Members,
    context: LegacyContext,
    state: flower.WorkflowState,
    keeper: SumKeeper,
) -> NamedArrays | None:
    """The means; None if too few members helped, or if a member sent a wrong share of a secret.

    A share cannot be checked alone. A wrong one gives a wrong secret, which is no key, or numbers all over
    the modulus.
    """
    fault = "a mean is out of range"
    try:
        if not workflow.unmask_stage(cast(Grid, members), context, state) or keeper.parameters is None:
            return None
        means: NamedArrays = dict(zip(members.names, parameters_to_ndarrays(keeper.parameters), strict=True))
        if all((np.abs(mean) <= RANGE + RESOLUTION).all() for mean in means.values()):
            return means
    except Exception as error:  # a wrong secret can raise any exception where a key is read
        fault = type(error).__name__
    members.broken(f"a share of a secret is wrong ({fault})")
    return None


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
    refusal. survivors: members that sent a masked share. names: of the arrays in the shares. keys: of all
    members, by name. signed: by name, signatures of the keys and later of the survivors.
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
        self.keys: dict[str, list[bytes]] = {}
        self.signed: dict[str, bytes] = {}
        self.rules = ""
        self.question = question_digest(next(iter(questions.values())))
        places = [site.name for site in federation.scenario.institutions]
        self.named = {places.index(name) + 1: name for name in questions}

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """One exchange with members, in the scenario's order; returns only valid answers."""
        sent = {self.named[message.metadata.dst_node_id]: message for message in messages}
        requests = {name: self.request(name, sent[name]) for name in self.questions if name in sent}
        answers = self.federation.ask(requests, SecureReply)
        replies = self.proven(alike(results(answers)))
        self.lost = set(requests) - set(replies)
        self.silent |= any(not answers[name].refused for name in self.lost)
        if any(reply.step == COLLECT for reply in replies.values()):
            self.survivors = tuple(replies)
            self.names = next(iter(replies.values())).names
        return [as_flower_expects(unpacked(reply.protocol), sent[name]) for name, reply in replies.items()]

    def request(self, name: str, message: Message) -> SecureRequest:
        """The workflow's message as a request of this project, with the signatures that belong to it."""
        protocol = ConfigRecord(dict(message.content.config_records[RECORD_KEY_CONFIGS]))
        step = str(protocol[Key.STAGE])
        if step == SHARE_KEYS:
            protocol[SIGNATURES] = [self.signed[self.named[number]] for number in sorted(self.named)]
        elif step == UNMASK:
            signers = [number for number, member in self.named.items() if member in self.signed]
            protocol[SIGNERS] = signers
            protocol[SIGNATURES] = [self.signed[self.named[number]] for number in signers]
        return self.request_of(name, step, protocol)

    def request_of(self, name: str, step: str, protocol: ConfigRecord) -> SecureRequest:
        """A request of one exchange."""
        asks, data = self.questions[name], packed(protocol)
        if step == SETUP:
            self.rules = hashlib.sha256(data.tobytes()).hexdigest()
        names = tuple(sorted(self.questions))
        return SecureRequest(Job.of(asks), self.kind, step, data, asks, self.question, self.rules, names)

    def proven(self, replies: Mapping[str, SecureReply]) -> dict[str, SecureReply]:
        """The replies whose signature is that of the member's registered key; the others are rejected."""
        kept = {}
        for name, reply in replies.items():
            protocol = cast(dict[str, bytes], dict(unpacked(reply.protocol)))
            pair = [protocol[key] for key in (Key.PUBLIC_KEY_1, Key.PUBLIC_KEY_2) if key in protocol]
            if reply.step in (SETUP, AGREE):
                said = self.sum.keys_statement(name, pair)
                if reply.step == AGREE:
                    said = self.sum.survivors_statement(keys_digest(self.keys), self.survivors)
                if not self.federation.register.is_by(name, said, protocol[SIGNATURE].hex()):
                    self.broken("the signature is not that of the registered key", name)
                    continue
                self.signed[name] = protocol[SIGNATURE]
            if reply.step == SETUP:
                self.keys[name] = pair
            kept[name] = reply
        return kept

    @property
    def sum(self) -> Sum:
        """What this sum is about."""
        about = self.request_of(next(iter(self.questions)), "", ConfigRecord({}))
        return about.of_run(self.federation.folder.path.name, self.federation.scenario.digest())

    def agree(self, threshold: int) -> bool:
        """Let every member in the sum sign the list of them; whether enough did (AGREE)."""
        numbers = [number for number, name in self.named.items() if name in self.survivors]
        protocol = ConfigRecord({Key.STAGE: AGREE, Key.ACTIVE_NODE_ID_LIST: numbers})
        requests = {name: self.request_of(name, AGREE, protocol) for name in self.survivors}
        self.signed = {}
        answers = self.federation.ask(requests, SecureReply)
        self.lost = set(requests) - set(self.proven(results(answers)))
        self.silent |= any(not answers[name].refused for name in self.lost)
        return len(self.signed) >= threshold

    def broken(self, reason: str, name: str = "") -> None:
        """Log that the sum, or one member's part in it, cannot be used."""
        if name:
            self.federation.reject(name, SecureReply.kind, self.job.stage, reason)
            return
        self.federation.folder.event(
            Outcome.SUM_BROKEN,
            f"stage {self.job.stage}: the secure sum of {', '.join(self.survivors)} cannot be used: {reason}",
            stage=self.job.stage,
            institutions=list(self.survivors),
            reason=reason,
        )


def alike(replies: Mapping[str, SecureReply]) -> dict[str, SecureReply]:
    """The replies that can be added: those with the arrays and shapes of most replies."""

    def form(reply: SecureReply) -> tuple[object, ...]:
        masked = unpacked(reply.protocol).get(Key.MASKED_PARAMETERS, [])
        return (
            reply.step,
            reply.names,
            *(masked_array(array).shape for array in cast(list[bytes], masked)),
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
