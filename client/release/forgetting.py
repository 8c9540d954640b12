"""Deleting what a leaving institution had a part in: copies of entries, and what was computed with them."""

from __future__ import annotations

import shutil

from casam_core.protocol.messages import ForgetReply, ForgetRequest, purge_statement
from casam_core.protocol.signing import public_hex, signature_of, signing_key
from client.evaluation.evaluator import drop_kept_entries
from client.evaluation.results import Results
from client.institution import Institution
from client.release.permission import own_entries


def forget(institution: Institution, request: ForgetRequest) -> ForgetReply:
    """Delete, and sign that it was done.

    The whole copy of the bank goes: the server sends what is left of it with the next evaluation. An entry of
    its own goes too where the leaver had a part in it.
    """
    private = institution.site.private
    shutil.rmtree(private / "bank", ignore_errors=True)
    own = own_entries(institution)
    for head in list(own.heads()):
        if request.leaver in head.provenance.holders and request.leaver != institution.name:
            own.remove(head.task)
    for name in ("scores.jsonl", "masks.jsonl"):
        Results(private / name).forget(request.entries)
    drop_kept_entries()
    key = signing_key(institution.site.key)
    said = purge_statement(institution.name, institution.site.run, request.leaver, request.entries)
    return ForgetReply(public_hex(key), signature_of(key, said))
