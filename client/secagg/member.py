"""An institution's part in a secure sum. The protocol is Flower's SecAgg+; this module adds our decisions.

Three things differ from Flower's mod. Masks have full strength (Flower reduces seeds to 32 bits). Numbers
have 44 bits, and values that would be clipped or overflow are refused. Every exchange is checked against the
policy, so that a sum over fewer institutions than `minimum_cohort` is never started, answered or unmasked.

It also holds against a server that lies (Bonawitz et al. 2017, section 6). Members sign their keys, so nobody
can put others in their place. They sign the list of members in the sum before it is unmasked, so all see the
same list. Every exchange belongs to one sum (casam_core.protocol.secure_sum.Sum), is answered once and in
order, and the sum is compared with earlier ones (client/secagg/remembered.py).
"""

from __future__ import annotations

import hashlib
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from flwr.app import DEFAULT_TTL, ConfigRecord, Context, Message, Metadata, RecordDict
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, RECORD_KEY_STATE, Key
from flwr.compat.common.recorddict_compat import fitres_to_recorddict

from casam_core.methods import cohort_at, method_of
from casam_core.privacy.keystream import masks
from casam_core.protocol.messages import AlignRequest, CalibrateRequest, RouterRequest
from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.payload import Payload, digest_of
from casam_core.protocol.register import read_register, sign_as
from casam_core.protocol.secure_sum import (
    AGREE,
    COLLECT,
    MODULUS,
    MOST_MEMBERS,
    RANGE,
    SETUP,
    SHARE_KEYS,
    SIGNATURE,
    SIGNATURES,
    SIGNERS,
    STEPS,
    STEPS_OF_A_SUM,
    UNMASK,
    NamedArrays,
    SecureReply,
    SecureRequest,
    Sum,
    is_weight,
    keys_digest,
    quantize,
    question_digest,
    share_of,
    shares_needed,
)
from casam_core.protocol.wire import packed
from client.institution import Institution
from client.release import permission
from client.release.guard import check
from client.secagg.remembered import check_members_before, remember
from client.secagg.sum_request import Protocol, read
from client.simulation.faults import Role, attacked

# In Flower's package, the mod and its module have the same name.
flower = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
flower.pseudo_rand_gen = masks  # type: ignore[attr-defined]
flower.quantize = quantize  # type: ignore[attr-defined]

MEMORY = "secure-sum"
"""Prefix of the state key, before the institution's name, for data kept between the exchanges of a sum."""

SummableQuestion = AlignRequest | RouterRequest | CalibrateRequest

QUESTIONS: dict[str, type[SummableQuestion]] = {
    "train.align": AlignRequest,
    "train.router": RouterRequest,
    "train.calibrate": CalibrateRequest,
}
"""The kinds of questions whose answers can be summed."""


def check_allowed(institution: Institution, question: SummableQuestion) -> None:
    """Raise RefusalError if the policy does not allow this question, before any key is made."""
    if isinstance(question, AlignRequest):
        permission.check_align(institution, question, summed=True)
    else:
        permission.check_router(institution, question, summed=True)


def answer_to(institution: Institution, question: SummableQuestion) -> Payload:
    """The answer, as to an open question; here it leaves masked. Raises RefusalError."""
    if isinstance(question, AlignRequest):
        return permission.align(institution, question, summed=True).to_payload()
    if isinstance(question, RouterRequest):
        return permission.describe(institution, question, summed=True).to_payload()
    return permission.calibrate(institution, question, summed=True).to_payload()


def take_part(institution: Institution, request: SecureRequest, context: Context) -> SecureReply:
    """This institution's part of one exchange. If it refuses to add a layer, it learns one for itself.

    Raises RefusalError: cohort-too-small, sum-not-possible, other-members, sum-broken, out-of-range,
    repeated, or a refusal of the open question.
    """
    if request.summed != "train.align":
        return part(institution, request, context)
    with permission.learned_at_home(institution, request.job):
        return part(institution, request, context)


def part(institution: Institution, request: SecureRequest, context: Context) -> SecureReply:
    """Answer one exchange with Flower's protocol, if the policy allows it and it belongs to the sum."""
    member = SumMember.of(institution, request, context)
    protocol = read(request)
    if request.step != SETUP:
        member.go_on(context)
    CHECKS_OF_STEP[request.step](member, protocol)
    if request.step == SETUP:
        member.begin(context)
    if request.step == AGREE:
        return member.agree(protocol, context)
    named: NamedArrays = {}
    images = 0
    if request.step == COLLECT:
        named, images = share(member)
    answer = member.flower_part(protocol, named, images, context)
    if request.step == SETUP:
        keys = [cast(bytes, answer[key]) for key in (Key.PUBLIC_KEY_1, Key.PUBLIC_KEY_2)]
        answer = {**answer, SIGNATURE: member.signature(member.sum.keys_statement(institution.name, keys))}
    return SecureReply(request.summed, request.step, packed(ConfigRecord(answer)), tuple(named))


@dataclass
class SumMember:
    """One institution in one sum.

    state: Flower's state of the sum. about: ours: `sum` (id), `step`, `asked` (digest of the question without
    its arrays), `keys` (digest of all members' keys), `survivors` (numbers), and `past` (ids of other sums).
    """

    institution: Institution
    request: SecureRequest
    question: SummableQuestion
    sum: Sum
    state: dict[str, Any]
    about: dict[str, Any]

    @staticmethod
    def of(institution: Institution, request: SecureRequest, context: Context) -> SumMember:
        """The institution's place in the sum of a request, with what the node's state remembers of it.

        Raises RefusalError (sum-not-possible, sum-broken) if this question cannot be summed or read.
        """
        if request.summed not in QUESTIONS:
            raise RefusalError(Outcome.SUM_NOT_POSSIBLE, "answers of this kind cannot be summed")
        try:
            question = QUESTIONS[request.summed].of(request.asks)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RefusalError(Outcome.SUM_BROKEN, f"{request.summed}: no such question: {error}") from error
        site, kept = institution.site, context.state.config_records
        about = dict(kept.get(f"{MEMORY}-{institution.name}-about", {}))
        state = dict(kept.get(f"{MEMORY}-{institution.name}", {}))
        return SumMember(
            institution, request, question, request.of_run(site.run, site.scenario), state, about
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks whose images the answer is made from."""
        # Of other questions the setting `tasks` is not read, so a server could write anything there.
        return (
            self.question.trains_on if isinstance(self.question, AlignRequest) else (self.request.job.task,)
        )

    @property
    def numbers(self) -> dict[int, str]:
        """The members' names by their numbers: their places in the scenario, from 1."""
        names = [site.name for site in self.institution.scenario.institutions]
        return {names.index(name) + 1: name for name in self.request.members if name in names}

    @property
    def own(self) -> int:
        """This institution's number."""
        return number_of(self.institution)

    @property
    def asked(self) -> str:
        """Digest of the question without its arrays, which must not change between the exchanges."""
        return digest_of(Payload(self.request.asks.config))

    def begin(self, context: Context) -> None:
        """Forget the sum before and start this one. Raises RefusalError (repeated)."""
        past = [*self.about.get("past", []), self.about.get("sum", "")]
        if self.sum.id in past:
            raise RefusalError(Outcome.REPEATED, "this secure sum was begun before")
        self.state = {}
        self.about = {"sum": self.sum.id, "step": SETUP, "asked": self.asked, "past": past}
        self.keep(context)

    def go_on(self, context: Context) -> None:
        """Take the next step of the sum; it is taken even if the request is refused afterwards.

        Raises RefusalError: sum-not-possible, sum-broken or repeated for any other request.
        """
        step = self.request.step
        if self.about.get("sum") != self.sum.id:
            raise RefusalError(Outcome.SUM_NOT_POSSIBLE, f"{step} before {SETUP}, or of another sum")
        if self.about["asked"] != self.asked:
            raise RefusalError(Outcome.SUM_BROKEN, "another question than the one that began the sum")
        done = STEPS_OF_A_SUM.index(self.about["step"])
        if STEPS_OF_A_SUM.index(step) <= done:
            raise RefusalError(Outcome.REPEATED, f"{step} was answered before")
        if STEPS_OF_A_SUM.index(step) > done + 1:
            raise RefusalError(Outcome.SUM_NOT_POSSIBLE, f"{step} after {self.about['step']}")
        self.about["step"] = step
        self.keep(context)

    def keep(self, context: Context) -> None:
        """Write both parts into the node's state; after the last step without Flower's secrets."""
        done = self.about["step"] == UNMASK
        context.state[f"{MEMORY}-{self.institution.name}"] = ConfigRecord({} if done else self.state)
        context.state[f"{MEMORY}-{self.institution.name}-about"] = ConfigRecord(self.about)

    def signature(self, statement: dict[str, Any]) -> bytes:
        """The institution's signature. Raises RegisterError."""
        site = self.institution.site
        return bytes.fromhex(sign_as(self.institution.name, site.key, site.register, statement))

    def agree(self, protocol: Protocol, context: Context) -> SecureReply:
        """Remember the sum and sign the list of its members. Raises RefusalError (other-members)."""
        survivors = sorted(protocol[Key.ACTIVE_NODE_ID_LIST])
        names = [self.numbers[number] for number in survivors]
        remember(self.institution, self.sum, self.tasks, names)
        self.about["survivors"] = survivors
        self.keep(context)
        said = self.sum.survivors_statement(self.about["keys"], names)
        signed = packed(ConfigRecord({SIGNATURE: self.signature(said)}))
        return SecureReply(self.request.summed, AGREE, signed)

    def flower_part(
        self, protocol: Protocol, named: NamedArrays, images: int, context: Context
    ) -> dict[str, Any]:
        """What Flower's protocol answers. Raises RefusalError (sum-broken) where it raises anything.

        named, images: this institution's share and its weight, in COLLECT.
        """

        def plaintext(message: Message, _: Context) -> Message:
            values = ndarrays_to_parameters(list(named.values()))
            answer = FitRes(Status(Code.OK, ""), values, images, {})
            return Message(fitres_to_recorddict(answer, keep_input=True), reply_to=message)

        known = ConfigRecord({k: v for k, v in protocol.items() if k not in (SIGNATURES, SIGNERS)})
        state = RecordDict({RECORD_KEY_STATE: ConfigRecord(self.state)} if self.state else {})
        inner = Context(context.run_id, context.node_id, context.node_config, state, context.run_config)
        try:
            answer = flower.secaggplus_mod(as_flower_sends(known, self.institution, inner), inner, plaintext)
        except Exception as error:  # keys and encrypted shares come from others and can raise anything
            raise RefusalError(Outcome.SUM_BROKEN, f"{self.request.step}: {error}") from error
        self.state = dict(inner.state.config_records[RECORD_KEY_STATE])
        self.keep(context)
        return dict(answer.content.config_records[RECORD_KEY_CONFIGS])


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


def share(member: SumMember) -> tuple[NamedArrays, int]:
    """(arrays for the sum by name, weight in images), checked by the guard and within the sum's range.

    Raises RefusalError: out-of-range, not-allowed, or a refusal of the open question.
    """
    institution, request, most_images = member.institution, member.request, member.state[Key.MAX_WEIGHT]
    answer = answer_to(institution, member.question)
    check(request.summed, answer, institution, request.job, request.asks.config)
    role = Role(institution, request.summed, request.job)
    if role.plays:
        answer = attacked(role, answer)
    held = institution.holdings()
    images = sum(held[task].train for task in member.tasks)
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


def check_setup(member: SumMember, protocol: Protocol) -> None:
    """Before any key is made: may this question be summed, with these members and rules?

    The members are counted on the site's own register and on those who train in the stage by the scenario.

    Raises RefusalError.
    """
    institution, request = member.institution, member.request
    check_allowed(institution, member.question)
    names, least = request.members, institution.site.policy.minimum_cohort
    if hashlib.sha256(request.protocol.tobytes()).hexdigest() != request.rules:
        raise RefusalError(Outcome.SUM_BROKEN, "other rules than the ones of the sum")
    if list(names) != sorted(set(names)) or institution.name not in names:
        raise RefusalError(Outcome.SUM_BROKEN, "expected the members' names, sorted, with this institution's")
    registered = read_register(institution.site.register).institutions
    scenario, stage = institution.scenario, request.job.stage
    data = {site.name: site.data for site in scenario.institutions}
    trainers = method_of(scenario.method).trainers(cohort_at(scenario, stage, data, data))
    if strangers := set(names) - trainers.keys():
        raise RefusalError(Outcome.SUM_NOT_POSSIBLE, f"{sorted(strangers)}: not trained in stage {stage}")
    if strangers := set(names) - registered.keys():
        raise RefusalError(Outcome.COHORT_TOO_SMALL, f"{sorted(strangers)}: not in the register")
    check_cohort(len(names), least)
    check_rules(protocol, len(names), least)
    check_members_before(institution, member.sum, member.tasks, names)


def check_keys(member: SumMember, protocol: Protocol) -> None:
    """Before shares of secrets are sent: is every key signed by the member that is registered for its name?

    Every member must be there: all of them have seen the same names, rules and question, or the signatures
    are over another sum.

    Raises RefusalError.
    """
    present = sorted(int(key) for key in protocol if key not in (Key.STAGE, SIGNATURES))
    names = member.numbers
    signatures = protocol[SIGNATURES]
    if present != sorted(names) or len(signatures) != len(present):
        raise RefusalError(Outcome.SUM_BROKEN, "expected the keys of exactly the members")
    register = read_register(member.institution.site.register)
    keys = {names[number]: protocol[str(number)] for number in present}
    for (name, pair), signature in zip(keys.items(), signatures, strict=True):
        if not register.is_by(name, member.sum.keys_statement(name, pair), signature.hex()):
            raise RefusalError(Outcome.SUM_BROKEN, f"{name} did not sign these keys for this sum")
    member.about["keys"] = keys_digest(keys)


def check_shares(member: SumMember, protocol: Protocol) -> None:
    """Before the masked arrays are sent: is a share of every other member there, and is it this question?

    Raises RefusalError.
    """
    if sorted(protocol[Key.SOURCE_LIST]) != sorted(member.numbers.keys() - {member.own}):
        raise RefusalError(Outcome.SUM_BROKEN, "expected a share from every other member")
    if question_digest(member.request.asks) != member.request.question:
        raise RefusalError(Outcome.SUM_BROKEN, "another question than the one that the members agreed to")


def check_survivors(member: SumMember, protocol: Protocol) -> None:
    """Before the list of members in the sum is signed: are there enough of them? Raises RefusalError."""
    present = set(protocol[Key.ACTIVE_NODE_ID_LIST])
    if not present <= member.numbers.keys() or member.own not in present:
        raise RefusalError(Outcome.SUM_BROKEN, "expected members, and this institution among them")
    needed = max(member.state[Key.THRESHOLD], member.institution.site.policy.minimum_cohort)
    check_cohort(len(present), needed)


def check_agreement(member: SumMember, protocol: Protocol) -> None:
    """Before shares of secrets are revealed: did enough members sign the same list?

    With both kinds of shares of one member, the server could unmask this member alone.

    Raises RefusalError.
    """
    survivors = member.about.get("survivors", [])
    present, gone = protocol[Key.ACTIVE_NODE_ID_LIST], protocol[Key.DEAD_NODE_ID_LIST]
    if sorted(present) != survivors or sorted([*present, *gone]) != sorted(member.numbers):
        raise RefusalError(Outcome.SUM_BROKEN, "another list of members than the one that was signed")
    signers, signatures = protocol[SIGNERS], protocol[SIGNATURES]
    if len(signers) != len(signatures):
        raise RefusalError(Outcome.SUM_BROKEN, "expected one signature for each signer")
    names = [member.numbers[number] for number in survivors]
    said = member.sum.survivors_statement(member.about["keys"], names)
    register = read_register(member.institution.site.register)
    signed = sum(
        number in survivors and register.is_by(member.numbers[number], said, signature.hex())
        for number, signature in zip(signers, signatures, strict=True)
    )
    if signed < member.state[Key.THRESHOLD]:
        raise RefusalError(
            Outcome.SUM_BROKEN, f"{signed} members signed the list, expected {member.state[Key.THRESHOLD]}"
        )


CHECKS_OF_STEP: dict[str, Callable[[SumMember, Protocol], None]] = {
    SETUP: check_setup,
    SHARE_KEYS: check_keys,
    COLLECT: check_shares,
    AGREE: check_survivors,
    UNMASK: check_agreement,
}
"""What is checked in each exchange, before anything else is done."""


def check_cohort(members: int, least: int) -> None:
    """Raise RefusalError (cohort-too-small) for fewer members than the policy and the sum ask for."""
    if members < least:
        raise RefusalError(Outcome.COHORT_TOO_SMALL, f"{members} members in the sum, expected {least}")


def check_rules(protocol: Protocol, members: int, least: int) -> None:
    """Raise RefusalError (sum-not-possible) for parameters other than the fixed ones of secure sums.

    members: how many. least: the smallest cohort that the policy accepts.
    """
    rules = {
        Key.SAMPLE_NUMBER: members,
        Key.SHARE_NUMBER: members,
        Key.CLIPPING_RANGE: RANGE,
        Key.TARGET_RANGE: STEPS,
        Key.MOD_RANGE: MODULUS,
    }
    for key, expected in rules.items():
        if protocol[key] != expected:
            raise RefusalError(
                Outcome.SUM_NOT_POSSIBLE, f"{key}: expected {expected!r}, found {protocol[key]!r}"
            )
    if not is_weight(protocol[Key.MAX_WEIGHT]):
        raise RefusalError(Outcome.SUM_NOT_POSSIBLE, f"{Key.MAX_WEIGHT}: expected a power of two")
    needed = protocol[Key.THRESHOLD]
    if members > MOST_MEMBERS or not shares_needed(members, least) <= needed <= members:
        raise RefusalError(Outcome.SUM_NOT_POSSIBLE, f"{needed} of {members} shares to unmask")
