"""What may leave an institution: the policy's answer to every request, before any work is done for it.

The policy comes from the site (client/site.py), never from the server. A refusal is an exception with a
name (client/release/refusals.py); what is refused to others the institution may still keep for itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from casam_core.bank.bank import Bank
from casam_core.bank.entries import make_entry
from casam_core.bank.entry_file import Entry
from casam_core.config.policy import LearnedPolicy
from casam_core.methods import method_of
from casam_core.protocol.audit import audit_log
from casam_core.protocol.messages import (
    AlignReply,
    AlignRequest,
    CalibrateReply,
    CalibrateRequest,
    EvaluateReply,
    EvaluateRequest,
    RouterReply,
    RouterRequest,
)
from casam_core.protocol.payload import Job, Outcome
from casam_core.protocol.secure_sum import released_in
from client.dp.noisy_layer import align_privately
from client.dp.noisy_metrics import evaluate_privately
from client.dp.noisy_router import (
    calibrate_privately,
    fit_router_privately,
    router_statistics_privately,
)
from client.evaluation.known_entries import KnownEntries
from client.evaluation.overlays import draw_overlays
from client.institution import Institution
from client.release.canary import canary
from client.release.refusals import (
    AdapterNotSharedError,
    CohortTooSmallError,
    EntriesNotAcceptedError,
    MetricsNotSharedError,
    NotPresentError,
    PolicyRefusalError,
    RoundsSpentError,
    RouterNotSharedError,
    SamplesNotKeptError,
    SumNotPossibleError,
)


def align(
    institution: Institution,
    request: AlignRequest,
    others: Sequence[Institution] = (),
    *,
    summed: bool = False,
) -> AlignReply:
    """One round of training, if the trained layer may leave.

    others: institutions whose images are pooled with these (simulations only). summed: what is returned
    leaves in a secure sum only (client/secagg/member.py).
    """
    check_align(institution, request, summed=summed)
    if institution.site.policy.adapter.noise == "dp":
        with learned_at_home(institution, request.job):
            return align_privately(institution, request)
    return institution.align(request, others)


def check_align(institution: Institution, request: AlignRequest, *, summed: bool) -> None:
    """Raise what the policy has against a round of training."""
    policy = institution.site.policy
    with learned_at_home(institution, request.job):
        check_present(institution, request.job)
        if policy.adapter.share == "never":
            raise AdapterNotSharedError("policy.adapter.share is never")
        check_way(policy.adapter, summed)
        seen = request.job.stage if request.again else request.job.stage - 1
        past = set(institution.scenario.stream[:seen]) & set(request.trains_on)
        if past and not policy.keep_samples and not request.pooled:
            raise SamplesNotKeptError(
                f"{', '.join(sorted(past))}: learned earlier; policy.keep_samples is off"
            )
        if policy.max_rounds is not None and rounds_answered(institution) >= policy.max_rounds:
            raise RoundsSpentError(f"policy.max_rounds is {policy.max_rounds}")


def check_way(learned: LearnedPolicy, summed: bool) -> None:
    """Raise CohortTooSmallError where something is asked openly that leaves in secure sums only."""
    if learned.aggregation == "secagg" and not summed:
        raise CohortTooSmallError("the policy asks for a secure sum, the request is for this site alone")


def describe(institution: Institution, request: RouterRequest, *, summed: bool = False) -> RouterReply:
    """The task's router, finished or as summaries, if it may leave."""
    check_router(institution, request.job, summed=summed)
    if institution.site.policy.router.noise == "dp":
        describe = fit_router_privately if request.alone else router_statistics_privately
        return describe(institution, request)
    if request.alone:
        return institution.fit_router(request.job)
    return institution.router_statistics(request.job)


def calibrate(institution: Institution, request: CalibrateRequest, *, summed: bool = False) -> CalibrateReply:
    """Held-out scores under the merged routers, if they may leave."""
    check_router(institution, request.job, summed=summed)
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
        draw_overlays(institution, request.job, known)
        raise MetricsNotSharedError("policy.metrics is never")
    failed = canary(institution, request, known) if request.candidate else None
    if policy.metrics == "noisy":
        reply = evaluate_privately(institution, request, known, failed)
    else:
        reply = replace(institution.evaluate(known), canary=failed)
    # After the answer is made: what pictures compute must not show in its count of decodes.
    draw_overlays(institution, request.job, known)
    return reply


def check_present(institution: Institution, job: Job) -> None:
    """Raise NotPresentError outside of the stages that the policy takes part in."""
    policy = institution.site.policy
    if not policy.present(job.stage):
        raise NotPresentError(
            f"stage {job.stage}: policy.joins_at is {policy.joins_at}, leaves_at {policy.leaves_at}"
        )


def check_router(institution: Institution, job: Job, *, summed: bool) -> None:
    """Raise what the policy has against a router or its threshold."""
    check_present(institution, job)
    policy = institution.site.policy
    if policy.router.share == "never":
        raise RouterNotSharedError("policy.router.share is never")
    check_way(policy.router, summed)
    if summed and not institution.router.additive:
        raise SumNotPossibleError(f"router.kind {institution.scenario.router.kind!r} cannot be added up")


def check_own(institution: Institution, entry: Entry) -> None:
    """Raise EntriesNotAcceptedError for an entry that others had a part in."""
    if entry.provenance.holders != (institution.name,):
        raise EntriesNotAcceptedError(f"{entry.task}: policy.accept_entries is off")


def rounds_answered(institution: Institution) -> int:
    """Rounds of training that left this institution, in all runs that its audit log knows."""
    left = [line.release for line in audit_log(institution.site.audit).lines()]
    openly = sum(release.kind == "train.align" and release.outcome == Outcome.OK for release in left)
    in_sums = sum(
        release.clause == SUMMED["train.align"] and released_in(release.records) for release in left
    )
    return openly + in_sums


SUMMED = {
    "train.align": "adapter, aggregation",
    "train.router": "router, aggregation",
    "train.calibrate": "router, aggregation",
}
"""The keys of the policy that allow what leaves in a secure sum."""


@contextlib.contextmanager
def learned_at_home(institution: Institution, job: Job) -> Iterator[None]:
    """What is refused inside is learned for this institution alone.

    Only where nothing of this stage has left yet, and methods know entries by task.
    """
    try:
        yield
    except PolicyRefusalError as refusal:
        if refusal.own and job.round == 1 and not method_of(institution.scenario.method).shared:
            keep_own_entry(institution, job)
        raise


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
            threshold=router.threshold,
        )
    )


def own_entries(institution: Institution) -> Bank:
    """Entries that never leave."""
    return Bank.open(institution.site.private / "own-entries", create=True)


def known_entries(institution: Institution, received: Bank) -> KnownEntries:
    """The received bank with what this institution keeps to itself.

    An entry that others use by its name alone has its router here, where its task's images are.
    """
    own = own_entries(institution)
    held = institution.scenario.institution(institution.name).data
    for head in received.heads():
        about = head.provenance
        nameless = head.threshold is None and head.task in held and head.task not in own
        if nameless and institution.name in about.holders:
            router = institution.fit_router(Job(institution.name, about.stage, head.task))
            entry = received[head.task]
            own.add(replace(entry, router=dict(router.router), threshold=router.threshold))
    return KnownEntries(received, own)
