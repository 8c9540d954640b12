"""The outbox: every answer of the institution passes here before it leaves.

It encloses the whole ClientApp (client/client_app.py). It replaces an exception with one word and an incident
number. The guard checks each answer, and the outbox writes it to the institution's audit log before it is
sent. An answer that cannot be checked or logged is not sent.
"""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from flwr.app import Message, RecordDict

from casam_core.errors import CasamError
from casam_core.protocol.audit import NO_PLACE, Line, Release, audit_log, now
from casam_core.protocol.fingerprint import code_fingerprint
from casam_core.protocol.messages import EPSILON, REPLIES, IdentifyReply, IdentifyRequest
from casam_core.protocol.outcomes import Outcome, RefusalError, outcome_of
from casam_core.protocol.payload import AUDIT, EPSILONS, Job, Payload, Scalar, digest_of, in_order
from casam_core.protocol.secure_sum import KINDS, SECURE_SUM
from casam_core.protocol.wire import CONFIG, config_record, from_records, serialise, settings_of, to_records
from client.identity import signed
from client.institution import Institution
from client.node.incidents import keep
from client.release.guard import NotAllowedError, check, check_identity
from client.release.ledger import Account, account_of
from client.release.permission import check_rounds, is_round, summed_clause
from client.site import Site


def answer_for(
    message: Message,
    answer: Payload | Exception,
    speakers: Sequence[Institution],
    sites: Sequence[Site],
    run: str,
    log: Path,
    job: Job | None,
) -> RecordDict:
    """The reply to `message` that is sent: the checked and logged answer, or one word instead of it.

    Args:
        answer: the handler's answer, or the exception that it raised.
        speakers: the addressed institution; all that the node hosts for a request that addresses none
            (identify).
        sites: the sites whose audit logs record the release.
        run: name of the run.
        log: local file for the reason of a failure.
        job: of the request; None if it names none.
    """
    kind = message.metadata.message_type
    institution = speakers[0] if job is not None and speakers else None
    try:
        if isinstance(answer, Exception):
            raise answer
        if job is None:
            payload = with_outcome(answer)
            check_identity(kind, payload, speakers)
            request = IdentifyRequest.of(from_records(message.content))
            said = signed(IdentifyReply.of(payload), request, speakers)
            whole = with_outcome(said.to_payload())
            records = placed(whole)
            for speaker in speakers:  # each logs its own part: others may speak through the same node
                own, part = whole, records
                if len(speakers) > 1:
                    own = with_outcome(said.of_one(speaker.name).to_payload())
                    part = placed(own)
                logged(speaker.site, message, run, own, part, clause_of(message), job)
            return leaving(records, None)
        account = account_of(institution) if institution is not None else None
        payload = with_outcome(answer, account.settings() if account else {})
        check(kind, payload, institution, job, settings_of(message.content))
        clause = clause_of(message)
        records = placed(payload)
        places = [logged(site, message, run, payload, records, clause, job, account) for site in sites]
    except Exception as error:
        payload = refusal(error, log)
        records = placed(payload)
        clause = outcome_of(error).clause or "errors"
        places = []
        # If the audit log cannot be written, only the word and the incident number are sent.
        with contextlib.suppress(Exception):
            places = [logged(site, message, run, payload, records, clause, job) for site in sites]
    return leaving(records, places[0] if institution is not None and places else None)


def placed(payload: Payload) -> RecordDict:
    """The records of a reply with the placeholder of its place: every place is of one length."""
    return to_records(Payload({**payload.config, AUDIT: NO_PLACE}, payload.arrays, payload.metrics))


def leaving(records: RecordDict, place: str | None) -> RecordDict:
    """The records with their place in the audit log; None: without one."""
    config = config_record(records, CONFIG)
    if place is None:
        del config[AUDIT]
    else:
        config[AUDIT] = place
    return records


def with_outcome(content: Payload, spent: Mapping[str, Scalar] = MappingProxyType({})) -> Payload:
    """An answer with the settings that the outbox adds before the guard. spent: the account's settings.

    Raises NotAllowedError if the work wrote one of them itself.
    """
    if odd := content.config.keys() & {*EPSILONS, AUDIT}:
        raise NotAllowedError(f"setting {min(odd)!r} is the outbox's own")
    # Rounded up, because epsilon is an upper limit.
    rounded = {
        key: EPSILON.fitting(math.ceil(float(value) * 1e4 - 1e-6) / 1e4) for key, value in spent.items()
    }
    config = {**content.config, **rounded, "outcome": Outcome.OK.value}
    return in_order(Payload(config, content.arrays, content.metrics))


def clause_of(message: Message) -> str:
    """The key of the policy that allows an answer to this message."""
    kind = message.metadata.message_type
    if kind != SECURE_SUM:
        return REPLIES[kind].clause
    summed = str(config_record(message.content, CONFIG).get("sum"))
    return summed_clause(REPLIES[summed].clause) if summed in KINDS else kind


def refusal(error: Exception, log: Path) -> Payload:
    """One word and an incident number; the reason is appended to the institution's own log."""
    detail = f"{error}\n" if isinstance(error, CasamError) else "".join(traceback.format_exception(error))
    outcome = outcome_of(error)
    if outcome == Outcome.WAITING_FOR_APPROVAL:  # this word and nothing else
        return Payload({"outcome": outcome.value})
    # For other-code, the reply names this node's code fingerprint, as every identify reply does.
    version = {"code": code_fingerprint()} if outcome == Outcome.OTHER_CODE else {}
    title = outcome.value if isinstance(error, RefusalError) else type(error).__name__
    return Payload({"outcome": outcome.value, "incident": keep(f"{title}: {detail}", log), **version})


def logged(
    site: Site,
    message: Message,
    run: str,
    payload: Payload,
    records: RecordDict,
    clause: str,
    job: Job | None,
    account: Account | None = None,
) -> str:
    """Write the release to the audit log; the line is on disk when this function returns.

    records: those of the payload (placed). clause: the key of the policy that allowed it.

    Returns:
        The line's place in the log, `SEQUENCE:HEAD`.

    Raises:
        RefusalError: bytes-spent or rounds-spent (the policy allows fewer), or repeated (answered before).
    """
    about = message.metadata
    release = Release(
        time=now(),
        institution=site.institution,
        run=run,
        request=about.message_id,
        kind=about.message_type,
        stage=job.stage if job else 0,
        round=job.round if job else 0,
        task=job.task if job else "",
        outcome=str(payload.config["outcome"]),
        clause=clause,
        records=described(payload),
        bytes=len(serialise(records)),
        digest=digest_of(payload),
        epsilon=account.logged() if account else None,
    )

    def allow(lines: Sequence[Line]) -> None:
        if release.outcome == Outcome.OK:
            check_once(release.request, lines)
            check_bytes(release, lines, site.policy.max_bytes)
            if is_round(release):  # again: other processes may have answered since the work began
                check_rounds(sum(is_round(line.release) for line in lines), site.policy.max_rounds)

    return audit_log(site.audit).add(release, allow).place


def check_once(request: str, lines: Sequence[Line]) -> None:
    """Raise RefusalError (repeated) for a request that was answered before. request: Flower's message id."""
    if any(line.release.request == request for line in lines):
        raise RefusalError(Outcome.REPEATED, f"request {request} was answered before")


def check_bytes(release: Release, lines: Sequence[Line], most: int | None) -> None:
    """Raise RefusalError (bytes-spent) if all releases together exceed the policy's `max_bytes`.

    A reply to identify counts, too. It is sent even so: a run could not continue without it, and it holds
    nothing but the facts that the guard compares.
    """
    if most is None or release.kind == IdentifyReply.kind:
        return
    sent = sum(line.release.bytes for line in lines)
    if sent + release.bytes > most:
        raise RefusalError(
            Outcome.BYTES_SPENT,
            f"policy.max_bytes is {most}; this answer of {release.bytes} bytes would pass it",
        )


def described(payload: Payload) -> tuple[str, ...]:
    """Names, types and shapes of the payload's content, without its values."""
    arrays = (
        f"{name}/{key} {array.dtype} {array.shape}"
        for name, group in payload.arrays.items()
        for key, array in group.items()
    )
    return (*arrays, *(f"{name} {len(numbers)} numbers" for name, numbers in payload.metrics.items()))
