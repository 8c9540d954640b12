"""The guard stops an answer with any field that is not declared.

The list of fields is derived from the declarations of the messages (casam_core.protocol.messages). The guard
protects against mistakes, bugs and an honest but curious server. It cannot see information that is hidden in
weights of the right shape (docs/threat-model.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from casam_core.protocol.limits import AnswerError
from casam_core.protocol.messages import AlignReply, EvaluateReply, IdentifyReply, Sender, allowed_in
from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.payload import AUDIT, Job, Payload, Scalar
from casam_core.protocol.secure_sum import SECURE_SUM
from client.dp.paid_release import was_paid_for
from client.identity import identity_of
from client.institution import Institution
from client.secagg.sum_rules import check_exchange


class NotAllowedError(RefusalError):
    """An answer holds a field or value that is not declared; the message names it."""

    def __init__(self, reason: str) -> None:
        super().__init__(Outcome.NOT_ALLOWED, reason)


def check(
    kind: str,
    payload: Payload,
    institution: Institution | None,
    job: Job | None,
    asked: Mapping[str, Scalar] = MappingProxyType({}),
) -> None:
    """Raise NotAllowedError if the answer holds a field or value that its kind does not declare.

    kind: Flower's message type, such as "train.align". institution, job: those addressed, if any. asked: the
    settings of the request; what it did not ask for must not leave.
    """
    try:
        if institution is None or job is None:
            raise AnswerError(f"{kind}: the answer belongs to no institution")
        elif kind == SECURE_SUM:
            check_exchange(payload, sender_of(institution, job, asked))
        else:
            allowed = allowed_in(kind, sender_of(institution, job, asked))
            del allowed.settings[AUDIT]  # the outbox adds it after the guard
            allowed.check(payload)
            check_paid_for(kind, payload, institution)
    except (AnswerError, ValueError, KeyError, TypeError) as error:
        raise NotAllowedError(str(error)) from error


def check_identity(kind: str, payload: Payload, hosted: Sequence[Institution]) -> None:
    """Raise NotAllowedError if a reply to identify is not exactly what the site itself says.

    The guard makes the reply again from the site's own facts. A pattern would leave room: a count, a limit of
    the policy, the order of the names or a version that looks right carry an image within a few thousand
    replies.

    hosted: the institutions of this node that answer.
    """
    try:
        if kind != IdentifyReply.kind:
            raise AnswerError(f"{kind}: the answer belongs to no institution")
        allowed_in(kind, None).check(payload)
        facts, said = identity_of(hosted).to_payload().config, dict(payload.config)
        if said.pop("outcome", Outcome.OK) != Outcome.OK:
            raise AnswerError("expected the outcome ok")
        for name in sorted(facts.keys() | said.keys()):
            known, found = facts.get(name), said.get(name)
            if type(known) is not type(found) or known != found:
                raise AnswerError(f"setting {name!r} is not what this site says")
    except (AnswerError, ValueError, KeyError, TypeError) as error:
        raise NotAllowedError(str(error)) from error


def sender_of(
    institution: Institution, job: Job, asked: Mapping[str, Scalar] = MappingProxyType({})
) -> Sender:
    """The institution, in the form that the declarations of messages need."""
    return Sender(
        scenario=institution.scenario,
        holdings=institution.holdings(),
        policy=institution.site.policy,
        channels=institution.backbone.geometry.channels,
        backbone=institution.backbone,
        job=job,
        asked=asked,
    )


def check_paid_for(kind: str, payload: Payload, institution: Institution) -> None:
    """If the policy asks for noise, raise AnswerError for anything but a stored private release.

    Routers and thresholds are not compared: they are computed from a stored release and contain its noise.
    """
    policy = institution.site.policy
    noisy = {AlignReply.kind: policy.adapter.noise == "dp", EvaluateReply.kind: policy.metrics == "noisy"}
    if noisy.get(kind) and not was_paid_for(institution.site, payload):
        raise AnswerError(f"{kind}: the policy asks for noise, and this is not a private release")
