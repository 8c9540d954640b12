"""The server's own audit log: what arrived, chained, with the institutions' heads countersigned."""

from __future__ import annotations

from pathlib import Path

from casam_core.protocol.audit import AuditError, Head, Release, broken, head_at, read_log
from casam_core.protocol.payload import AUDIT, Job, Payload, digest_of


def arrival(
    institution: str, run: str, request: str, kind: str, job: Job, payload: Payload, size: int, time: str
) -> Release:
    """A reply as the server logs it; `clause` holds the place that the institution's own log gave it."""
    return Release(
        time=time,
        institution=institution,
        run=run,
        request=request,
        kind=kind,
        stage=job.stage,
        round=job.round,
        task=job.task,
        outcome=str(payload.config.get("outcome", "")),
        clause=str(payload.config.get(AUDIT, "")),
        records=(),
        bytes=size,
        digest=digest_of(payload),
    )


def read_arrivals(path: Path) -> list[Release]:
    """What arrived. Raises AuditError when the server's own chain is broken."""
    lines = read_log(path)
    if (fault := broken(lines)) is not None:
        raise AuditError(f"{path}: {fault}; this is no evidence of what arrived")
    return [line.release for line in lines]


def heads_of(path: Path) -> list[Head]:
    """The institutions' heads that the server saw: an anchor. Raises AuditError for a broken log."""
    heads = [head_at(release.clause, release.institution) for release in read_arrivals(path)]
    return [head for head in heads if head is not None]
