"""Evaluation: every institution scores its test images under the bank; the scores become one matrix row."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from casam_core.bank.bank import Bank
from casam_core.config.scenario import Scenario
from casam_core.errors import RunError
from casam_core.methods import method_of
from casam_core.metrics.intervals import Statistics
from casam_core.protocol.messages import EvaluateReply, EvaluateRequest, TaskResult
from casam_core.protocol.outcomes import NoResult, Outcome
from casam_core.protocol.payload import Job
from casam_core.routing.decision import total
from server.federation.exchange import Answer, all_settled, results
from server.federation.federation import Federation

KEPT_TO_ITSELF = (Outcome.METRICS_NOT_SHARED, Outcome.TOO_FEW_IMAGES)
"""Outcomes of an institution that added the entries and refuses its scores."""

MIRROR_MISSED = (Outcome.NOT_IN_MIRROR, Outcome.FAILED, NoResult.NO_ANSWER)
"""Outcomes of a request with names after which an institution is sent entries, for the rest of the run."""

FIGURES = ("iou", "dice", "biou", "biou_official", "hd95", "iou_instance")


@dataclass(frozen=True)
class StageScores:
    """One evaluation of all institutions.

    figures[name][task]: mean over all holders' test images (iou_instance: over instances); None if a holder
        did not answer, because a mean over the others would be another figure.
    worst_iou[task]: the lowest IoU of an institution. routes[task][route]: number of images. margins[task]:
        histogram of how unknown its images look, over holders. statistics[institution][task]: as the
        institution computed them. personal[institution][task]: its IoU with personal entries, if it told it.
        canary[institution]: whether the stage's new entries claim too many of its images; None: no answer.
    """

    figures: dict[str, dict[str, float | None]]
    worst_iou: dict[str, float | None]
    routes: dict[str, dict[str, int]]
    decodes: int
    margins: dict[str, NDArray[np.int64]]
    statistics: dict[str, dict[str, Statistics]]
    canary: dict[str, bool | None] = field(default_factory=dict)
    personal: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def iou(self) -> dict[str, float | None]:
        """IoU by task."""
        return self.figures["iou"]

    def figure(self, name: str, task: str) -> float | None:
        """One cell."""
        return self.figures[name].get(task)


def evaluate(
    federation: Federation,
    stage: int,
    bank: Bank,
    candidates: Sequence[str] = (),
    *,
    spare_noisy: bool = False,
) -> StageScores:
    """Let every present institution score its test images under the bank.

    The server sends each institution only the entries that it lacks, and only their names if it has a mirror.
    If its mirror lacks one, the server sends them itself. If the institution's copy of the bank differs from
    the server's, the server sends the whole bank, once.

    Args:
        candidates: the tasks of new entries; holders of other tasks say whether they claim their images.
        spare_noisy: exclude institutions that would pay for their scores with privacy budget.

    Raises:
        RunError: no institution could evaluate, and `participation.missing` is "stop".
    """
    scenario, members = federation.scenario, federation.members
    names = evaluated(federation, stage)
    if spare_noisy:
        names = [name for name in names if members[name].policy.metrics != "noisy"]
    answers = all_answers(federation, stage, bank, candidates, names)
    # Totals, not differences: a stage that was started twice then counts once, with its whole traffic.
    traffic = federation.counters.traffic
    federation.folder.event("traffic", stage=stage, up=dict(traffic.up), down=dict(traffic.down))
    replies = results(answers)
    if not replies and not all_settled(answers) and scenario.participation.missing == "stop":
        raise RunError(f"stage {stage}: no institution could evaluate; their own logs say why")
    return combine(replies, {task: federation.testers(task) for task in federation.tasks})


def evaluated(federation: Federation, stage: int) -> list[str]:
    """The institutions that are present in `stage` and hold a task that is evaluated after it."""
    wanted = tasks_wanted(federation.scenario, stage, federation.tasks)
    held = {name: member.holdings for name, member in federation.members.items()}
    return [name for name in federation.present(stage) if not wanted.isdisjoint(held[name])]


def all_answers(
    federation: Federation, stage: int, bank: Bank, candidates: Sequence[str], names: Sequence[str]
) -> dict[str, Answer[EvaluateReply]]:
    """Ask every institution of `names`, and some of them again.

    Whose mirror lacks an entry is sent entries then; whose copy of the bank differs, the whole bank, once.
    """
    answers: dict[str, Answer[EvaluateReply]] = {}
    differed: set[str] = set()
    asked = list(names)
    while asked:
        by_name = {name for name in asked if gets_names(federation, name)}
        requests = {
            name: request_for(federation, name, stage, bank, candidates, by_name=name in by_name)
            for name in asked
        }
        answers |= federation.ask(requests, EvaluateReply)
        note_copies(federation, bank, {name: answers[name] for name in asked})
        federation.mirrors_missed |= {name for name in by_name if answers[name].outcome in MIRROR_MISSED}
        again = {name for name in by_name if answers[name].outcome == Outcome.NOT_IN_MIRROR}
        differ = {name for name in asked if answers[name].outcome == Outcome.BANK_MISMATCH} - differed
        differed |= differ
        asked = [name for name in names if name in again | differ]
    return answers


def gets_names(federation: Federation, name: str) -> bool:
    """Whether an institution is sent names of entries. A shared layer is another entry in every stage, in
    another folder, which a mirror does not have."""
    mirrored = federation.members[name].mirrored and name not in federation.mirrors_missed
    return mirrored and not method_of(federation.scenario.method).shared


def tasks_wanted(scenario: Scenario, stage: int, tasks: Collection[str]) -> set[str]:
    """The tasks of `tasks` whose images are evaluated after `stage` (`evaluation.tasks`).

    All, where an institution has an order of its own: it may have learned any of them.
    """
    partly = scenario.evaluation.tasks == "needed" and 0 < stage < len(scenario.stream)
    return set(scenario.stream[: stage + 1]) if partly and not scenario.own_streams else set(tasks)


def request_for(
    federation: Federation, name: str, stage: int, bank: Bank, candidates: Sequence[str], *, by_name: bool
) -> EvaluateRequest:
    """The request to one institution, with the entries that it lacks, or with their names."""
    tasks = entries_for(federation, name, bank)
    known = federation.copies.get((bank.folder, name), 0)
    return EvaluateRequest(
        Job(name, stage),
        known,
        entries=[] if by_name else [bank.bytes_of(task) for task in tasks[known:]],
        names=tuple(bank.digest_of(task) for task in tasks[known:]) if by_name else (),
        bank=bank.digest_over(tasks),
        candidates=tuple(task for task in candidates if task in tasks),
    )


def note_copies(federation: Federation, bank: Bank, answers: Mapping[str, Answer[EvaluateReply]]) -> None:
    """Remember how many entries institutions hold after they answered."""
    for name, answer in answers.items():
        if answer.ok or answer.outcome in KEPT_TO_ITSELF:
            federation.copies[bank.folder, name] = len(entries_for(federation, name, bank))
        elif answer.outcome == Outcome.BANK_MISMATCH:
            federation.copies[bank.folder, name] = 0


def withdraw(federation: Federation, bank: Bank, tasks: Collection[str]) -> None:
    """Note, before entries are removed from the bank, that the next evaluation removes them from all copies.

    An institution keeps the entries before the first of them; the server sends it the later ones again.
    """
    for (folder, name), held in federation.copies.items():
        if folder == bank.folder:
            has = entries_for(federation, name, bank)[:held]
            kept = next((place for place, task in enumerate(has) if task in tasks), len(has))
            federation.copies[folder, name] = kept


def entries_for(federation: Federation, name: str, bank: Bank) -> tuple[str, ...]:
    """Tasks whose entries an institution gets: all, or only its own if its policy accepts no others."""
    if federation.members[name].policy.accept_entries:
        return bank.tasks
    return tuple(task for task in bank.tasks if bank[task].provenance.holders == (name,))


def combine(replies: Mapping[str, EvaluateReply], holders: Mapping[str, Collection[str]]) -> StageScores:
    """Merge the institutions' replies. holders: by task, the institutions that hold test images of it."""
    by_task = {task: results_of(task, names, replies) for task, names in holders.items()}
    whole = of_all(by_task, holders)
    return StageScores(
        figures={name: {task: weighted(whole.get(task, []), name) for task in by_task} for name in FIGURES},
        worst_iou={task: min((r.iou for r in whole.get(task, [])), default=None) for task in by_task},
        routes={task: count_routes(results) for task, results in by_task.items()},
        decodes=sum(reply.decodes or 0 for reply in replies.values()),
        margins={
            task: total(reply.margins[task] for reply in replies.values() if task in reply.margins)
            for task in by_task
        },
        statistics={
            name: {task: r.statistics for task, r in reply.results.items() if r.statistics is not None}
            for name, reply in replies.items()
        },
        canary={name: reply.canary for name, reply in replies.items()},
        personal=personal_in(replies),
    )


def of_all(
    by_task: Mapping[str, list[TaskResult]], holders: Mapping[str, Collection[str]]
) -> dict[str, list[TaskResult]]:
    """The tasks of which every holder told its result."""
    return {task: results for task, results in by_task.items() if len(results) == len(holders[task])}


def personal_in(replies: Mapping[str, EvaluateReply]) -> dict[str, dict[str, float]]:
    """By institution and task, the IoU with personal entries, of those who told it."""
    told = {
        name: {task: r.personal for task, r in reply.results.items() if r.personal is not None}
        for name, reply in replies.items()
    }
    return {name: by_task for name, by_task in told.items() if by_task}


def results_of(task: str, names: Collection[str], replies: Mapping[str, EvaluateReply]) -> list[TaskResult]:
    """The results of these institutions for one task; institutions without an answer are omitted."""
    answered = [replies[name].results for name in names if name in replies]
    return [results[task] for results in answered if task in results]


def weighted(results: list[TaskResult], name: str) -> float | None:
    """The mean over holders, weighted by images (iou_instance: by instances). None if a value is missing,
    because a mean over some of the holders would be another figure."""
    weights = [result.instances if name == "iou_instance" else result.images for result in results]
    values = [getattr(result, name) for result in results]
    known = [(w, v) for w, v in zip(weights, values, strict=True) if w is not None and v is not None]
    if not sum(w for w, _ in known) or len(known) < len(values):
        return None
    return math.fsum(w * v for w, v in known) / sum(w for w, _ in known)


def count_routes(results: list[TaskResult]) -> dict[str, int]:
    """Number of images by route, over holders."""
    counts: dict[str, int] = {}
    for result in results:
        for route, images in result.routes.items():
            counts[route] = counts.get(route, 0) + images
    return dict(sorted(counts.items()))
