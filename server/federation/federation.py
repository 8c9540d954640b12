"""The scenario's institutions from the server's side: requests by name, with deadlines and counted bytes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from flwr.serverapp import Grid

from casam_core.config.scenario import Scenario
from casam_core.methods import Cohort, cohort_at
from casam_core.protocol.audit import AuditLog, now
from casam_core.protocol.messages import EvaluateReply, EvaluateRequest
from casam_core.protocol.outcomes import NoResult, Outcome
from casam_core.protocol.payload import EPSILONS, Job, Payload
from casam_core.protocol.register import SIGNING_KEY, read_register, register_of_run
from casam_core.protocol.schema import Message
from server.defence.admission import check_answer
from server.federation.counters import Counters
from server.federation.directory import Directory, Member, identify
from server.federation.exchange import Answer, Request, at_once, exchange
from server.federation.heads import Heads
from server.run.run_folder import RunFolder, arrival

R = TypeVar("R", bound=Message)

RETRY_SECONDS = 1.0
"""Pause before the first retry; before the second retry it is twice as long, and so on."""


class Federation:
    """The institutions of one run: who they are, who is connected, and what the server counts about them.

    Attributes:
        directory: the institutions that are connected now.
        members: every institution that was ever connected, as last seen, in the scenario's order.
        counters: traffic, releases, refusals and budgets; a resumed run continues them.
        copies: how many entries of the bank in a folder an institution holds, by (folder, institution).
        mirrors_missed: institutions whose mirror lacked an entry; they are sent entries.
        register: all institutions' keys. key: the server's own signing key, a file.
    """

    def __init__(
        self, grid: Grid, scenario: Scenario, folder: RunFolder, register: Path | None = None
    ) -> None:
        """register: the consortium's register, with the server's key beside it; None for a simulation."""
        names = [site.name for site in scenario.institutions]
        file = register or register_of_run(folder.path, names)
        self.register = read_register(file)
        self.key = file.with_name(SIGNING_KEY)
        self.heads = Heads(file, self.key)
        self.grid = grid
        self.scenario = scenario
        self.folder = folder
        self.counters = Counters()
        self.directory = Directory({}, "", "")
        self.members: dict[str, Member] = {}
        self.copies: dict[tuple[Path, str], int] = {}
        self.mirrors_missed: set[str] = set()
        self.arrivals = AuditLog(folder.path / "audit.jsonl")

    def discover(self) -> None:
        """Find every institution again. Raises RunError and ScenarioError (server.federation.directory)."""
        before = self.absent if self.members else []
        told = {member.node for member in self.directory.members.values()}
        self.directory = identify(
            self.grid, self.scenario, self.folder.path.name, self.register, before, told
        )
        self.remember(self.members)
        held = {name: sorted(member.holdings) for name, member in self.directory.members.items()}
        self.folder.event("met", stream=list(self.scenario.stream), institutions=held)
        for node, name in self.directory.unregistered:
            self.folder.event(
                "unregistered",
                f"node {node} claims to be {name} without the key that is registered for it; ignored",
                node=node,
                institution=name,
            )
        for node, difference in self.directory.other_versions:
            self.folder.event(
                "other-version", f"node {node} is left out: {difference}", node=node, reason=difference
            )
        for name in self.absent:
            if name not in before:
                self.folder.event("absent", f"{name} is not there; the others continue", institution=name)
        for name in before:
            if name not in self.absent:
                self.folder.event("back", f"{name} is there again", institution=name)

    def remember(self, members: Mapping[str, Member]) -> None:
        """Keep `members` as last seen, except for those that are connected now."""
        seen = {**members, **self.directory.members}
        order = [site.name for site in self.scenario.institutions]
        self.members = {name: seen[name] for name in order if name in seen}

    @property
    def absent(self) -> list[str]:
        """Institutions of the scenario that are not connected now, in its order."""
        return [s.name for s in self.scenario.institutions if s.name not in self.directory.members]

    @property
    def tasks(self) -> list[str]:
        """Every task that any institution holds, sorted."""
        return sorted({task for member in self.members.values() for task in member.holdings})

    def present(self, stage: int) -> list[str]:
        """Connected institutions whose policy lets them take part in `stage`, in the scenario's order."""
        return [name for name, member in self.directory.members.items() if member.policy.present(stage)]

    def testers(self, task: str) -> list[str]:
        """Institutions with images of `task` to evaluate on, absent ones too, in the scenario's order."""
        return self.holders(task, self.scenario.evaluation.split)

    def holders(self, task: str, part: str) -> list[str]:
        """The same for another part of the split: train, val or test."""
        return [
            name
            for name, member in self.members.items()
            if task in member.holdings and getattr(member.holdings[task], part) > 0
        ]

    def cohort(self, stage: int, now: int) -> Cohort:
        """The institutions that a method can choose from to train the task of a stage.

        Args:
            stage: the stage of the stream that the task belongs to.
            now: the stage in which the training happens. It is later than `stage` if a task is learned
                again; then only institutions that take part in both stages are asked.
        """
        members = self.directory.members
        present = [name for name in self.present(stage) if members[name].policy.present(now)]
        held = {
            name: [task for task, holding in members[name].holdings.items() if holding.train > 0]
            for name in present
        }
        keeps = [name for name in present if members[name].policy.keep_samples]
        return cohort_at(self.scenario, stage, held, keeps)

    def ask(self, requests: Mapping[str, Message], reply: type[R]) -> dict[str, Answer[R]]:
        """Send one request to each of several institutions and wait for their answers, as `deadlines` says.

        If an institution's node disappears, the server finds the institution again and repeats the request,
        up to `deadlines.retries` times. Every answer that is not ok becomes an event and a line.

        Args:
            requests: by institution, all of one kind.
            reply: the class of the replies; its `kind` is the Flower message type.

        Returns:
            One answer per request, in the order of the requests.

        Raises:
            RunError: an institution did not return, and `participation.missing` is "stop".
        """
        kind, deadlines = reply.kind, self.scenario.deadlines
        payloads = self.heads.told({name: request.to_payload() for name, request in requests.items()})
        if payloads:
            job = Job.of(next(iter(payloads.values())))
            self.folder.event("asked", kind=kind, stage=job.stage, task=job.task, institutions=list(payloads))
        answers = {name: Answer[R](name, NoResult.UNREACHABLE) for name in payloads}
        asked, attempt = list(payloads), 0
        while True:
            members = self.directory.members
            answers |= exchange(
                self.grid,
                [Request(n, members[n].node, kind, payloads[n]) for n in asked if n in members],
                of=reply.of,
                deadline=deadlines.train if kind.startswith("train") else deadlines.evaluate,
                traffic=self.counters.traffic,
                heard=partial(self._heard, kind, payloads),
                check=partial(self._check, kind, payloads),
                at_once=at_once(),
            )
            gone = [n for n, answer in answers.items() if answer.outcome == NoResult.UNREACHABLE]
            asked = [name for name in gone if name in members]
            self.heads.keep()
            if not asked or attempt == deadlines.retries:
                return answers
            attempt += 1
            self.folder.event(
                "retry",
                f"{', '.join(asked)} disconnected during {kind}; retry {attempt} of {deadlines.retries}",
                kind=kind,
                institutions=asked,
                attempt=attempt,
            )
            time.sleep(RETRY_SECONDS * attempt)
            self.discover()

    def _check(self, kind: str, asked: Mapping[str, Payload], name: str, payload: Payload, size: int) -> None:
        """Raise AnswerError for an invalid result."""
        check_answer(self.scenario, self.members[name], kind, asked[name], payload, size)

    def _heard(self, kind: str, asked: Mapping[str, Payload], answer: Answer[Any]) -> None:
        """Count and log one answer."""
        name, payload, job = answer.to, answer.payload, Job.of(asked[answer.to])
        if payload is not None:
            self.counters.released(name)
            run = self.folder.path.name
            line = arrival(name, run, answer.request, kind, job, payload, answer.bytes, now())
            self.arrivals.add(line)
            self.heads.saw(name, line.clause, ok=answer.ok)
        if answer.ok and payload is not None:
            self._accept(kind, job, answer, payload)
        elif answer.outcome == NoResult.REJECTED:
            self.reject(name, kind, job.stage, answer.reason)
        elif answer.outcome == Outcome.NOT_IN_MIRROR and EvaluateRequest.of(asked[name]).names:
            # No failure: the server asks again, with the entries.
            said = f"{name}: its mirror lacks a new entry; the server sends it entries"
            self.folder.event("mirror-missed", said, stage=job.stage, institution=name)
        else:
            self._log_no_result(kind, job, answer)

    def _accept(self, kind: str, job: Job, answer: Answer[Any], payload: Payload) -> None:
        """Log a result, and the privacy budget that its institution has spent so far."""
        name, traffic = answer.to, self.counters.traffic
        spent = {key: float(value) for key, value in payload.config.items() if key in EPSILONS}
        self.counters.epsilon[name] = spent
        results = answer.reply.results if isinstance(answer.reply, EvaluateReply) else {}
        self.folder.event(
            "answer",
            institution=name,
            kind=kind,
            stage=job.stage,
            up=traffic.up[name],
            down=traffic.down[name],
            epsilon=spent,
            iou={task: result.iou for task, result in results.items()},
        )

    def _log_no_result(self, kind: str, job: Job, answer: Answer[Any]) -> None:
        """Count and log a refusal, a failure or a missing answer."""
        name = answer.to
        if answer.refused:
            self.counters.refused(name, answer.outcome)
        verb = "refuses" if answer.refused else "gave no result to"
        incident = f" (incident {answer.incident} in its own log)" if answer.incident else ""
        self.folder.event(
            "refusal" if answer.refused else "no-result",
            f"{name} {verb} {kind}: {answer.outcome}{incident}",
            institution=name,
            kind=kind,
            stage=job.stage,
            outcome=answer.outcome,
            incident=answer.incident,
        )

    def reject(self, name: str, kind: str, stage: int, reason: str) -> None:
        """Count and log that an institution's answer is invalid, and why."""
        self.counters.rejected(name, kind)
        self.folder.event(
            "rejected",
            f"stage {stage}: the answer of {name} to {kind} is rejected: {reason}",
            institution=name,
            kind=kind,
            stage=stage,
            reason=reason,
        )
