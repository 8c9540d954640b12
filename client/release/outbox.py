"""The one way out: whatever answers a message passes here, outside of everything else.

It stands around the whole ClientApp (client/client_app.py). An exception becomes one word and an incident
number; an answer is held against the guard's list (client/release/guard.py); what then leaves is a line of
the
institution's audit log before it is sent. What cannot be checked or logged does not leave.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Message, RecordDict

from casam_core.errors import CasamError
from casam_core.protocol.audit import NO_PLACE, Line, Release, audit_log, now
from casam_core.protocol.fingerprint import code_fingerprint
from casam_core.protocol.payload import AUDIT, Outcome, Payload, digest_of
from casam_core.protocol.wire import CONFIG, from_records, job_of, serialise, to_records
from client.dp.paid_release import Account, account_of
from client.institution import Institution
from client.node.incidents import keep
from client.release.guard import check
from client.release.permission import SUMMED
from client.release.refusals import BytesSpentError, PolicyRefusalError, RepeatedError, outcome_of
from client.site import Site


def answer_for(
    message: Message,
    answer: Message | Exception,
    institution: Institution | None,
    sites: Sequence[Site],
    run: str,
    log: Path,
) -> RecordDict:
    """What leaves in reply to `message`: the checked and logged answer, or one word in its place.

    institution: who is addressed, None where nobody is (identify). sites: in whose audit logs it stands.
    log: where the reason of a failure stays.
    """
    kind = message.metadata.message_type
    try:
        clause = clause_of(message)
        if isinstance(answer, Exception):
            raise answer
        content = from_records(answer.content)
        account = account_of(institution) if institution is not None else None
        config = {**content.config, **(account.config() if account else {}), "outcome": Outcome.OK}
        payload = Payload(config, content.arrays, content.metrics)
        check(kind, payload, institution, job_of(message.content))
        places = [logged(site, message, run, payload, clause, account) for site in sites]
    except Exception as error:
        payload = refusal(error, log)
        clause = error.clause if isinstance(error, PolicyRefusalError) else "errors"
        places = []
        # A log that cannot be written lets one bare word out and nothing else.
        with contextlib.suppress(Exception):
            places = [logged(site, message, run, payload, clause) for site in sites]
    if institution is not None and places:
        payload = Payload({**payload.config, AUDIT: places[0]}, payload.arrays, payload.metrics)
    return to_records(payload)


IDENTIFY = "query.identify"

CLAUSES = {
    IDENTIFY: "identify",
    "train.align": "adapter",
    "train.router": "router",
    "train.calibrate": "router",
    "evaluate.stage": "metrics",
    "query.forget": "on_leave",
}
"""The key of the policy that allows each kind of answer."""


def clause_of(message: Message) -> str:
    """The key of the policy that allows an answer to this message."""
    kind = message.metadata.message_type
    if kind != "train":
        return CLAUSES.get(kind, kind)
    return SUMMED.get(str(message.content.config_records[CONFIG].get("sum")), kind)


def refusal(error: Exception, log: Path) -> Payload:
    """One word and an incident number; the reason is appended to the institution's own log."""
    detail = f"{error}\n" if isinstance(error, CasamError) else "".join(traceback.format_exception(error))
    outcome = outcome_of(error)
    # Of other code the server hears which: 16 digits, as every other identify answer tells them.
    version = {"code": code_fingerprint()} if outcome == Outcome.OTHER_CODE else {}
    incident = keep(f"{type(error).__name__}: {detail}", log)
    return Payload({"outcome": outcome, "incident": incident, **version})


def logged(
    site: Site,
    message: Message,
    run: str,
    payload: Payload,
    clause: str,
    account: Account | None = None,
) -> str:
    """The release's place in the audit log, `SEQUENCE:HEAD`; the line is on the disk when this returns.

    Raises BytesSpentError when it would be more than the policy lets out, RepeatedError for a request that
    was answered before.
    """
    placed = Payload({**payload.config, AUDIT: NO_PLACE}, payload.arrays, payload.metrics)
    size, job, request = (
        len(serialise(to_records(placed))),
        job_of(message.content),
        message.metadata.message_id,
    )

    def allow(lines: Sequence[Line]) -> None:
        if payload.config["outcome"] != Outcome.OK:
            return
        if any(line.release.request == request for line in lines):
            raise RepeatedError(f"request {request} was answered before")
        # Who is there may always be said: a run could not go on without those that are silent.
        sent = sum(line.release.bytes for line in lines if line.release.kind != IDENTIFY)
        most = site.policy.max_bytes
        if most is not None and message.metadata.message_type != IDENTIFY and sent + size > most:
            raise BytesSpentError(f"policy.max_bytes is {most}; this answer of {size} bytes would pass it")

    line = audit_log(site.audit).append(
        Release(
            time=now(),
            institution=site.institution,
            run=run,
            request=request,
            kind=message.metadata.message_type,
            stage=job.stage if job else 0,
            round=job.round if job else 0,
            task=job.task if job else "",
            outcome=str(payload.config["outcome"]),
            clause=clause,
            records=described(payload),
            bytes=size,
            digest=digest_of(payload),
            epsilon=account.logged() if account else None,
        ),
        allow,
    )
    return line.place


def described(payload: Payload) -> tuple[str, ...]:
    """What is in it, without a value of it."""
    arrays = (
        f"{name}/{key} {array.dtype} {array.shape}"
        for name, group in payload.arrays.items()
        for key, array in group.items()
    )
    return (*arrays, *(f"{name} {len(numbers)} numbers" for name, numbers in payload.metrics.items()))
