"""An institution's part in a secure sum. The protocol is Flower's SecAgg+; this module adds our decisions.

Three things differ from Flower's mod. Masks have full strength (Flower reduces seeds to 32 bits). Numbers
have 44 bits, and values that would be clipped or overflow are refused. Every exchange is checked against the
policy, so that a sum over fewer institutions than `minimum_cohort` is never started, answered or unmasked.

The protection holds against an honest but curious server that relays the members' keys
(docs/threat-model.md).
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import cast

import numpy as np
from flwr.app import DEFAULT_TTL, ConfigRecord, Context, Message, Metadata, RecordDict
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, RECORD_KEY_STATE, Key
from flwr.compat.common.recorddict_compat import fitres_to_recorddict

from casam_core.privacy.keystream import masks
from casam_core.protocol.messages import AlignRequest, CalibrateRequest, RouterRequest
from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.payload import Payload
from casam_core.protocol.secure_sum import (
    COLLECT,
    MODULUS,
    MOST_MEMBERS,
    RANGE,
    SETUP,
    SHARE_KEYS,
    STEPS,
    Named,
    SecureReply,
    SecureRequest,
    quantize,
    share_of,
    shares_needed,
)
from casam_core.protocol.wire import packed, unpacked
from client.institution import Institution
from client.release import permission
from client.release.guard import check
from client.simulation.faults import Role, attacked

# In Flower's package, the mod and its module have the same name.
flower = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
flower.pseudo_rand_gen = masks  # type: ignore[attr-defined]
flower.quantize = quantize  # type: ignore[attr-defined]

MEMORY = "secure-sum"
"""Prefix of the state key, before the institution's name, for data kept between the exchanges of a sum."""

ANSWERS: dict[str, Callable[[Institution, Payload], Payload]] = {
    "train.align": lambda who, asks: permission.align(who, AlignRequest.of(asks), summed=True).to_payload(),
    "train.router": lambda who, asks: permission.describe(
        who, RouterRequest.of(asks), summed=True
    ).to_payload(),
    "train.calibrate": lambda who, asks: permission.calibrate(
        who, CalibrateRequest.of(asks), summed=True
    ).to_payload(),
}
"""How each kind of question in a sum is answered: as an open question, but the answer is masked."""

CHECKS: dict[str, Callable[[Institution, Payload], None]] = {
    "train.align": lambda who, asks: permission.check_align(who, AlignRequest.of(asks), summed=True),
    "train.router": lambda who, asks: permission.check_router(who, RouterRequest.of(asks), summed=True),
    "train.calibrate": lambda who, asks: permission.check_router(who, CalibrateRequest.of(asks), summed=True),
}
"""The policy checks before any key is created."""


def take_part(institution: Institution, request: SecureRequest, context: Context) -> SecureReply:
    """This institution's part of one exchange. If it refuses to add a layer, it learns one for itself.

    Raises RefusalError: cohort-too-small, sum-not-possible, out-of-range, or a refusal of the open question.
    """
    if request.summed != "train.align":
        return part(institution, request, context)
    with permission.learned_at_home(institution, request.job):
        return part(institution, request, context)


def part(institution: Institution, request: SecureRequest, context: Context) -> SecureReply:
    """Answer one exchange with Flower's protocol, if the policy allows it."""
    protocol = unpacked(request.protocol)
    key = f"{MEMORY}-{institution.name}"
    memory = context.state.config_records.get(key, ConfigRecord({}))
    check_exchange(institution, request, protocol, memory)
    named: Named = {}
    images = 0
    if request.step == COLLECT:
        named, images = share(institution, request, float(cast(float, memory[Key.MAX_WEIGHT])))

    def plaintext(message: Message, _: Context) -> Message:
        values = ndarrays_to_parameters(list(named.values()))
        answer = FitRes(Status(Code.OK, ""), values, images, {})
        return Message(fitres_to_recorddict(answer, keep_input=True), reply_to=message)

    state = RecordDict({RECORD_KEY_STATE: memory} if memory else {})
    inner = Context(context.run_id, context.node_id, context.node_config, state, context.run_config)
    answer = flower.secaggplus_mod(as_flower_sends(protocol, institution, inner), inner, plaintext)
    context.state[key] = inner.state.config_records[RECORD_KEY_STATE]
    settings = answer.content.config_records[RECORD_KEY_CONFIGS]
    return SecureReply(request.summed, request.step, packed(settings), tuple(named))


def number_of(institution: Institution) -> int:
    """An institution's number in a sum: its place in the scenario, from 1, on any node."""
    return [site.name for site in institution.scenario.institutions].index(institution.name) + 1


def as_flower_sends(protocol: ConfigRecord, institution: Institution, context: Context) -> Message:
    """The exchange as Flower's mod reads it; the mod handles messages of type `train` only.

    Flower's usual constructor creates new messages only on servers, so the metadata is written out here.
    """
    about = Metadata(
        run_id=context.run_id,
        message_id="",
        src_node_id=0,
        dst_node_id=number_of(institution),
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=DEFAULT_TTL,
        message_type="train",
    )
    make = cast(Callable[..., Message], Message)  # Flower's types do not declare `metadata`
    return make(content=RecordDict({RECORD_KEY_CONFIGS: protocol}), metadata=about)


def share(institution: Institution, request: SecureRequest, most_images: float) -> tuple[Named, int]:
    """(arrays for the sum by name, weight in images), checked by the guard and within the sum's range.

    Raises RefusalError: out-of-range, not-allowed, or a refusal of the open question.
    """
    answer = ANSWERS[request.summed](institution, request.asks)
    check(request.summed, answer, institution, request.job)
    role = Role(institution, request.summed, request.job)
    if role.plays:
        answer = attacked(role, answer)
    images = institution.task(request.job.task).holding.train
    if images > most_images:
        raise RefusalError(
            Outcome.OUT_OF_RANGE, f"{images} images, but the sum allows {most_images:g} at most"
        )
    named = share_of(request.summed, answer, images)
    for name, values in named.items():
        largest = float(np.abs(values).max(initial=0))
        if not largest <= RANGE:
            raise RefusalError(
                Outcome.OUT_OF_RANGE, f"{name} holds {largest:g}, but a secure sum allows up to {RANGE:g}"
            )
    return named, images


def check_exchange(
    institution: Institution, request: SecureRequest, protocol: ConfigRecord, memory: ConfigRecord
) -> None:
    """Raise RefusalError unless the policy and the rules of the sum allow this exchange.

    protocol: the content of Flower's message. memory: the node's state of this sum; empty at the start.
    """
    if request.summed not in CHECKS or protocol.get(Key.STAGE) != request.step:
        raise RefusalError(
            Outcome.SUM_NOT_POSSIBLE, f"{request.summed} {request.step}: not an exchange of a secure sum"
        )
    least = institution.site.policy.minimum_cohort
    if request.step == SETUP:
        CHECKS[request.summed](institution, request.asks)
        members = int(cast(int, protocol[Key.SAMPLE_NUMBER]))
        check_cohort(members, least)
        check_rules(protocol, members, least)
        return
    if not memory:
        raise RefusalError(Outcome.SUM_NOT_POSSIBLE, f"{request.step} before {SETUP}")
    if request.step == SHARE_KEYS:
        present = {int(key) for key in protocol if key != Key.STAGE}
        check_members(institution, request.job.task, present)
    elif request.step == COLLECT:
        present = {number_of(institution), *cast(list[int], protocol[Key.SOURCE_LIST])}
    else:
        present = set(cast(list[int], protocol[Key.ACTIVE_NODE_ID_LIST]))
        gone = set(cast(list[int], protocol[Key.DEAD_NODE_ID_LIST]))
        # With both kinds of shares of one member, the server could unmask this member alone.
        if present & gone or number_of(institution) not in present:
            raise RefusalError(Outcome.SUM_NOT_POSSIBLE, "a member cannot be both present and gone")
    check_cohort(len(present), least)


def check_cohort(members: int, least: int) -> None:
    """Raise RefusalError (cohort-too-small) for fewer members than the policy asks for."""
    if members < least:
        raise RefusalError(
            Outcome.COHORT_TOO_SMALL, f"{members} members in the sum, policy.minimum_cohort is {least}"
        )


def check_rules(protocol: ConfigRecord, members: int, least: int) -> None:
    """Raise RefusalError (sum-not-possible) for parameters other than the fixed ones of secure sums."""
    rules = {
        Key.SHARE_NUMBER: members,
        Key.CLIPPING_RANGE: RANGE,
        Key.TARGET_RANGE: STEPS,
        Key.MOD_RANGE: MODULUS,
    }
    for key, expected in rules.items():
        if protocol.get(key) != expected:
            raise RefusalError(
                Outcome.SUM_NOT_POSSIBLE, f"{key}: expected {expected!r}, found {protocol.get(key)!r}"
            )
    needed = cast(int, protocol[Key.THRESHOLD])
    if members > MOST_MEMBERS or not shares_needed(members, least) <= needed <= members:
        raise RefusalError(Outcome.SUM_NOT_POSSIBLE, f"{needed} of {members} shares to unmask")


def check_members(institution: Institution, task: str, numbers: set[int]) -> None:
    """Raise RefusalError (sum-not-possible) unless every member is an institution that holds the task."""
    scenario = institution.scenario
    holders = {n for n, site in enumerate(scenario.institutions, 1) if task in site.data}
    if not numbers <= holders:
        raise RefusalError(Outcome.SUM_NOT_POSSIBLE, f"{sorted(numbers - holders)}: not holders of {task}")
