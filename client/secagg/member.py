"""An institution's part in a secure sum. The protocol is Flower's SecAgg+; what is decided here is ours.

Three things differ from the mod as it comes: masks have full strength (Flower folds seeds to 32 bits);
numbers have 44 bits, and what would be clipped or overflow is refused; and every exchange is held against the
policy, so that a sum over fewer institutions than `minimum_cohort` is never begun, answered or unmasked.

Claimed against an honest but curious server that relays the members' keys (docs/threat-model.md).
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

# The package gives the mod the name of its module.
flower = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
flower.pseudo_rand_gen = masks  # type: ignore[attr-defined]
flower.quantize = quantize  # type: ignore[attr-defined]

MEMORY = "secure-sum"
"""Key, with the institution's name, of what a node remembers between the exchanges of a sum."""

ANSWERS: dict[str, Callable[[Institution, Payload], Payload]] = {
    "train.align": lambda who, asks: permission.align(who, AlignRequest.of(asks), summed=True).to_payload(),
    "train.router": lambda who, asks: permission.describe(
        who, RouterRequest.of(asks), summed=True
    ).to_payload(),
    "train.calibrate": lambda who, asks: permission.calibrate(
        who, CalibrateRequest.of(asks), summed=True
    ).to_payload(),
}
"""How the question behind a sum is answered: as if it were asked openly, and not sent like that."""

CHECKS: dict[str, Callable[[Institution, Payload], None]] = {
    "train.align": lambda who, asks: permission.check_align(who, AlignRequest.of(asks), summed=True),
    "train.router": lambda who, asks: permission.check_router(who, RouterRequest.of(asks).job, summed=True),
    "train.calibrate": lambda who, asks: permission.check_router(
        who, CalibrateRequest.of(asks).job, summed=True
    ),
}
"""What the policy says before any key is made."""


def take_part(institution: Institution, request: SecureRequest, context: Context) -> SecureReply:
    """This institution's part of one exchange; a layer that it refuses to add it learns for itself.

    Raises RefusalError (cohort-too-small, sum-not-possible, out-of-range), and what answering openly raises.
    """
    if request.summed != "train.align":
        return part(institution, request, context)
    with permission.learned_at_home(institution, request.job):
        return part(institution, request, context)


def part(institution: Institution, request: SecureRequest, context: Context) -> SecureReply:
    """One exchange by Flower's protocol, if it is one that the policy lets us take part in."""
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
    """An institution's number in a sum: its place in the scenario, whatever node it is on."""
    return [site.name for site in institution.scenario.institutions].index(institution.name) + 1


def as_flower_sends(protocol: ConfigRecord, institution: Institution, context: Context) -> Message:
    """The exchange as Flower's mod reads it; it acts on messages of type `train` and on no others.

    Only servers may begin a message in Flower's usual way, so this one is written out.
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
    make = cast(Callable[..., Message], Message)  # Flower's types do not tell of `metadata`
    return make(content=RecordDict({RECORD_KEY_CONFIGS: protocol}), metadata=about)


def share(institution: Institution, request: SecureRequest, most_images: float) -> tuple[Named, int]:
    """(what goes into the sum, its weight), past the guard and within its range."""
    answer = ANSWERS[request.summed](institution, request.asks)
    check(request.summed, answer, institution, request.job)
    role = Role(institution, request.summed, request.job)
    if role.plays:
        answer = attacked(role, answer)
    images = institution.task(request.job.task).holding.train
    if images > most_images:
        raise RefusalError(
            Outcome.OUT_OF_RANGE, f"{images} images, the sum is made for {most_images:g} at most"
        )
    named = share_of(request.summed, answer, images)
    for name, values in named.items():
        largest = float(np.abs(values).max(initial=0))
        if not largest <= RANGE:
            raise RefusalError(
                Outcome.OUT_OF_RANGE, f"{name} holds {largest:g}, a secure sum takes up to {RANGE:g}"
            )
    return named, images


def check_exchange(
    institution: Institution, request: SecureRequest, protocol: ConfigRecord, memory: ConfigRecord
) -> None:
    """Hold one exchange against the policy and the rules of the sum, before anything is done for it."""
    if request.summed not in CHECKS or protocol.get(Key.STAGE) != request.step:
        raise RefusalError(
            Outcome.SUM_NOT_POSSIBLE, f"{request.summed} {request.step}: no exchange of a secure sum"
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
        # Both shares of one member would unmask it alone.
        if present & gone or number_of(institution) not in present:
            raise RefusalError(Outcome.SUM_NOT_POSSIBLE, "a member cannot be both present and gone")
    check_cohort(len(present), least)


def check_cohort(members: int, least: int) -> None:
    """Raise RefusalError (cohort-too-small) for fewer members than the policy asks for."""
    if members < least:
        raise RefusalError(
            Outcome.COHORT_TOO_SMALL, f"{members} in the sum, policy.minimum_cohort is {least}"
        )


def check_rules(protocol: ConfigRecord, members: int, least: int) -> None:
    """The one set of rules by which sums are made; weaker ones are refused."""
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
    """Every member is an institution of the scenario that holds the task."""
    scenario = institution.scenario
    holders = {n for n, site in enumerate(scenario.institutions, 1) if task in site.data}
    if not numbers <= holders:
        raise RefusalError(Outcome.SUM_NOT_POSSIBLE, f"{sorted(numbers - holders)}: no holders of {task}")
