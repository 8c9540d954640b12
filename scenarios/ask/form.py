"""The studio's form for a question: an institution, a clause and a value; and what it shows of the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.config.toml import read_scenario
from casam_core.errors import CasamError, RunInputError
from scenarios.ask.answers import HEADS, HEADS_OF_COST, Answer, cells, costs, notes
from scenarios.ask.own_process import Asking
from scenarios.report.parts import Block, Cell, Notice, Table

DELTA = 1e-3
"""Delta of a policy that had no noise before."""

Makes = Callable[[Policy, str], dict[str, str]]


@dataclass(frozen=True)
class Clause:
    """What a person may change. words: with what the value means. example: a value. settings: from the policy
    as it is, and the value, to values by key of the policy.
    """

    words: str
    example: str
    settings: Makes


def one(key: str) -> Makes:
    """The value of one key."""
    return lambda policy, value: {key: value}


def noise(*parts: str) -> Makes:
    """Noise on these parts with the value as epsilon."""

    def made(policy: Policy, value: str) -> dict[str, str]:
        found = {f"{part}.noise": "dp" for part in parts}
        return found | {"budget.epsilon": value, "budget.delta": f"{policy.budget.delta or DELTA:g}"}

    return made


def noisy_scores(policy: Policy, value: str) -> dict[str, str]:
    """Noise on scores with the value as epsilon."""
    delta = f"{policy.budget.delta or DELTA:g}"
    return {"metrics": "noisy", "budget.epsilon_metrics": value, "budget.delta": delta}


def leaves(on_leave: str) -> Makes:
    """It takes part until this stage."""

    def made(policy: Policy, value: str) -> dict[str, str]:
        if not value.isdecimal():
            raise RunInputError(f"leaves after stage: expected a number such as 4, found {value[:40]!r}")
        return {"leaves_at": str(int(value) + 1), "on_leave": on_leave}

    return made


CLAUSES = {
    "learned": Clause("noise on layer and router: epsilon", "3", noise("adapter", "router")),
    "router-noise": Clause("noise on the router: epsilon", "3", noise("router")),
    "scores": Clause("noise on test scores: epsilon", "3", noisy_scores),
    "leaves": Clause("leaves after stage", "1", leaves("keep")),
    "unlearned": Clause("leaves after stage, and all that was learned from it", "1", leaves("unlearn")),
    "joins": Clause("takes part from stage", "2", one("joins_at")),
    "layer": Clause("shares its layer: yes or never", "never", one("adapter.share")),
    "router": Clause("shares its router: yes or never", "never", one("router.share")),
    "metrics": Clause("shares test scores: exact or never", "never", one("metrics")),
    "accepts": Clause("uses entries of others: true or false", "false", one("accept_entries")),
    "cohort": Clause("smallest secure sum, institutions", "4", one("minimum_cohort")),
}


def settings_of(scenario: Scenario, institution: str, clause: str, value: str) -> list[str]:
    """The question as settings, as for `casam ask --set`. Raises RunInputError."""
    if institution not in [site.name for site in scenario.institutions]:
        raise RunInputError(f"expected an institution of the run, found {institution[:60]!r}")
    if clause not in CLAUSES:
        raise RunInputError(f"expected a clause of the list, found {clause[:60]!r}")
    if not value:
        raise RunInputError(f"{CLAUSES[clause].words}: expected a value such as {CLAUSES[clause].example}")
    made = CLAUSES[clause].settings(scenario.institution(institution).policy, value)
    return [f"institutions.{institution}.policy.{key}={text}" for key, text in made.items()]


class Questions:
    """The last question about each run. A run answers one at a time."""

    def __init__(self) -> None:
        self._asked: dict[Path, Asking] = {}

    def of(self, run: Path) -> Asking | None:
        """The last question, if there was one."""
        return self._asked.get(run)

    def ask(self, run: Path, settings: list[str]) -> Asking:
        """Begin to answer. Raises RunInputError while another question about the run is being answered."""
        last = self.of(run)
        if last is not None and last.working:
            raise RunInputError(f"{run.name}: another question is being answered; wait for it")
        self._asked[run] = Asking(run, settings)
        return self._asked[run]

    def stop(self) -> None:
        """End all processes that work."""
        for asked in self._asked.values():
            asked.stop()


def scenario_of(run: Path) -> Scenario:
    """The run's scenario. Raises ScenarioError."""
    return read_scenario(run / "scenario.json")


def shown(last: Asking) -> dict[str, Any]:
    """The state of a question, a sentence, and the parts of its answer."""
    what = f"What if: {', '.join(last.settings)}"
    if last.working:
        return {"state": "working", "sentence": f"{what}: {last.seconds:.0f} s so far", "blocks_of": []}
    try:
        found = Answer.of(last.answer())
    except CasamError as fault:
        return {"state": "failed", "sentence": f"{what}: no answer: {fault}", "blocks_of": []}
    sentence = f"{what}: answered after {last.seconds:.1f} s"
    return {"state": "completed", "sentence": sentence, "blocks_of": list(blocks(found))}


def blocks(found: Answer) -> Iterator[Block]:
    """The answer as parts of a page, with the words of the command."""
    yield Notice(f"Affected: {', '.join(found.affected) or 'nobody'}.", "soft")
    shown = [*found.rows, found.mean] if found.mean else found.rows
    yield Table("IoU", HEADS, tuple(tuple(map(Cell, cells(row))) for row in shown), frozenset({1, 5}))
    yield Table(
        "Cost", HEADS_OF_COST, tuple(tuple(map(Cell, costs(cost))) for cost in found.costs), frozenset({3})
    )
    for line in notes(found):
        yield Notice(line, "")
