"""What may leave an institution: the policy's answer to every request, before any work is done for it.

The policy comes from the site (client/site.py), never from the server. A refusal is an exception with a
name (client/refusals.py); what is refused to others the institution may still keep for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from casam_core.audit import AuditLog
from casam_core.bank import Bank, Entry
from casam_core.entries import make_entry
from casam_core.messages import (
    AlignReply,
    AlignRequest,
    CalibrateReply,
    CalibrateRequest,
    EvaluateReply,
    EvaluateRequest,
    RouterReply,
    RouterRequest,
)
from casam_core.methods import method_of
from casam_core.payload import Job, Outcome
from client.institution import Institution
from client.own_entries import KnownEntries
from client.private_learning import (
    align_privately,
    calibrate_privately,
    describe_privately_alone,
    describe_privately_with_others,
)
from client.private_metrics import evaluate_privately
from client.refusals import (
    AdapterNotSharedError,
    EntriesNotAcceptedError,
    MetricsNotSharedError,
    NotPresentError,
    RoundsSpentError,
    RouterNotSharedError,
    SamplesNotKeptError,
)


def align(institution: Institution, request: AlignRequest, others: Sequence[Institution] = ()) -> AlignReply:
    """One round of training, if the trained layer may leave.

    others: institutions whose images are pooled with these (simulations only).
    """
    policy = institution.site.policy
    check_present(institution, request.job)
    if policy.adapter.share == "never":
        if not method_of(institution.scenario.method).shared:
            keep_own_entry(institution, request.job)
        raise AdapterNotSharedError("policy.adapter.share is never")
    past = set(institution.scenario.stream[: request.job.stage - 1]) & set(request.trains_on)
    if past and not policy.keep_samples and not request.pooled:
        raise SamplesNotKeptError(f"{', '.join(sorted(past))}: learned earlier; policy.keep_samples is off")
    if policy.max_rounds is not None and rounds_answered(institution) >= policy.max_rounds:
        raise RoundsSpentError(f"policy.max_rounds is {policy.max_rounds}")
    if policy.adapter.noise == "dp":
        return align_privately(institution, request)
    return institution.align(request, others)


def describe(institution: Institution, request: RouterRequest) -> RouterReply:
    """The task's router, finished or as summaries, if it may leave."""
    check_router_shared(institution, request.job)
    if institution.site.policy.router.noise == "dp":
        describe = describe_privately_alone if request.alone else describe_privately_with_others
        return describe(institution, request)
    if request.alone:
        return institution.describe_alone(request.job)
    return institution.describe_with_others(request.job)


def calibrate(institution: Institution, request: CalibrateRequest) -> CalibrateReply:
    """Held-out scores under the merged routers, if they may leave."""
    check_router_shared(institution, request.job)
    if institution.site.policy.router.noise == "dp":
        return calibrate_privately(institution, request)
    return institution.calibrate(request)


def evaluate(institution: Institution, request: EvaluateRequest) -> EvaluateReply:
    """Take the new entries; scores of the test images, if they may leave."""
    policy = institution.site.policy
    check_present(institution, request.job)
    if not policy.accept_entries:
        for data in request.entries:
            check_own(institution, Entry.from_bytes(data))
    known = known_entries(institution, institution.updated_bank(request))
    if policy.metrics == "never":
        raise MetricsNotSharedError("policy.metrics is never")
    if policy.metrics == "noisy":
        return evaluate_privately(institution, request, known)
    return institution.evaluate(known)


def check_present(institution: Institution, job: Job) -> None:
    """Raise NotPresentError outside of the stages that the policy takes part in."""
    policy = institution.site.policy
    if not policy.present(job.stage):
        raise NotPresentError(
            f"stage {job.stage}: policy.joins_at is {policy.joins_at}, leaves_at {policy.leaves_at}"
        )


def check_router_shared(institution: Institution, job: Job) -> None:
    """Raise NotPresentError or RouterNotSharedError."""
    check_present(institution, job)
    if institution.site.policy.router.share == "never":
        raise RouterNotSharedError("policy.router.share is never")


def check_own(institution: Institution, entry: Entry) -> None:
    """Raise EntriesNotAcceptedError for an entry that others had a part in."""
    if entry.provenance.holders != (institution.name,):
        raise EntriesNotAcceptedError(f"{entry.task}: policy.accept_entries is off")


def rounds_answered(institution: Institution) -> int:
    """Rounds of training that left this institution, in all runs that its audit log knows."""
    lines = AuditLog(institution.site.audit).lines()
    return sum(line.release.kind == "train.align" and line.release.outcome == Outcome.OK for line in lines)


def keep_own_entry(institution: Institution, job: Job) -> None:
    """Learn the task for this institution alone; the entry stays here."""
    scenario, own = institution.scenario, own_entries(institution)
    if job.task in own:
        return
    learned: AlignReply | None = None
    for number in range(1, scenario.training.rounds + 1):
        request = AlignRequest(replace(job, round=number), learned.layer if learned else None)
        learned = institution.align(request)
    assert learned is not None  # a scenario has at least one round
    router = institution.describe_alone(job)
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
            threshold=router.threshold,
        )
    )


def own_entries(institution: Institution) -> Bank:
    """Entries that never leave."""
    return Bank.open(institution.site.private / "own-entries", create=True)


def known_entries(institution: Institution, received: Bank) -> KnownEntries:
    """The received bank with what this institution keeps to itself.

    An entry of its own that others use by its name alone has its router here.
    """
    own = own_entries(institution)
    if institution.site.policy.router.share == "never":
        for entry in received:
            about = entry.provenance
            if institution.name in about.holders and entry.threshold is None and entry.task not in own:
                router = institution.describe_alone(Job(institution.name, about.stage, entry.task))
                own.add(replace(entry, router=dict(router.router), threshold=router.threshold))
    return KnownEntries(received, own)
