"""The lower half of a relay: the server of the members, which answers in the name of all of them.

It reads a question of the upper half (client/node/relay.py), asks the members as every server asks its
institutions (policies, approvals, secure sums, admission), and adds their answers up. It answers for all
members or not at all: without one of them, a sum is about other images than the server above was told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from casam_core.bank.bank import Bank, updated_copy
from casam_core.config.scenario import Scenario
from casam_core.errors import RunError
from casam_core.files import remove_folder
from casam_core.methods import method_of
from casam_core.protocol.messages import (
    AlignReply,
    AlignRequest,
    CalibrateReply,
    CalibrateRequest,
    EvaluateReply,
    EvaluateRequest,
    ForgetRequest,
    Holding,
    RouterReply,
    RouterRequest,
    TaskResult,
)
from casam_core.protocol.outcomes import Outcome, RefusalError, outcome_of
from casam_core.protocol.payload import Payload
from casam_core.protocol.relayed import LOOK_SECONDS, STOP, Deleted, MembersReply, MembersRequest, PostBox
from casam_core.protocol.schema import Message
from casam_core.routing.decision import total
from casam_core.routing.routers import build_router
from casam_core.routing.threshold import histogram_threshold
from server.aggregation import STRATEGIES, build_strategy, merge_layers
from server.defence.admission import first_layer
from server.defence.rounds import admitted, fitted_all
from server.evaluation import (
    FIGURES,
    all_answers,
    count_routes,
    results_of,
    tasks_wanted,
    weighted,
    withdraw,
)
from server.federation.exchange import results
from server.federation.federation import Federation
from server.federation.gathering import gather
from server.learning import add_importance, images_in, mean_correction
from server.run.run_folder import RunFolder
from server.unlearning import purge

R = TypeVar("R", RouterRequest, CalibrateRequest)
A = TypeVar("A", bound=Message)


def serve_members(
    grid: Grid,
    scenario: Scenario,
    folder: RunFolder,
    register: Path | None,
    box: Path,
) -> None:
    """Answer the questions in `box` for the institutions of `scenario`, until a file `stop` lies there.

    After each answer, relay.json in the run folder says what the members released, and to whom they are
    hidden among how many (server.federation.counters).

    Args:
        register: the file with the members' keys; None for a simulation.
    """
    folder.write_json("scenario.json", scenario.model_dump(mode="json"))
    federation, post = Federation(grid, scenario, folder, register), PostBox(box)
    folder.event("start", f"{scenario.name}: answers in {box} for its institutions")
    while not post.stopped:
        for asked, kind, question in post.questions():
            post.answer(asked, answered(federation, kind, question))
            folder.write_json("relay.json", federation.counters.as_dict())
        time.sleep(LOOK_SECONDS)
    folder.event("end", f"ended by {box / STOP}")


def answered(federation: Federation, kind: str, question: Payload) -> Payload:
    """The members' answer to one question, or one word."""
    try:
        answer = ANSWERS[kind](federation, question).to_payload()
        return replace(answer, config={**answer.config, "outcome": Outcome.OK.value})
    except Exception as error:  # a question that nobody can answer must not end the relay
        word = Outcome.MEMBERS_MISSING if isinstance(error, RunError) else outcome_of(error)
        said = f"{type(error).__name__}: {error}"
        federation.folder.event("not-relayed", f"{kind}: {word}: {said}", kind=kind, reason=said)
        return Payload({"outcome": word.value})


def members(federation: Federation, question: Payload) -> MembersReply:
    """Find the members again. Raises RefusalError (bad-data) if a relay cannot stand for them."""
    scenario, request = federation.scenario, MembersRequest.of(question)
    if scenario.common_digest() != request.learned:
        raise RefusalError(
            Outcome.BAD_DATA,
            "the scenario above differs in more than institutions, deadlines, participation and admission",
        )
    if method_of(scenario.method).pools or not STRATEGIES[scenario.training.strategy].means:
        raise RefusalError(
            Outcome.BAD_DATA,
            f"members are averaged, but method {scenario.method!r} with strategy "
            f"{scenario.training.strategy!r} needs each of them; use fedavg or fedprox",
        )
    federation.discover()
    complete([site.name for site in scenario.institutions], federation.directory.members, "connected")
    found = federation.members
    for name, member in found.items():
        if member.policy.on_leave == "unlearn" and member.policy.leaves_at is not None:
            raise RefusalError(
                Outcome.BAD_DATA, f"{name} wants to be unlearned, which a relay cannot promise"
            )
    holdings = {
        task: Holding(*(sum(counts) for counts in zip(*held_in(federation, task), strict=True)))
        for task in federation.tasks
    }
    return MembersReply(len(found), federation.directory.backbone, holdings)


def held_in(federation: Federation, task: str) -> list[tuple[int, int, int]]:
    """(training, validation, test) images of each member that holds the task."""
    held = (member.holdings[task] for member in federation.members.values() if task in member.holdings)
    return [(holding.train, holding.val, holding.test) for holding in held]


def align(federation: Federation, question: Payload) -> AlignReply:
    """One round of training: the mean of the members' layers, weighted by their images."""
    request, scenario = AlignRequest.of(question), federation.scenario
    job = request.job
    trainers = method_of(scenario.method).trainers(federation.cohort(job.stage, job.stage))
    complete(holders_of(federation, request.trains_on), trainers, "trained")
    own = (job.task,)
    requests = {
        name: replace(request, job=replace(job, institution=name), tasks=() if tasks == own else tasks)
        for name, tasks in trainers.items()
    }
    start = request.layer or first_layer(scenario, job.task)
    gathered = gather(federation, requests, AlignReply)
    gathered = admitted(federation, bank_of(federation), job.stage, job.task, gathered, start)
    complete(requests, gathered.names, "trained")
    replies = gathered.replies
    told = [reply.improved for reply in replies if reply.improved is not None]
    mean = build_strategy(scenario.training.model_copy(update={"strategy": "fedavg"}), len(replies))
    return AlignReply(
        merge_layers(mean, job.round, replies, start),
        sum(images_in(federation, trainers, gathered).values()),
        add_importance(None, replies),
        any(told) if told else None,
        mean_correction(replies),
    )


def describe(federation: Federation, question: Payload) -> RouterReply:
    """The task's router of all members, finished or as sufficient statistics. Raises RefusalError."""
    request = RouterRequest.of(question)
    scenario, task = federation.scenario, request.job.task
    names = holders_of(federation, [task])
    single = replace(request, alone=request.alone and len(names) == 1)
    replies = asked_all(federation, single, names, RouterReply)
    if len(names) == 1:
        return replies[0]
    router = build_router(scenario.router)
    folds = [router.merge(part) for part in zip(*(reply.folds for reply in replies), strict=True)]
    images = sum(reply.images for reply in replies)
    together = RouterReply(router.merge([reply.router for reply in replies]), images, folds=folds)
    if not request.alone:
        return together
    states = fitted_all(router, [together])
    if states is None:
        raise RefusalError(Outcome.MEMBERS_MISSING, f"{task}: no router fits the members' statistics")
    *of_folds, state = states
    if scenario.router.constant is not None:
        return RouterReply(state, images)
    scored = asked_all(federation, CalibrateRequest(request.job, of_folds), names, CalibrateReply)
    counts = np.sum([reply.histogram for reply in scored], axis=0)
    return RouterReply(state, images, histogram_threshold(counts, scenario.router))


def calibrate(federation: Federation, question: Payload) -> CalibrateReply:
    """The members' histograms of held-out scores, added up."""
    request = CalibrateRequest.of(question)
    names = holders_of(federation, [request.job.task])
    replies = asked_all(federation, request, names, CalibrateReply)
    return CalibrateReply(np.sum([reply.histogram for reply in replies], axis=0))


def evaluate(federation: Federation, question: Payload) -> EvaluateReply:
    """The members take the new entries and score their test images; of a task, all its holders or none.

    Raises RefusalError (metrics-not-shared, members-missing) and BankError.
    """
    request, stage = EvaluateRequest.of(question), EvaluateRequest.of(question).job.stage
    bank = bank_of(federation)
    withdraw(federation, bank, bank.tasks[request.known :])
    bank = updated_copy(bank.folder, request.known, request.entries, request.bank)
    wanted = tasks_wanted(federation.scenario, stage, federation.tasks)
    held = {name: member.holdings for name, member in federation.members.items()}
    names = [name for name in federation.present(stage) if not wanted.isdisjoint(held[name])]
    answers = all_answers(federation, stage, bank, request.candidates, names)
    replies = results(answers)
    testers = {task: federation.testers(task) for task in federation.tasks}
    by_task = {task: results_of(task, names, replies) for task, names in testers.items() if names}
    told = {task: of_task for task, of_task in by_task.items() if len(of_task) == len(testers[task])}
    if not told:
        silent = bool(answers) and all(
            answer.outcome == Outcome.METRICS_NOT_SHARED for answer in answers.values()
        )
        word = Outcome.METRICS_NOT_SHARED if silent else Outcome.MEMBERS_MISSING
        raise RefusalError(word, f"stage {stage}: of no task all members told their scores")
    verdicts = [reply.canary for reply in replies.values() if reply.canary is not None]
    passes = [reply.decodes for reply in replies.values()]
    return EvaluateReply(
        {task: joined(of_task) for task, of_task in told.items()},
        None if None in passes else sum(count or 0 for count in passes),
        {task: total(parts) for task in told if (parts := margins_in(replies.values(), task))},
        any(verdicts) if verdicts else None,
    )


def margins_in(replies: Iterable[EvaluateReply], task: str) -> list[NDArray[np.int64]]:
    """The histograms of one task."""
    return [reply.margins[task] for reply in replies if task in reply.margins]


def joined(of_task: Sequence[TaskResult]) -> TaskResult:
    """The result of all holders' test images; intervals and personal entries stay with each holder."""
    instances = [result.instances for result in of_task]
    means: dict[str, Any] = {figure: weighted(list(of_task), figure) for figure in FIGURES}
    return TaskResult(
        images=sum(result.images for result in of_task),
        instances=None if None in instances else sum(count or 0 for count in instances),
        routes=count_routes(list(of_task)),
        **means,
    )


def forget(federation: Federation, question: Payload) -> Deleted:
    """Every member deletes the entries. The signatures stay here; the upper half signs for all."""
    request = ForgetRequest.of(question)
    stage = request.job.stage
    signed = purge(federation, stage, request.leaver, request.entries)
    complete(federation.members, signed, "deleted the entries")
    remove_folder(bank_of(federation).folder)
    return Deleted()


ANSWERS: dict[str, Callable[[Federation, Payload], Message]] = {
    MembersReply.kind: members,
    AlignReply.kind: align,
    RouterReply.kind: describe,
    CalibrateReply.kind: calibrate,
    EvaluateReply.kind: evaluate,
    Deleted.kind: forget,
}
"""By the kind of the upper half's question, what answers it."""


def bank_of(federation: Federation) -> Bank:
    """The relay's copy of the bank, from which its members are sent entries."""
    return Bank.open(federation.folder.path / "bank", create=True)


def holders_of(federation: Federation, tasks: Sequence[str]) -> list[str]:
    """The members with training images of one of the tasks."""
    return [
        name
        for name, member in federation.members.items()
        if any(task in member.holdings and member.holdings[task].train > 0 for task in tasks)
    ]


def asked_all(federation: Federation, request: R, names: Sequence[str], reply: type[A]) -> tuple[A, ...]:
    """The replies of all these members, a secure sum as one. Raises RefusalError (members-missing)."""
    requests = {name: replace(request, job=replace(request.job, institution=name)) for name in names}
    gathered = gather(federation, requests, reply)
    complete(names, gathered.names, f"answered {reply.kind}")
    return gathered.replies


def complete(expected: Iterable[str], found: Collection[str], what: str) -> None:
    """Raise RefusalError (members-missing) unless every expected member is there."""
    if missing := sorted(set(expected) - set(found)):
        raise RefusalError(Outcome.MEMBERS_MISSING, f"{', '.join(missing)}: not {what}")
