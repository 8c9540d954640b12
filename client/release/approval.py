"""Before all else: did the site approve this scenario? Until then one word leaves, and nothing is computed.

A scenario is a question to the images, so the site approves questions and not only code
(client/node/approvals.py keeps them). In a simulation the scenario approves itself.

Before any work, too: does this site's audit log hold what the server last saw of it? If not, the site's home
was restored from a backup, or its log was rewritten. Its ledger is then as old as its log, so every answer
could spend budget again. The site refuses until an officer finds the newer files, or accepts the loss: `casam
audit accept` writes this into the log itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from casam_core.config.site_file import SiteFile
from casam_core.errors import CasamError
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
from client.node.approvals import approvals_in, approve, digest_of_text, keep_pending, read_sent
from client.site import Site

LARGEST_TEXT = 1 << 22
"""Characters of the largest scenario that a real site reads: about 5,000 institutions."""


def require_approval(text: str, institution: str, home: Path, read: Callable[[], SiteFile]) -> None:
    """Raise RefusalError (waiting-for-approval) unless the site approved the scenario in `text`.

    Under approve = "ask" an unapproved text is not even parsed. No other word leaves before the approval, so
    a site file that cannot be read counts as "ask". read: reads the site file.

    Raises PolicyError: approvals.json is damaged.
    """
    digest = digest_of_text(text)
    known = {approval.digest: approval for approval in approvals_in(home)}
    if digest in known and not known[digest].withdrawn:
        return
    if len(text) > LARGEST_TEXT:
        raise waiting(f"a scenario of {len(text)} characters; this site reads {LARGEST_TEXT} at most")
    if digest not in known:
        with contextlib.suppress(CasamError):
            site = read()
            if site.approve == "any" or (site.approve == "policy" and not site.rules.faults(read_sent(text))):
                approve(read_sent(text), institution, site, home, "rules")
                return
    if keep_pending(digest, text, home):
        print(
            f"{institution}: the scenario {digest[:12]} waits for approval; read it with `casam site review "
            f"{digest[:12]}`, then `casam site approve {digest[:12]}`",
            flush=True,
        )
    raise waiting(f"the scenario {digest} is not approved")


def waiting(reason: str) -> RefusalError:
    """The refusal waiting-for-approval."""
    return RefusalError(Outcome.WAITING_FOR_APPROVAL, reason)


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
