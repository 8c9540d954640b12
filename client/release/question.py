"""The first step on the way out: is the request a part of the approved scenario?

A site approves a scenario, and the scenario says who trains what in which stage. A server that asks for
anything else, for example for a layer that starts from weights of its own choice, gets no answer.

Some content of requests comes from other institutions, so a site cannot check it: the merged layer of a later
round, merged routers, entries of the bank. A server that makes up many of them and asks again gets as many
answers about the same images. An institution therefore answers at most `max_questions` different requests of
a stage, task and round of a scenario, in all runs of its home. The same request again does not count: it has
the same answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.bank.entry_file import Entry
from casam_core.bank.inference import entry_layer
from casam_core.files import HOSTED, RecordLog
from casam_core.methods import SHARED, cohort_at, method_of
from casam_core.model.forms import weights_of
from casam_core.protocol.limits import AnswerError, GroupSpec, check_group
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
    folds_of,
    layer_forms,
    question_of,
    router_forms,
)
from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.payload import Job, digest_of
from casam_core.protocol.schema import Message
from casam_core.routing.routers.public_frame import frame_named
from client.institution import Institution
from client.release.guard import sender_of


def check_question(institution: Institution, request: Question) -> None:
    """Raise RefusalError (not-in-scenario) for a request that does not follow from the scenario.

    The layer of a later round and the entries of the bank come from other institutions: the site cannot
    compare them with anything.
    """
    if isinstance(request, EvaluateRequest):
        fault = fault_in_evaluation(institution, request)
    else:
        fault = fault_in_stage(institution, request.job)
        if fault is None and isinstance(request, AlignRequest):
            fault = fault_in_training(institution, request)
        elif fault is None and method_of(institution.scenario.method).shared:
            fault = "the method has no router"
        elif fault is None and request.job.round != 1:
            fault = "a router has one round"
        elif fault is None and isinstance(request, CalibrateRequest) and not folds_of(institution.scenario):
            fault = "all tasks have one threshold"
    if fault is not None:
        raise RefusalError(Outcome.NOT_IN_SCENARIO, f"stage {request.job.stage}: {fault}")
    check_arrays(institution, request)


def check_arrays(institution: Institution, request: Question) -> None:
    """Raise RefusalError (bad-request) for arrays of another form than the scenario has."""
    sender = sender_of(institution, request.job)
    given: dict[str, tuple[Mapping[str, NDArray[Any]] | None, Sequence[GroupSpec]]] = {}
    if isinstance(request, AlignRequest):
        parts = ("layer", "anchor", "importance", "control")
        given = {name: (getattr(request, name), layer_forms(sender)) for name in parts}
    elif isinstance(request, CalibrateRequest):
        given = {f"fold-{k}": (fold, router_forms(sender)[:1]) for k, fold in enumerate(request.folds)}
    try:
        for name, (group, forms) in given.items():
            if group is not None:
                check_group(name, group, forms)
    except AnswerError as error:
        raise RefusalError(Outcome.BAD_REQUEST, str(error)) from error


def check_entry(institution: Institution, entry: Entry, job: Job) -> None:
    """Raise RefusalError (bad-request) for an entry that this scenario cannot have, or that cannot be used.

    Raises BankError for a layer that does not fit its form.
    """
    scenario, about = institution.scenario, entry.provenance
    spec = scenario.router
    learned = (*scenario.stream[: job.stage], SHARED)
    expected_router = (spec.kind, spec.features, frame_named(spec))
    if entry.task not in learned or (about.router, about.features, about.frame) != expected_router:
        raise RefusalError(Outcome.BAD_REQUEST, f"an entry of {entry.task!r} with a router {about.router!r}")
    layer = entry_layer(entry, institution.backbone.geometry.channels, institution.backbone)
    arrays = [*weights_of(layer).values(), *entry.router.values()]
    expected = router_forms(sender_of(institution, job))[0].arrays if entry.threshold is not None else {}
    whole = all(
        name in entry.router and spec.has_shape(entry.router[name].shape) for name, spec in expected.items()
    )
    if not whole or not all(np.isfinite(array).all() for array in arrays):
        raise RefusalError(Outcome.BAD_REQUEST, f"the entry of {entry.task!r} is not finite or not whole")


def check_folds(institution: Institution, request: CalibrateRequest) -> None:
    """Raise RefusalError (not-in-scenario) unless there is one router for each fold.

    The first exchanges of a secure sum contain no routers; therefore `check_question` does not count them.
    """
    expected = institution.scenario.router.folds
    if len(request.folds) != expected:
        raise RefusalError(
            Outcome.NOT_IN_SCENARIO, f"expected {expected} routers, found {len(request.folds)}"
        )


def fault_in_evaluation(institution: Institution, request: EvaluateRequest) -> str | None:
    """What is wrong with the stage, the candidates or the entries of an evaluation; None if nothing is."""
    stream, stage = institution.scenario.stream, request.job.stage
    if (request.job.task, request.job.round) != ("", 1):
        return "expected no task and no round for an evaluation"
    if not 0 <= stage <= len(stream):
        return f"expected a stage up to {len(stream)}"
    # An earlier task is a candidate again if its entry was learned anew, because a holder left.
    if not set(request.candidates) <= set(stream[:stage]):
        return f"expected tasks of the stages so far as candidates, found {request.candidates}"
    if request.entries and request.names:
        return "expected entries or names of entries, found both"
    return None


def fault_in_stage(institution: Institution, job: Job) -> str | None:
    """What is wrong with the stage, the task or the round of a job; None if nothing is."""
    scenario = institution.scenario
    if not 1 <= job.stage <= len(scenario.stream) or scenario.stream[job.stage - 1] != job.task:
        return f"expected a stage and its task, found {job.task!r}"
    if not 1 <= job.round <= scenario.training.rounds:
        return f"expected a round up to {scenario.training.rounds}, found {job.round}"
    return None


def fault_in_training(institution: Institution, request: AlignRequest) -> str | None:
    """What is wrong with the tasks and the weights of a round of training; None if nothing is."""
    scenario, job = institution.scenario, request.job
    method, first = method_of(scenario.method), request.job.round == 1
    if not method.learns or request.pooled != method.pools:
        return f"method {scenario.method!r} does not train in this way"
    expected = tasks_of(institution, job)
    if request.trains_on != expected:
        return f"expected training on {expected}, found {request.trains_on}"
    if request.layer is not None and first and (not method.shared or job.stage == 1):
        return "expected no weights for the first round: the scenario determines them"
    return fault_in_extras(institution, request)


def fault_in_extras(institution: Institution, request: AlignRequest) -> str | None:
    """What is wrong with the arrays beside the start weights; None if nothing is."""
    method, job = method_of(institution.scenario.method), request.job
    anchored = request.anchor is not None
    if anchored and (method.penalty is None or job.stage == 1):
        return "expected no earlier layer"
    if request.importance is not None and not (anchored and method.weighs):
        return "expected no importance of weights"
    scaffold = institution.scenario.training.strategy == "scaffold"
    if request.control is not None and (job.round == 1 or not scaffold):
        return "expected no control variate"
    return None


def tasks_of(institution: Institution, job: Job) -> tuple[str, ...]:
    """The tasks on which the method lets this institution train in the job's stage."""
    scenario, name = institution.scenario, institution.name
    held = {name: [task for task, holding in institution.holdings().items() if holding.train > 0]}
    cohort = cohort_at(scenario, job.stage, held, [name] if institution.site.policy.keep_samples else [])
    return method_of(scenario.method).trainers(cohort).get(name, ())


REPLY_TO: Mapping[type[Message], type[Message]] = {
    AlignRequest: AlignReply,
    RouterRequest: RouterReply,
    CalibrateRequest: CalibrateReply,
    EvaluateRequest: EvaluateReply,
}


@dataclass(frozen=True)
class AskedQuestion:
    """One question. scenario: digest. kind: of the reply. question: digest of the request."""

    scenario: str
    kind: str
    stage: int
    task: str
    round: int
    question: str


def remember_question(institution: Institution, request: Question) -> None:
    """Write a new question down; the line is on disk when this returns.

    Raises RefusalError (questions-spent) if the institution has answered too many others of the same place,
    and PolicyError if the file is damaged.
    """
    site, job = institution.site, request.job
    kind = REPLY_TO[type(request)].kind
    found = AskedQuestion(
        site.scenario, kind, job.stage, job.task, job.round, digest_of(question_of(request))
    )
    log, most = questions_log(site.questions), site.policy.max_questions
    if found in log.lines():
        return

    def allow(lines: Sequence[AskedQuestion]) -> None:
        same = {line.question for line in lines if replace(line, question=found.question) == found}
        if len(same - {found.question}) >= most:
            raise RefusalError(
                Outcome.QUESTIONS_SPENT,
                f"{kind}, stage {job.stage}, round {job.round}: {len(same)} different requests have "
                f"answers; policy.max_questions is {most}",
            )

    log.add(found, allow)


@lru_cache(maxsize=HOSTED)
def questions_log(path: Path) -> RecordLog[AskedQuestion]:
    """The one log of this process for a file."""
    return RecordLog(path, AskedQuestion, "a question; restore the file from a backup")
