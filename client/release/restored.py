"""Before any work: does this site's audit log hold what the server last saw of it?

If not, the site's home was restored from a backup, or its log was rewritten. Its ledger is then as old as its
log, so every answer could spend budget again. The site refuses until an officer finds the newer files, or
accepts the loss: `casam audit accept` writes this into the log itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from casam_core.protocol.audit import (
    SEEN,
    SEEN_SIGNATURE,
    Line,
    against_anchor,
    audit_log,
    head_at,
    seen_statement,
)
from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.payload import Scalar
from casam_core.protocol.register import is_signed, read_register
from client.site import Site

ACCEPTED = "accepted"
"""Kind of a line of the audit log: an officer accepts that the release in `clause` is lost."""


def check_not_restored(site: Site, asked: Mapping[str, Scalar]) -> None:
    """Raise RefusalError (rolled-back) if the log lacks the release that the server saw last.

    asked: the settings of the request. Raises RefusalError (bad-request) for a place that the server did not
    sign, RegisterError, and AuditError for a log that is broken.
    """
    place = str(asked.get(SEEN, ""))
    if not place:
        return
    head = head_at(place, site.institution)
    said = seen_statement(site.institution, place)
    server = read_register(site.register).server
    if head is None or not is_signed(server, said, str(asked.get(SEEN_SIGNATURE, ""))):
        raise RefusalError(Outcome.BAD_REQUEST, "the last place in this log is not signed by the server")
    lines = audit_log(site.audit).lines()
    fault = against_anchor(lines, [head])
    if fault is not None and not accepted(lines, place):
        raise RefusalError(
            Outcome.ROLLED_BACK,
            f"{site.audit}: {fault}; this home is an older copy, so its ledger may count too little. "
            f"Restore the newest copy; if it is lost: casam audit accept {site.audit} {place} --reason TEXT",
        )


def accepted(lines: Sequence[Line], place: str) -> bool:
    """Whether an officer accepted that the log lacks this release."""
    return any(line.release.kind == ACCEPTED and line.release.clause == place for line in lines)
