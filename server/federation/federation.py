"""The scenario's institutions as the server talks to them: by name, with deadlines and counted bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from flwr.serverapp import Grid

from casam_core.bank.bank import Bank
from casam_core.config.scenario import Scenario
from casam_core.errors import RunError
from casam_core.methods import Cohort
from casam_core.protocol.audit import AuditLog, now
from casam_core.protocol.messages import (
    EvaluateReply,
    EvaluateRequest,
    ForgetReply,
    ForgetRequest,
    purge_statement,
)
from casam_core.protocol.payload import EPSILON_METRICS, EPSILON_TRAIN, Job, Outcome, Payload
from casam_core.protocol.signing import is_signed
from server.defence.admission import check_answer
from server.federation.counters import Counters
from server.federation.directory import Directory, Member, identify
from server.federation.exchange import (
    REJECTED,
    UNREACHABLE,
    Answer,
    Request,
    Traffic,
    all_settled,
    exchange,
    results,
)
from server.federation.polling import at_once
from server.run.arrivals import arrival
from server.run.run_folder import RunFolder
from server.run.scores import StageScores, combine

T = TypeVar("T")

RETRY_SECONDS = 1.0
"""Before the first time that an institution is asked again; then twice as long, and so on."""


class Federation:
    """Who takes part, where they are now, and what they already hold of the bank.

    directory: who is connected now. members: everybody who ever was, as last seen; `absent` are those that
    are not connected now.
    """

    def __init__(self, grid: Grid, scenario: Scenario, folder: RunFolder) -> None:
        self.grid = grid
        self.scenario = scenario
        self.folder = folder
        self.counters = Counters()
        self.directory = Directory({}, "", "")
        self.members: dict[str, Member] = {}
        self.arrivals = AuditLog(folder.path / "audit.jsonl")
        self._bank: Bank | None = None
        self._entries_held: dict[str, int] = {}

    def discover(self) -> None:
        """Find every institution again. Raises RunError, ScenarioError (server.federation.directory)."""
        # Not counted: who-is-there traffic depends on nodes and folder names, not on what is learned.
        before = self.absent if self.members else []
        told = {member.node for member in self.directory.members.values()}
        self.directory = identify(self.grid, self.scenario, self.folder.path.name, Traffic(), before, told)
        self.remember(self.members)
        held = {name: sorted(member.holdings) for name, member in self.directory.members.items()}
        self.folder.event("met", stream=list(self.scenario.stream), institutions=held)
        for name in self.absent:
            if name not in before:
                self.folder.event("absent", f"{name} is not there; the others go on", institution=name)
        for name in before:
            if name not in self.absent:
                self.folder.event("back", f"{name} is there again", institution=name)

    def remember(self, members: Mapping[str, Member]) -> None:
        """Who was met earlier: those that are there now are known as they are now."""
        seen = {**members, **self.directory.members}
        self.members = {
            site.name: seen[site.name] for site in self.scenario.institutions if site.name in seen
        }

    @property
    def absent(self) -> list[str]:
        """Institutions of the scenario that are not there now, in its order."""
        return [s.name for s in self.scenario.institutions if s.name not in self.directory.members]

    def forecast(self) -> None:
        """One line per institution that trains privately: how far its budget goes."""
        for name, member in self.directory.members.items():
            for task, found in member.forecasts.items():
                self.folder.event(
                    "forecast",
                    f"{name}: {found.affordable} of {found.rounds} rounds of {task} affordable at epsilon "
                    f"{member.policy.budget.epsilon:g}",
                    institution=name,
                    task=task,
                    affordable=found.affordable,
                    rounds=found.rounds,
                )

    @property
    def tasks(self) -> list[str]:
        """Every task held by anyone, sorted."""
        return sorted({task for member in self.members.values() for task in member.holdings})

    def present(self, stage: int) -> list[str]:
        """Institutions whose policy lets them take part in this stage, in the scenario's order."""
        return [name for name, member in self.directory.members.items() if member.policy.present(stage)]

    def testers(self, task: str) -> list[str]:
        """Institutions that hold images of `task` to evaluate on, also if they are away, in the scenario's
        order."""
        split = self.scenario.evaluation.split
        return [
            name
            for name, member in self.members.items()
            if task in member.holdings and getattr(member.holdings[task], split) > 0
        ]

    def cohort(self, stage: int, task: str, now: int) -> Cohort:
        """Who could train in this stage, for a method to choose from.

        now: the stage in which it happens; a later one where a task is learned anew by those still there.
        """
        stream, members = self.scenario.stream, self.directory.members
        present = [name for name in self.present(stage) if name in self.present(now)]
        return Cohort(
            task=task,
            seen=tuple(stream[: stage - 1]),
            held={
                name: [t for t, holding in member.holdings.items() if t in stream and holding.train > 0]
                for name, member in members.items()
                if name in present
            },
            keeps=[name for name in present if members[name].policy.keep_samples],
        )

    def ask(
        self, kind: str, payloads: Mapping[str, Payload], of: Callable[[Payload], T], *, deadline: float
    ) -> dict[str, Answer[T]]:
        """One exchange; every answer that is not ok becomes an event and a line.

        An institution whose node went away meanwhile is looked for and asked again. When it does not come
        back, `participation.missing` says whether that raises RunError or the others go on without.
        """
        if payloads:
            job = Job.of(next(iter(payloads.values())))
            self.folder.event("asked", kind=kind, stage=job.stage, task=job.task, institutions=list(payloads))
        answers = self._exchange(kind, payloads, of, deadline)
        retries = self.scenario.deadlines.retries
        for attempt in range(1, retries + 1):
            lost = [
                name
                for name, answer in answers.items()
                if answer.outcome == UNREACHABLE and name in self.directory.members
            ]
            if not lost:
                break
            self.folder.event(
                "retry",
                f"{', '.join(lost)} went away during {kind}; asked again ({attempt} of {retries})",
                kind=kind,
                institutions=lost,
                attempt=attempt,
            )
            time.sleep(RETRY_SECONDS * attempt)
            self.discover()
            answers |= self._exchange(kind, {name: payloads[name] for name in lost}, of, deadline)
        return {name: answers[name] for name in payloads}

    def _exchange(
        self, kind: str, payloads: Mapping[str, Payload], of: Callable[[Payload], T], deadline: float
    ) -> dict[str, Answer[T]]:
        members = self.directory.members
        requests = [
            Request(name, members[name].node, kind, payload)
            for name, payload in payloads.items()
            if name in members
        ]

        def heard(answer: Answer[T]) -> None:
            self._heard(kind, Job.of(payloads[answer.to]), answer)

        def check(name: str, payload: Payload, size: int) -> None:
            check_answer(self.scenario, self.members[name], kind, payloads[name], payload, size)

        nobody = {name: Answer[T](name, UNREACHABLE) for name in payloads if name not in members}
        return nobody | exchange(
            self.grid,
            requests,
            of=of,
            deadline=deadline,
            traffic=self.counters.traffic,
            heard=heard,
            check=check,
            at_once=at_once(),
        )

    def _heard(self, kind: str, job: Job, answer: Answer[Any]) -> None:
        """Count and log one answer."""
        name, payload = answer.to, answer.payload
        if payload is not None:
            self.counters.released(name)
            run = self.folder.path.name
            self.arrivals.append(arrival(name, run, answer.request, kind, job, payload, answer.bytes, now()))
        if answer.ok and payload is not None:
            spent = {
                key: float(value)
                for key, value in payload.config.items()
                if key in (EPSILON_TRAIN, EPSILON_METRICS)
            }
            self.counters.epsilon[name] = spent
            self.folder.event(
                "answer",
                institution=name,
                kind=kind,
                stage=job.stage,
                up=self.counters.traffic.up[name],
                down=self.counters.traffic.down[name],
                epsilon=spent,
                iou=iou_of(answer.reply),
            )
            return
        if answer.outcome == REJECTED:
            return self.reject(name, kind, job.stage, answer.reason)
        if answer.refused:
            self.counters.refused(name, answer.outcome)
        verb = "refuses" if answer.refused else "gave no result to"
        self.folder.event(
            "refusal" if answer.refused else "no-result",
            f"{name} {verb} {kind}: {answer.outcome}"
            + (f" (incident {answer.incident} in its own log)" if answer.incident else ""),
            institution=name,
            kind=kind,
            stage=job.stage,
            outcome=answer.outcome,
            incident=answer.incident,
        )

    def reject(self, name: str, kind: str, stage: int, reason: str) -> None:
        """Count and log that something an institution sent does not count, and why."""
        self.counters.rejected(name, kind)
        self.folder.event(
            "rejected",
            f"stage {stage}: what {name} answered to {kind} does not count: {reason}",
            institution=name,
            kind=kind,
            stage=stage,
            reason=reason,
        )

    def forget(self, stage: int, leaver: str, entries: Sequence[str]) -> dict[str, ForgetReply]:
        """Let everybody present delete entries; the signed words of those who did, by institution.

        Copies of the bank are sent anew at the next evaluation.
        """
        payloads = {
            name: ForgetRequest(Job(name, stage), leaver, entries).to_payload()
            for name in self.present(stage)
        }
        answers = self.ask(
            "query.forget", payloads, ForgetReply.of, deadline=self.scenario.deadlines.evaluate
        )
        self.resend_bank()
        run = self.folder.path.name
        return {
            name: word
            for name, word in results(answers).items()
            if is_signed(word.public, purge_statement(name, run, leaver, entries), word.signature)
        }

    def withdraw(self, bank: Bank) -> None:
        """The newest entry is not in the bank after all: the next evaluation has copies drop it."""
        for name, held in self._entries_held.items():
            self._entries_held[name] = min(held, len(self.entries_for(name, bank)))

    def resend_bank(self) -> None:
        """The bank lost an entry that institutions hold: the next evaluation sends them the whole bank."""
        self._entries_held = {}

    def evaluate(
        self, stage: int, bank: Bank, candidate: str = "", *, spare_noisy: bool = False
    ) -> StageScores:
        """Everybody's test images under the bank; each gets only the entries it lacks of this bank.

        candidate: the task of a new entry; holders of older tasks say whether it claims their images.
        spare_noisy: leave out who would pay for its scores. An institution whose copy turns out not to be
        ours is sent the whole bank, once more.
        """
        if bank is not self._bank:
            self._bank, self._entries_held = bank, {}
        names = self.present(stage)
        if spare_noisy:
            names = [name for name in names if self.members[name].policy.metrics != "noisy"]
        answers = self._evaluate(names, stage, bank, candidate)
        lost = [name for name in names if answers[name].outcome == Outcome.BANK_MISMATCH]
        if lost:
            for name in lost:
                self._entries_held[name] = 0
            answers |= self._evaluate(lost, stage, bank, candidate)
        # Totals, not differences: a stage that was begun twice then counts once, with all it took.
        traffic = self.counters.traffic
        self.folder.event("traffic", stage=stage, up=dict(traffic.up), down=dict(traffic.down))
        replies = results(answers)
        if not replies and not all_settled(answers) and self.scenario.participation.missing == "stop":
            raise RunError(f"stage {stage}: no institution could evaluate; their own logs say why")
        return combine(replies, {task: self.testers(task) for task in self.tasks})

    def _evaluate(
        self, names: list[str], stage: int, bank: Bank, candidate: str
    ) -> dict[str, Answer[EvaluateReply]]:
        payloads = {}
        tasks = {name: self.entries_for(name, bank) for name in names}
        for name in names:
            known = self._entries_held.get(name, 0)
            entries = [bank.bytes_of(task) for task in tasks[name][known:]]
            digest = bank.digest_over(tasks[name])
            asked = candidate if candidate in tasks[name] else ""
            request = EvaluateRequest(Job(name, stage), known, entries, digest, asked)
            payloads[name] = request.to_payload()
        deadline = self.scenario.deadlines.evaluate
        answers = self.ask("evaluate.stage", payloads, EvaluateReply.of, deadline=deadline)
        for name, answer in answers.items():
            if answer.ok or answer.outcome == Outcome.METRICS_NOT_SHARED:  # it has them, and keeps its scores
                self._entries_held[name] = len(tasks[name])
        return answers

    def entries_for(self, name: str, bank: Bank) -> tuple[str, ...]:
        """Tasks whose entries the institution gets: all, or where it takes none of others, its own."""
        if self.members[name].policy.accept_entries:
            return bank.tasks
        return tuple(task for task in bank.tasks if bank[task].provenance.holders == (name,))


def iou_of(reply: object) -> dict[str, float]:
    """What an evaluation says, by task; nothing for other answers."""
    results = reply.results if isinstance(reply, EvaluateReply) else {}
    return {task: result.iou for task, result in results.items()}
