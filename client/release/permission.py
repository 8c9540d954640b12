"""The second step on the way out: does the policy allow the request? This is decided before any work is done.

The policy comes from the site (client/site.py), never from the server. A refusal is an exception with one
word (casam_core.protocol.outcomes). An institution that refuses to share may still learn the task for itself.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from casam_core.bank.entry_file import Entry
from casam_core.config.policy import LearnedPolicy
from casam_core.methods import alignment_of, method_of
from casam_core.protocol.audit import Release, audit_log
from casam_core.protocol.messages import (
    AlignReply,
    AlignRequest,
    CalibrateReply,
    CalibrateRequest,
    EvaluateReply,
    EvaluateRequest,
    Question,
    RouterReply,
    RouterRequest,
    may_compare,
)
from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.payload import Job
from casam_core.protocol.secure_sum import released_in
from client.data.splits import SplitPart
from client.dp.noisy_layer import align_privately
from client.dp.noisy_metrics import evaluate_privately
from client.dp.noisy_router import (
    calibrate_privately,
    fit_router_privately,
    router_statistics_privately,
)
from client.evaluation.canary import canary
from client.evaluation.entry_mirror import fetched
from client.evaluation.overlays import draw_overlays
from client.evaluation.own_entries import KnownEntries, learn_alone
from client.evaluation.personal import tell_personal
from client.institution import Institution
from client.node.incidents import keep
from client.node.relay import Relay
from client.release.question import (
    REPLY_TO,
    check_entry,
    check_folds,
    check_question,
    remember_question,
)
from client.secagg.remembered import remember_alone


def align(
    institution: Institution,
    request: AlignRequest,
    others: Sequence[Institution] = (),
    *,
    summed: bool = False,
) -> AlignReply:
    """Train one round, if the policy lets the trained layer leave.

    Args:
        others: institutions whose images are pooled with these (simulations only).
        summed: whether the reply leaves only as part of a secure sum (client/secagg/member.py).

    Raises:
        RefusalError: the policy does not allow it.
    """
    check_align(institution, request, summed=summed)
    keep_answer(institution, request, request.trains_on, summed=summed)
    if institution.site.policy.adapter.noise == "dp":
        with learned_at_home(institution, request.job):
            return align_privately(institution, request)
    reply = institution.align(request, others)
    told = may_compare(institution.scenario, request.job, institution.site.policy)
    return reply if told else replace(reply, improved=None)


def keep_answer(institution: Institution, request: Question, tasks: Sequence[str], *, summed: bool) -> None:
    """Write down the question, and unless `summed` that its answer, of images of `tasks`, leaves alone."""
    remember_question(institution, request)
    if not summed:
        remember_alone(institution, REPLY_TO[type(request)].kind, tasks)


def check_align(institution: Institution, request: AlignRequest, *, summed: bool) -> None:
    """Raise RefusalError if the policy does not allow this round of training."""
    policy = institution.site.policy
    check_question(institution, request)
    with learned_at_home(institution, request.job):
        check_present(institution, request.job)
        if policy.adapter.share == "never":
            raise RefusalError(Outcome.ADAPTER_NOT_SHARED, "policy.adapter.share is never")
        check_way(policy.adapter, summed)
        if summed and institution.scenario.training.strategy == "scaffold":
            raise RefusalError(Outcome.SUM_NOT_POSSIBLE, "strategy 'scaffold' needs each control variate")
        finder = alignment_of(institution.scenario, request.job.task).finder
        if summed and finder and policy.finder == "never":
            raise RefusalError(
                Outcome.SUM_NOT_POSSIBLE, "policy.finder is never: other finders would hide among fewer"
            )
        check_samples(institution, request)
        check_enough(institution, request.trains_on, "train")
        if policy.max_rounds is not None:
            check_rounds(rounds_answered(institution), policy.max_rounds)


def check_samples(institution: Institution, request: AlignRequest) -> None:
    """Raise RefusalError if the request needs images of an earlier stage and the policy keeps none."""
    seen = request.job.stage if request.again else request.job.stage - 1
    scenario = institution.scenario
    past = set(scenario.own_streams.get(institution.name, scenario.stream)[:seen]) & set(request.trains_on)
    if past and not institution.site.policy.keep_samples and not request.pooled:
        raise RefusalError(
            Outcome.SAMPLES_NOT_KEPT,
            f"{', '.join(sorted(past))}: learned earlier; policy.keep_samples is off",
        )


def check_way(learned: LearnedPolicy, summed: bool) -> None:
    """Raise RefusalError if the policy requires a secure sum and the request is not part of one."""
    if learned.aggregation == "secagg" and not summed:
        raise RefusalError(
            Outcome.COHORT_TOO_SMALL, "the policy requires a secure sum; the request is for this site alone"
        )


def describe(institution: Institution, request: RouterRequest, *, summed: bool = False) -> RouterReply:
    """The task's router, fitted or as sufficient statistics, if the policy lets it leave."""
    check_router(institution, request, summed=summed)
    keep_answer(institution, request, [request.job.task], summed=summed)
    if institution.site.policy.router.noise == "dp":
        describe = fit_router_privately if request.alone else router_statistics_privately
        return describe(institution, request)
    if request.alone:
        return institution.fit_router(request.job)
    return institution.router_statistics(request.job)


def calibrate(institution: Institution, request: CalibrateRequest, *, summed: bool = False) -> CalibrateReply:
    """Held-out scores under the merged routers, if the policy lets them leave."""
    check_router(institution, request, summed=summed)
    check_folds(institution, request)
    keep_answer(institution, request, [request.job.task], summed=summed)
    if institution.site.policy.router.noise == "dp":
        return calibrate_privately(institution, request)
    return institution.calibrate(request)


def check_router(
    institution: Institution, request: RouterRequest | CalibrateRequest, *, summed: bool
) -> None:
    """Raise RefusalError if the policy does not let a router or its threshold leave."""
    check_question(institution, request)
    check_present(institution, request.job)
    policy = institution.site.policy
    if policy.router.share == "never":
        raise RefusalError(Outcome.ROUTER_NOT_SHARED, "policy.router.share is never")
    check_way(policy.router, summed)
    check_enough(institution, [request.job.task], "train")
    if summed and not institution.router.additive:
        kind = institution.scenario.router.kind
        raise RefusalError(Outcome.SUM_NOT_POSSIBLE, f"router.kind {kind!r} cannot be added up")


def evaluate(institution: Institution, request: EvaluateRequest) -> EvaluateReply:
    """Add the new entries to the local bank; score the test images if the policy lets the scores leave.

    The scores are those of the received bank: the institution's own entries, which were refused for release,
    appear only in its own pictures. Personal entries have one figure per task beside them.

    Raises RefusalError.
    """
    policy = institution.site.policy
    check_question(institution, request)
    check_present(institution, request.job)
    if request.names:
        request = replace(request, entries=fetched(institution.site.mirror, request.names), names=())
    for entry in map(Entry.from_bytes, request.entries):
        if not policy.accept_entries:
            check_own(institution, entry)
        check_entry(institution, entry, request.job)
    if isinstance(institution, Relay):
        return scores_of_members(institution, request)
    bank = institution.updated_bank(request)
    released = KnownEntries(bank)
    try:
        if policy.metrics == "never":
            raise RefusalError(Outcome.METRICS_NOT_SHARED, "policy.metrics is never")
        check_enough(institution, institution.site.tasks, institution.scenario.evaluation.split)
        remember_question(institution, request)
        failed = canary(institution, request, released) if request.candidates else None
        if policy.metrics == "noisy":
            return evaluate_privately(institution, request, released, failed)
        reply = replace(institution.evaluate(released), canary=failed)
        return tell_personal(institution, reply, bank) if institution.personal else reply
    finally:
        # Afterwards, so that the work for the institution itself changes no figure of the answer.
        draw_overlays(institution, request.job, bank)


def scores_of_members(relay: Relay, request: EvaluateRequest) -> EvaluateReply:
    """A relay's members take the entries; scores leave if its policy allows it, too. Raises RefusalError."""
    remember_question(relay, request)
    reply = relay.ask_members(request, EvaluateReply)
    if relay.site.policy.metrics == "never":
        raise RefusalError(Outcome.METRICS_NOT_SHARED, "policy.metrics is never")
    return reply if relay.site.policy.canaries else replace(reply, canary=None)


def check_enough(institution: Institution, tasks: Iterable[str], part: SplitPart) -> None:
    """Raise RefusalError (too-few-images) if a task has fewer images than the site file's minimum."""
    for task in tasks:
        described = institution.site.tasks.get(task)
        if described is None:
            continue
        images = len(institution.task(task).split.part(part))
        least = described.minimum.train if part == "train" else described.minimum.test
        if images < least:
            raise RefusalError(
                Outcome.TOO_FEW_IMAGES, f"{task}: {images} images in {part}, the site's minimum is {least}"
            )


def check_present(institution: Institution, job: Job) -> None:
    """Raise RefusalError if the policy does not take part in the job's stage."""
    policy = institution.site.policy
    if not policy.present(job.stage):
        raise RefusalError(
            Outcome.NOT_PRESENT,
            f"stage {job.stage}: policy.joins_at is {policy.joins_at}, leaves_at {policy.leaves_at}",
        )


def check_own(institution: Institution, entry: Entry) -> None:
    """Raise RefusalError for an entry that other institutions contributed to."""
    if entry.provenance.holders != (institution.name,):
        raise RefusalError(Outcome.ENTRIES_NOT_ACCEPTED, f"{entry.task}: policy.accept_entries is off")


def rounds_answered(institution: Institution) -> int:
    """Number of training rounds that this institution released, in all runs of its audit log."""
    return sum(is_round(line.release) for line in audit_log(institution.site.audit).lines())


def is_round(release: Release) -> bool:
    """Whether a release is a training round, openly or as a share of a secure sum."""
    openly = release.kind == AlignReply.kind and release.outcome == Outcome.OK
    return openly or (release.clause == summed_clause(AlignReply.clause) and released_in(release.records))


def check_rounds(answered: int, most: int | None) -> None:
    """Raise RefusalError (rounds-spent) if the policy allows no round after so many. most: its max_rounds."""
    if most is not None and answered >= most:
        raise RefusalError(Outcome.ROUNDS_SPENT, f"policy.max_rounds is {most}")


def summed_clause(clause: str) -> str:
    """The policy keys that allow a release as part of a secure sum."""
    return f"{clause}, aggregation"


@contextlib.contextmanager
def learned_at_home(institution: Institution, job: Job) -> Iterator[None]:
    """If the body raises a refusal, learn the task for this institution alone, then raise it again.

    This happens only in the first round and only for methods with one entry per task. The refusal is the
    same word whether or not this training without noise succeeds.
    """
    try:
        yield
    except RefusalError as refusal:
        shared = method_of(institution.scenario.method).shared
        if refusal.outcome.learns_alone and job.round == 1 and not shared:
            try:
                learn_alone(institution, job)
            except Exception:
                keep(f"own entry: {traceback.format_exc()}", institution.site.log)
        raise
