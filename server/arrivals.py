"""The server's own audit log: what arrived, chained, with the institutions' heads countersigned."""

from __future__ import annotations

import re
from pathlib import Path

from casam_core.audit import AuditError, Head, Release, broken, read_log
from casam_core.payload import AUDIT, Job, Payload, digest_of

PLACE = re.compile(r"(\d{12}):([0-9a-f]{64})")


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
    heads = []
    for release in read_arrivals(path):
        if place := PLACE.fullmatch(release.clause):
            heads.append(Head(release.institution, int(place[1]), place[2]))
    return heads
