"""The scenario's institutions as the server talks to them: by name, with deadlines and counted bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from flwr.serverapp import Grid

from casam_core.bank import Bank
from casam_core.errors import RunError
from casam_core.messages import EvaluateReply, EvaluateRequest
from casam_core.methods import Cohort
from casam_core.payload import Job, Outcome, Payload
from casam_core.scenario import Scenario
from server.directory import Directory, identify
from server.evaluation import StageScores, combine
from server.exchange import Answer, Request, Traffic, exchange, results
from server.run_folder import RunFolder

T = TypeVar("T")


class Institutions:
    """Who takes part, where they are now, and what they already hold of the bank."""

    def __init__(self, grid: Grid, scenario: Scenario, folder: RunFolder) -> None:
        self.grid = grid
        self.scenario = scenario
        self.folder = folder
        self.traffic = Traffic()
        self.directory = Directory({}, "", "")
        self._bank: Bank | None = None
        self._entries_held: dict[str, int] = {}

    def meet(self) -> None:
        """Find every institution again. Raises RunError, ScenarioError (server.directory)."""
        # Not counted: who-is-there traffic depends on nodes and folder names, not on what is learned.
        self.directory = identify(self.grid, self.scenario, self.folder.path.name, Traffic())

    @property
    def tasks(self) -> list[str]:
        """Every task held by anyone, sorted."""
        return sorted({task for member in self.directory.members.values() for task in member.holdings})

    def testers(self, task: str) -> list[str]:
        """Institutions that hold images of `task` to evaluate on, in the scenario's order."""
        split = self.scenario.evaluation.split
        return [
            name
            for name, member in self.directory.members.items()
            if task in member.holdings and getattr(member.holdings[task], split) > 0
        ]

    def cohort(self, stage: int, task: str) -> Cohort:
        """Who could train in this stage, for a method to choose from."""
        stream = self.scenario.stream
        return Cohort(
            task=task,
            seen=tuple(stream[: stage - 1]),
            held={
                name: [t for t, holding in member.holdings.items() if t in stream and holding.train > 0]
                for name, member in self.directory.members.items()
            },
            keeps=[spec.name for spec in self.scenario.institutions if spec.policy.keep_samples],
        )

    def ask(
        self, kind: str, payloads: Mapping[str, Payload], of: Callable[[Payload], T], *, deadline: float
    ) -> dict[str, Answer[T]]:
        """One exchange; every answer that is not ok becomes an event and a line."""

        def heard(answer: Answer[T]) -> None:
            if not answer.ok:
                self.folder.event(
                    "no-result",
                    f"{answer.to} gave no result to {kind}: {answer.outcome}"
                    + (f" (incident {answer.incident} in its own log)" if answer.incident else ""),
                    institution=answer.to,
                    kind=kind,
                    outcome=answer.outcome,
                    incident=answer.incident,
                )

        requests = [
            Request(name, self.directory.members[name].node, kind, payload)
            for name, payload in payloads.items()
        ]
        return exchange(self.grid, requests, of=of, deadline=deadline, traffic=self.traffic, heard=heard)

    def evaluate(self, stage: int, bank: Bank) -> StageScores:
        """Everybody's test images under the bank; each gets only the entries it lacks of this bank.

        An institution whose copy turns out not to be ours is sent the whole bank, once more.
        """
        if bank is not self._bank:
            self._bank, self._entries_held = bank, {}
        names = list(self.directory.members)
        answers = self._evaluate(names, stage, bank)
        lost = [name for name in names if answers[name].outcome == Outcome.BANK_MISMATCH]
        if lost:
            for name in lost:
                self._entries_held[name] = 0
            answers |= self._evaluate(lost, stage, bank)
        replies = results(answers)
        if not replies:
            raise RunError(f"stage {stage}: no institution could evaluate; their own logs say why")
        return combine(replies, {task: self.testers(task) for task in self.tasks})

    def _evaluate(self, names: list[str], stage: int, bank: Bank) -> dict[str, Answer[EvaluateReply]]:
        payloads = {}
        for name in names:
            known = self._entries_held.get(name, 0)
            entries = [bank.bytes_of(task) for task in bank.tasks[known:]]
            payloads[name] = EvaluateRequest(Job(name, stage), known, entries, bank.digest).to_payload()
        deadline = self.scenario.deadlines.evaluate
        answers = self.ask("evaluate.stage", payloads, EvaluateReply.of, deadline=deadline)
        for name, answer in answers.items():
            if answer.ok:
                self._entries_held[name] = len(bank)
        return answers
