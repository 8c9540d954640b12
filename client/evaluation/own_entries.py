"""An institution's own entries, which never leave it, and the received bank together with them.

An own entry was learned without noise, after its release was refused. The institution uses it for its own
predictions and pictures. It has no influence on scores, routes and canaries that leave: these are measured
with the received bank alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from casam_core.bank.bank import Bank
from casam_core.bank.entries import make_entry
from casam_core.bank.entry_file import Entry
from casam_core.files import remove, remove_folder
from casam_core.protocol.messages import (
    SCORE,
    AlignReply,
    AlignRequest,
    ForgetReply,
    ForgetRequest,
    RouterReply,
    purge_statement,
)
from casam_core.protocol.payload import Job
from casam_core.protocol.register import sign_as
from casam_core.protocol.relayed import Deleted
from client.dp.paid_release import forget_releases
from client.evaluation.evaluator import MASKS, ROUTES, drop_kept_entries
from client.evaluation.results import Results
from client.institution import Institution
from client.node.relay import Relay
from client.simulation.kept_training import MERGED

PERSONAL, SITE_BANK = "personal", "site-bank"
"""Folders of personal entries (client/evaluation/personal.py), and of one bank with all that answers here."""


class KnownEntries:
    """The received bank, alone or combined with the institution's own entries, as they are at construction.

    own: none for what leaves, except for the IoU with personal entries. Of a task in several banks, the entry
    of the last one is used. heads: the entries' heads in the order of learning; tasks that only the
    institution knows come last. tasks: the tasks of the heads, in this order. routable: by digest, the heads
    that a router can choose.
    """

    def __init__(self, received: Bank, *own: Bank) -> None:
        self._banks = (received, *own)
        self._holding = {task: bank for bank in self._banks for task in bank.tasks}
        by_task = {head.task: head for bank in self._banks for head in bank.heads()}
        self.heads, self.tasks = tuple(by_task.values()), tuple(by_task)
        routable = (head for head in self.heads if head.threshold is not None)
        self.routable = {self.digest_of(head.task): head for head in routable}

    @cached_property
    def chain(self) -> tuple[str, ...]:
        """Item n names the first n routable entries by their digests; n = 0, 1, .. all."""
        return tuple(accumulate(self.routable, linked, initial=""))

    def over(self, *banks: Bank) -> KnownEntries:
        """The same with more banks, whose entries come before these."""
        return KnownEntries(*self._banks, *banks)

    def digest_of(self, task: str) -> str:
        """The digest of the entry used for this task."""
        return self._holding[task].digest_of(task)

    def __getitem__(self, task: str) -> Entry:
        return self._holding[task][task]

    def file_of(self, task: str) -> Path:
        """The file of the entry used for this task."""
        return self._holding[task].file_of(task)


def linked(chain: str, digest: str) -> str:
    """The name of a sequence of entries that goes on with one more."""
    return hashlib.sha256((chain + digest).encode()).hexdigest()


def own_entries(institution: Institution) -> Bank:
    """The institution's own bank."""
    return Bank.open(institution.site.private / "own-entries", create=True)


def learn_alone(institution: Institution, job: Job) -> None:
    """Learn the job's task for this institution alone, without noise, unless its own bank has it already."""
    scenario, own = institution.scenario, own_entries(institution)
    if job.task in own or job.task not in institution.site.tasks:  # a relay has no images of its own
        return
    learned: AlignReply | None = None
    for number in range(1, scenario.training.rounds + 1):
        request = AlignRequest(replace(job, round=number), learned.layer if learned else None)
        learned = institution.align(request)
    assert learned is not None  # a scenario has at least one round
    router = institution.fit_router(job)
    own.add(
        make_entry(
            scenario,
            institution.backbone.digest,
            task=job.task,
            stage=job.stage,
            layer=learned.layer,
            improved=learned.improved is not False,
            holders=(institution.name,),
            images=learned.images,
            router=router.router,
            threshold=as_released(router, scenario.router.constant),
            correction=learned.correction,
        )
    )


def with_own_router(institution: Institution, entry: Entry) -> Entry:
    """The entry with the router of this institution's images alone."""
    fitted = institution.fit_router(Job(institution.name, entry.provenance.stage, entry.task))
    threshold = as_released(fitted, institution.scenario.router.constant)
    return replace(entry, router=dict(fitted.router), threshold=threshold)


def as_released(router: RouterReply, constant: float | None) -> float | None:
    """The threshold in the steps in which it would leave: an own entry is the one that would be shared.

    constant: the threshold of all tasks, if there is one.
    """
    return constant if router.threshold is None else SCORE.fitting(router.threshold)


def known_entries(institution: Institution, received: Bank) -> KnownEntries:
    """The received bank together with this institution's own entries.

    A received entry without a router, which others use by name only, gets a router here if this institution
    holds its task and contributed to it.
    """
    own = own_entries(institution)
    held = institution.site.tasks
    for head in received.heads():
        nameless = head.threshold is None and head.task in held and head.task not in own
        if nameless and institution.name in head.provenance.holders:
            own.add(with_own_router(institution, received[head.task]))
    return KnownEntries(received, own)


def forget(institution: Institution, request: ForgetRequest) -> ForgetReply:
    """Delete and sign: entries that a leaving institution contributed to, and what was computed with them.

    That is: routes, masks, stored releases, pictures. The audit log, the ledger and the log of failures stay:
    they are evidence and hold no weights. The whole copy of the bank is deleted; the server sends the
    remaining entries with the next evaluation. Own entries are deleted too if the leaver contributed to them,
    and personal ones that began with a deleted entry.
    """
    if isinstance(institution, Relay):
        institution.ask_members(request, Deleted)
    private = institution.site.private
    for name in ("bank", SITE_BANK, "overlays"):
        remove_folder(private / name)
    # Listed, not joined: the request's names are the server's text.
    personal = [folder for folder in (private / PERSONAL).glob("*") if folder.name in request.entries]
    banks = [Bank.open(folder, create=True) for folder in personal]
    gone = {*request.entries, *(bank.digest_of(task) for bank in banks for task in bank.tasks)}
    own = own_entries(institution)
    for head in list(own.heads()):
        if request.leaver in head.provenance.holders and request.leaver != institution.name:
            own.remove(head.task)
    own.sweep()  # of an earlier request that a crash ended
    Results(private / MASKS).forget(gone)
    for name in (ROUTES, "scores.jsonl"):  # the second is of earlier versions
        remove(private / name)
    for folder in personal:
        remove_folder(folder)
    forget_releases(institution.site, request.job.stage)
    remove_folder(institution.trained / MERGED)
    drop_kept_entries()
    site = institution.site
    said = purge_statement(institution.name, site.run, request.leaver, request.entries)
    return ForgetReply(sign_as(institution.name, site.key, site.register, said))
