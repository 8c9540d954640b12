"""Before all else: did the site approve this scenario? Until then one word leaves, and nothing is computed.

A scenario is a question to the images, so the site approves questions and not only code
(client/node/approvals.py keeps them). In a simulation the scenario approves itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from casam_core.config.site_file import SiteFile
from casam_core.errors import CasamError
from casam_core.protocol.outcomes import Outcome, RefusalError
from client.node.approvals import approvals_in, approve, digest_of_text, keep_pending, read_sent

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
