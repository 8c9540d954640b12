"""The guard: an allow-list of what an answer may hold. What is not on it does not leave.

Per kind of message: names, dtypes, shapes, ranges. It defends against mistakes, bugs and an honest but
curious server; it cannot see what is hidden inside weights of the right shape (docs/threat-model.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from casam_core.config.scenario import NAME
from casam_core.protocol.answer_check import AnswerError, check_content
from casam_core.protocol.answer_rules import Rules, Sender, rules_for
from casam_core.protocol.messages import IdentifyReply, are_counts
from casam_core.protocol.payload import EPSILON_METRICS, EPSILON_TRAIN, Job, Outcome, Payload, digest_of
from casam_core.protocol.secure_sum import KINDS, SecureReply
from casam_core.protocol.wire import packed, unpacked
from client.dp.paid_release import was_paid_for
from client.institution import Institution
from client.release.refusals import NotAllowedError
from client.secagg.sum_rules import fault_in_sum

CONFIG: dict[str, Callable[[Any], bool]] = {
    "outcome": lambda value: value in Outcome.ALL,
    "improved": lambda value: isinstance(value, bool),
    EPSILON_TRAIN: lambda value: isinstance(value, float) and 0 <= value < 1e6,
    EPSILON_METRICS: lambda value: isinstance(value, float) and 0 <= value < 1e6,
}
"""Settings that an answer of any kind may hold."""

FORGET = {
    **CONFIG,
    "public": lambda value: bool(re.fullmatch(r"[0-9a-f]{64}", str(value))),
    "signature": lambda value: bool(re.fullmatch(r"[0-9a-f]{128}", str(value))),
}
"""Settings of the signed word that something was deleted."""

SUM = {
    **CONFIG,
    "sum": lambda value: value in KINDS,
    "names": lambda value: isinstance(value, str) and len(value) < 10_000,  # compared with the arrays' own
}
"""Settings of an exchange of a secure sum."""

COMPUTE = re.compile(
    r"([a-z]{1,8}-(float32|bfloat16)-t\d{1,3}(-(fast|compiled)-(float32|bfloat16))?)?", re.ASCII
)
"""casam_core.model.compute.Compute.variant, or nothing."""

IDENTIFY: dict[str, Callable[[Any], bool]] = {
    "outcome": lambda value: value in Outcome.ALL,
    "code": lambda value: bool(re.fullmatch(r"[0-9a-f]{16}", str(value))),
    "schema": lambda value: isinstance(value, int) and 0 <= value < 1000,
    "backbone": lambda value: bool(re.fullmatch(r"([0-9a-f]{64})?", str(value))),
    "preprocessing": lambda value: bool(re.fullmatch(r"([0-9a-f]{16})?", str(value))),
    "compute": lambda value: bool(COMPUTE.fullmatch(str(value))),
    "institutions": lambda value: True,  # read and compared as a whole
    "policies": lambda value: True,
    "forecasts": lambda value: True,
    "simulated": lambda value: isinstance(value, bool),
}


def check(kind: str, payload: Payload, institution: Institution | None, job: Job | None) -> None:
    """Raise NotAllowedError, naming what is not on the list for this kind of message."""
    if kind == "query.identify":
        check_config(payload.config, IDENTIFY)
        check_identify(payload)
        rules = Rules({}, {})
    elif institution is None or job is None:
        raise NotAllowedError(f"{kind}: an answer that no institution stands behind")
    else:
        if kind == "train":
            return check_sum(payload, institution, job)
        check_config(payload.config, FORGET if kind == "query.forget" else CONFIG)
        rules = rules_for(kind, sender_of(institution), job)
        check_paid_for(kind, payload, institution)
    try:
        check_content(payload, rules)
    except AnswerError as error:
        raise NotAllowedError(str(error)) from error


def sender_of(institution: Institution) -> Sender:
    """The institution as the list of what may leave knows it."""
    return Sender(
        scenario=institution.scenario,
        holdings=institution.holdings(),
        policy=institution.site.policy,
        channels=institution.backbone.geometry.channels,
        backbone=institution.backbone,
    )


def check_paid_for(kind: str, payload: Payload, institution: Institution) -> None:
    """Where the policy asks for noise, only a stored private release may leave (client/dp/paid_release.py).

    A router and its threshold are computed from one and cannot be compared; they have its noise.
    """
    policy = institution.site.policy
    noisy = {"train.align": policy.adapter.noise == "dp", "evaluate.stage": policy.metrics == "noisy"}
    if noisy.get(kind) and not was_paid_for(institution.site, payload):
        raise NotAllowedError(f"{kind}: the policy asks for noise, and this is no private release")


def check_sum(payload: Payload, institution: Institution, job: Job) -> None:
    """One exchange of a secure sum: keys, encrypted key shares, or arrays under masks, and nothing else.

    What is under the masks was checked before they were put on (client/secagg/member.py).
    """
    check_config(payload.config, SUM)
    if payload.metrics:
        raise NotAllowedError("train: a secure sum holds no numbers in the open")
    kind = str(payload.config.get("sum"))
    if kind not in KINDS:
        raise NotAllowedError("train: not one of what may be summed")
    try:
        reply = SecureReply.of(payload)
        protocol = unpacked(reply.protocol)
    except Exception as error:
        raise NotAllowedError("train: no exchange of a secure sum") from error
    again = SecureReply(kind, reply.step, packed(protocol), reply.names).to_payload()
    bare = {key: value for key, value in payload.config.items() if key in again.config}
    if digest_of(again) != digest_of(Payload(bare, payload.arrays)):
        raise NotAllowedError("train: more than an exchange of a secure sum")
    try:
        fault = fault_in_sum(reply, protocol, rules_for(kind, sender_of(institution), job))
    except Exception as error:
        raise NotAllowedError("train: no exchange of a secure sum") from error
    if fault is not None:
        raise NotAllowedError(f"train {reply.step}: {fault}")


def check_config(config: Mapping[str, Any], known: Mapping[str, Callable[[Any], bool]]) -> None:
    """Only known settings, each of its own form."""
    for key, value in config.items():
        if key not in known:
            raise NotAllowedError(f"setting {key!r} is not on the list")
        if not known[key](value):
            raise NotAllowedError(f"setting {key!r} does not have its form")


def check_identify(payload: Payload) -> None:
    """The two tables hold counts and policies and not a character more."""
    try:
        reply = IdentifyReply.of(payload)
        tables = (*reply.institutions.values(), *reply.forecasts.values())
        counts = [n for tasks in tables for held in tasks.values() for n in vars(held).values()]
    except Exception as error:
        raise NotAllowedError("identify: the tables cannot be read") from error
    if not are_counts(counts):
        raise NotAllowedError("identify: expected counts of images")
    again = reply.to_payload().config
    for key in ("institutions", "policies", "forecasts"):
        if payload.config[key] != again[key]:
            raise NotAllowedError(f"identify: {key} holds more than its table")
    names = [*reply.institutions, *reply.forecasts, *(task for tasks in tables for task in tasks)]
    if not all(re.fullmatch(NAME, name) for name in names):
        raise NotAllowedError(f"identify: names of another form in {json.dumps(names)[:80]}")
