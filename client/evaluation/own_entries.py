"""An institution's own entries, which never leave it, and the received bank together with them.

An own entry was learned without noise, after its release was refused. The institution uses it for its own
predictions and pictures. It has no influence on scores, routes and canaries that leave: these are measured
with the received bank alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from casam_core.bank.bank import Bank
from casam_core.bank.entries import make_entry
from casam_core.bank.entry_file import Entry
from casam_core.files import remove_folder
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
from client.dp.paid_release import forget_releases
from client.evaluation.evaluator import drop_kept_entries
from client.evaluation.results import Results
from client.institution import Institution
from client.simulation.kept_training import MERGED


class KnownEntries:
    """The received bank, alone or combined with the institution's own entries, as they are at construction.

    own: None for everything that leaves. For a task in both, the institution's own entry is used. heads: the
    entries' heads in the order of learning; tasks that only the institution knows come last. tasks: the tasks
    of the heads, in this order.
    """

    def __init__(self, received: Bank, own: Bank | None = None) -> None:
        self._received = received
        self._own = own
        by_task = {head.task: head for head in received.heads()}
        by_task |= {head.task: head for head in own.heads()} if own is not None else {}
        self.heads, self.tasks = tuple(by_task.values()), tuple(by_task)

    def _holding(self, task: str) -> Bank:
        return self._own if self._own is not None and task in self._own else self._received

    def digest_of(self, task: str) -> str:
        """The digest of the entry used for this task."""
        return self._holding(task).digest_of(task)

    def __getitem__(self, task: str) -> Entry:
        return self._holding(task)[task]

    def file_of(self, task: str) -> Path:
        """The file of the entry used for this task."""
        return self._holding(task).file_of(task)


def own_entries(institution: Institution) -> Bank:
    """The institution's own bank."""
    return Bank.open(institution.site.private / "own-entries", create=True)


def learn_alone(institution: Institution, job: Job) -> None:
    """Learn the job's task for this institution alone, without noise, unless its own bank has it already."""
    scenario, own = institution.scenario, own_entries(institution)
    if job.task in own:
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
    held = institution.scenario.institution(institution.name).data
    for head in received.heads():
        about = head.provenance
        nameless = head.threshold is None and head.task in held and head.task not in own
        if nameless and institution.name in about.holders:
            router = institution.fit_router(Job(institution.name, about.stage, head.task))
            threshold = as_released(router, institution.scenario.router.constant)
            own.add(replace(received[head.task], router=dict(router.router), threshold=threshold))
    return KnownEntries(received, own)


def forget(institution: Institution, request: ForgetRequest) -> ForgetReply:
    """Delete and sign: entries that a leaving institution contributed to, and what was computed with them.

    That is: scores, masks, stored releases, pictures. The audit log, the ledger and the log of failures stay:
    they are evidence and hold no weights. The whole copy of the bank is deleted; the server sends the
    remaining entries with the next evaluation. Own entries are deleted too if the leaver contributed to them.
    """
    private = institution.site.private
    remove_folder(private / "bank")
    own = own_entries(institution)
    for head in list(own.heads()):
        if request.leaver in head.provenance.holders and request.leaver != institution.name:
            own.remove(head.task)
    for name in ("scores.jsonl", "masks.jsonl"):
        Results(private / name).forget(request.entries)
    forget_releases(institution.site, request.job.stage)
    remove_folder(institution.trained / MERGED)
    remove_folder(private / "overlays")
    drop_kept_entries()
    site = institution.site
    said = purge_statement(institution.name, site.run, request.leaver, request.entries)
    return ForgetReply(sign_as(institution.name, site.key, site.register, said))
