"""The lower half of a relay: the server of the members, which answers in the name of all of them.

It reads a question of the upper half (client/node/relay.py), asks the members as every server asks its
institutions (policies, approvals, secure sums, admission), and adds their answers up. It answers for all
members or not at all: without one of them, a sum is about other images than the server above was told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from flwr.serverapp import Grid

from casam_core.bank.bank import Bank, updated_copy
from casam_core.config.scenario import Scenario
from casam_core.errors import RunError, ScenarioError
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
from casam_core.protocol.relayed import LOOK_SECONDS, STOP, Asked, Deleted, MembersReply, PostBox
from casam_core.protocol.schema import Message
from casam_core.routing.decision import total
from casam_core.routing.routers import build_router
from casam_core.routing.threshold import histogram_threshold
from server.aggregation import build_strategy, merge_layers
from server.defence.admission import first_layer
from server.defence.rounds import admitted, fitted_all
from server.evaluation import (
    FIGURES,
    all_answers,
    count_routes,
    evaluated,
    of_all,
    results_of,
    weighted,
    withdraw,
)
from server.federation.exchange import results
from server.federation.federation import Federation
from server.federation.gathering import gather
from server.learning import add_importance, added, check_strategy, for_trainers, images_in, mean_correction
from server.run.run_folder import RunFolder
from server.unlearning import purge

R = TypeVar("R", RouterRequest, CalibrateRequest)
A = TypeVar("A", bound=Message)

AVERAGED = ("fedavg", "fedprox")
"""Strategies that need no more than the mean of the layers, also where a relay is the only holder."""


def serve_members(
    grid: Grid, scenario: Scenario, folder: RunFolder, register: Path | None, box: Path
) -> None:
    """Answer the questions in `box` for the institutions of `scenario`, until a file `stop` lies there.

    After each answer, relay.json in the run folder says what the members released, and among how many they
    hide (server.federation.counters).

    Args:
        register: the file with the members' keys; None for a simulation.

    Raises:
        ScenarioError: the scenario does not say that the server is a relay.
        RunError: `box` is no folder, or `stop` is there already. The last event states the reason.
    """
    with folder.telling_failures():
        if not scenario.relayed:
            raise ScenarioError(
                "relayed: expected true, because members approve that sums go to another server, found false"
            )
        post = post_in(box)
        folder.write_json("scenario.json", scenario.model_dump(mode="json"))
        federation = Federation(grid, scenario, folder, register)
        folder.event("start", f"{scenario.name}: answers in {box} for its institutions")
        folder.write_json("relay.json", federation.counters.as_dict())
        while not post.stopped:
            for asked in post.questions():
                post.answer(asked, answered(federation, asked))
                folder.write_json("relay.json", federation.counters.as_dict())
            time.sleep(LOOK_SECONDS)
        folder.event("end", f"ended by {box / STOP}")


def post_in(box: Path) -> PostBox:
    """The box in a folder. Raises RunError if it is none, or if `stop` is there already."""
    try:
        post = PostBox(box)
    except OSError as error:
        raise RunError(f"expected a folder of questions at {box}, found: {error.strerror}") from error
    if post.stopped:
        raise RunError(f"expected no file {box / STOP}, which ends a relay; delete it and start again")
    return post


def answered(federation: Federation, asked: Asked) -> Payload:
    """The members' answer to one question, or one word for whatever was raised."""
    try:
        if federation.scenario.common_digest() != asked.learned:
            raise RefusalError(
                Outcome.BAD_DATA,
                "the scenario above is another one, beyond institutions, deadlines, participation, admission",
            )
        if not federation.members or asked.kind == MembersReply.kind:
            find_members(federation)
        answer = ANSWERS[asked.kind](federation, asked.question).to_payload()
        return replace(answer, config={**answer.config, "outcome": Outcome.OK.value})
    except Exception as error:  # a question that nobody can answer must not end the relay
        word = word_for(error)
        said = f"{type(error).__name__}: {error}"
        federation.folder.event("not-relayed", f"{asked.kind}: {word}: {said}", kind=asked.kind, reason=said)
        return Payload({"outcome": word.value})


def word_for(error: Exception) -> Outcome:
    """The word to answer in place of an error."""
    if isinstance(error, RunError):  # a member is not there, or too few are
        return Outcome.MEMBERS_MISSING
    return Outcome.BAD_DATA if isinstance(error, ScenarioError) else outcome_of(error)


def find_members(federation: Federation) -> None:
    """Find all members again. Raises RunError, and RefusalError (members-missing, bad-data)."""
    scenario = federation.scenario
    if method_of(scenario.method).pools or scenario.training.strategy not in AVERAGED or scenario.own_streams:
        raise RefusalError(
            Outcome.BAD_DATA,
            f"members are averaged in one order of tasks, found method {scenario.method!r}, strategy "
            f"{scenario.training.strategy!r}, and {len(scenario.own_streams)} orders of their own; use "
            f"{' or '.join(AVERAGED)}",
        )
    federation.discover()
    complete([site.name for site in scenario.institutions], federation.directory.members, "connected")
    for name, member in federation.members.items():
        policy = member.policy
        if policy.on_leave == "unlearn" and policy.leaves_at is not None:
            raise RefusalError(
                Outcome.BAD_DATA, f"{name} wants to be unlearned, which a relay cannot promise"
            )
        if policy.metrics == "noisy":
            raise RefusalError(
                Outcome.BAD_DATA, f"{name} tells noisy metrics, whose counts of images no sum can have"
            )


def members(federation: Federation, question: Payload) -> MembersReply:
    """All members together."""
    directory, known = federation.directory, federation.members.values()
    held = {task: [m.holdings[task] for m in known if task in m.holdings] for task in federation.tasks}
    together = {
        task: Holding(*(sum(getattr(one, part) for one in of_task) for part in ("train", "val", "test")))
        for task, of_task in held.items()
    }
    return MembersReply(len(directory.members), directory.backbone, directory.preprocessing, together)


def align(federation: Federation, question: Payload) -> AlignReply:
    """One round of training: the mean of the members' layers, weighted by their images.

    Raises RefusalError (adapter-not-shared, members-missing) and ScenarioError.
    """
    request, scenario = AlignRequest.of(question), federation.scenario
    job = request.job
    if request.again and any(member.policy.leaves_at for member in federation.members.values()):
        # Only the server above knows the stage in which the task is learned again.
        raise RefusalError(Outcome.MEMBERS_MISSING, "learned again: a member that leaves may have left")
    trainers = method_of(scenario.method).trainers(federation.cohort(job.stage, job.stage))
    holders = {task: federation.holders(task, "train") for task in request.trains_on}
    for name in federation.members:
        held = tuple(task for task in request.trains_on if name in holders[task])
        if held != trainers.get(name, ()):
            raise RefusalError(
                Outcome.MEMBERS_MISSING, f"{name}: trains on {trainers.get(name, ())}, expected {held}"
            )
    check_strategy(federation, job.task, trainers)
    requests = for_trainers(request, trainers)
    start = request.layer or first_layer(scenario, job.task)
    gathered = gather(federation, requests, AlignReply)
    complete(requests, gathered.names, "trained", gathered.unwilling, Outcome.ADAPTER_NOT_SHARED)
    gathered = admitted(federation, bank_of(federation), job.stage, job.task, gathered, start)
    complete(requests, gathered.names, "admitted")
    replies = gathered.replies
    told = [reply.improved for reply in replies if reply.improved is not None]
    return AlignReply(
        merge_layers(build_strategy(scenario.training, len(replies)), job.round, replies, start),
        sum(images_in(federation, trainers, gathered).values()),
        add_importance(None, replies),
        any(reply.improved is not False for reply in replies) if told else None,
        mean_correction(replies),
    )


def describe(federation: Federation, question: Payload) -> RouterReply:
    """The task's router of all members, finished or as sufficient statistics. Raises RefusalError."""
    request, spec = RouterRequest.of(question), federation.scenario.router
    names = federation.holders(request.job.task, "train")
    asked = replace(request, alone=request.alone and len(names) == 1)
    replies = asked_all(federation, asked, names, RouterReply)
    if asked.alone:
        return replies[0]
    router = build_router(spec)
    folds = [router.merge(part) for part in zip(*(reply.folds for reply in replies), strict=True)]
    images = sum(reply.images for reply in replies)
    together = RouterReply(router.merge([reply.router for reply in replies]), images, folds=folds)
    if not request.alone:
        return together
    states = fitted_all(router, [together])
    if states is None:
        raise RefusalError(Outcome.MEMBERS_MISSING, "no router fits the members' statistics")
    *of_folds, state = states
    if spec.constant is not None:
        return RouterReply(state, images)
    scored = asked_all(federation, CalibrateRequest(request.job, of_folds), names, CalibrateReply)
    return RouterReply(state, images, histogram_threshold(added(scored), spec))


def calibrate(federation: Federation, question: Payload) -> CalibrateReply:
    """The members' histograms of held-out scores, added up. Raises RefusalError."""
    request = CalibrateRequest.of(question)
    names = federation.holders(request.job.task, "train")
    return CalibrateReply(added(asked_all(federation, request, names, CalibrateReply)))


def evaluate(federation: Federation, question: Payload) -> EvaluateReply:
    """The members take the new entries and score their test images; of a task, all its holders or none.

    Raises RefusalError (metrics-not-shared, members-missing) and BankError.
    """
    request = EvaluateRequest.of(question)
    stage = request.job.stage
    bank = bank_of(federation)
    withdraw(federation, bank, bank.tasks[request.known :])
    bank = updated_copy(bank.folder, request.known, request.entries, request.bank)
    answers = all_answers(federation, stage, bank, request.candidates, evaluated(federation, stage))
    replies = results(answers)
    testers = {task: names for task in federation.tasks if (names := federation.testers(task))}
    told = of_all({task: results_of(task, names, replies) for task, names in testers.items()}, testers)
    if not told:
        silent = bool(answers) and all(answer.ok or answer.refused for answer in answers.values())
        word = Outcome.METRICS_NOT_SHARED if silent else Outcome.MEMBERS_MISSING
        raise RefusalError(word, f"stage {stage}: of no task all members told their scores")
    return added_up(told, list(replies.values()))


def added_up(told: Mapping[str, list[TaskResult]], replies: Sequence[EvaluateReply]) -> EvaluateReply:
    """One reply for all members. told: by task, the results that count."""
    verdicts = [reply.canary for reply in replies if reply.canary is not None]
    passes = [reply.decodes for reply in replies]
    return EvaluateReply(
        {task: joined(of_task) for task, of_task in told.items()},
        None if None in passes else sum(count or 0 for count in passes),
        {
            task: total(parts)
            for task in told
            if (parts := [reply.margins[task] for reply in replies if task in reply.margins])
        },
        any(verdicts) if verdicts else None,
    )


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
    complete([site.name for site in federation.scenario.institutions], signed, "deleted the entries")
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


def asked_all(federation: Federation, request: R, names: Sequence[str], reply: type[A]) -> tuple[A, ...]:
    """The replies of all these members, a secure sum as one.

    Raises RefusalError (router-not-shared, members-missing).
    """
    requests = {name: replace(request, job=replace(request.job, institution=name)) for name in names}
    gathered = gather(federation, requests, reply)
    complete(names, gathered.names, f"answered {reply.kind}", gathered.unwilling, Outcome.ROUTER_NOT_SHARED)
    return gathered.replies


def complete(
    expected: Iterable[str],
    found: Collection[str],
    what: str,
    unwilling: Collection[str] = (),
    refusal: Outcome = Outcome.MEMBERS_MISSING,
) -> None:
    """Raise RefusalError unless every expected member is there.

    what: they did. unwilling: who refused. refusal: the word if all who are missing refused.
    """
    if missing := set(expected) - set(found):
        word = refusal if missing <= set(unwilling) else Outcome.MEMBERS_MISSING
        raise RefusalError(word, f"{', '.join(sorted(missing))}: not {what}")
