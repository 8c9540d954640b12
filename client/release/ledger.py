"""The privacy ledger: one line for every private release that this site ever began. Software never resets it.

The site writes the line to disk before it computes the release, so a crash can only count too much. It never
changes or removes a line. It detects an old copy that somebody restores, because every line of the audit log
records the number of ledger lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from casam_core.config.data_spec import overlap
from casam_core.config.policy import BudgetPolicy
from casam_core.errors import PolicyError
from casam_core.files import RecordLog, make_folder
from casam_core.privacy.accounting import Mechanism, epsilon_of
from casam_core.protocol.audit import audit_log
from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.payload import EPSILONS, Scalar
from client.institution import Institution
from client.site import Site

LEDGER_LINES = "ledger"
"""Key of an audit line's `epsilon` that counts the ledger's lines at that time."""


@dataclass(frozen=True)
class Spend:
    """One mechanism of a private release: a line of the ledger.

    Args:
        dataset: location of the images; it does not depend on the task's name in a scenario.
        split: train, val or test.
        unit: image or group.
        noise_multiplier, sample_rate, steps: parameters of the mechanism (casam_core.privacy.accounting).
        division: digest of how the images were divided into splits; "" in ledgers that do not know it.
    """

    time: str
    run: str
    kind: str
    task: str
    dataset: str
    split: str
    unit: str
    noise_multiplier: float
    sample_rate: float = 1.0
    steps: int = 1
    division: str = ""

    @property
    def mechanism(self) -> Mechanism:
        """The mechanism whose privacy cost is counted."""
        return Mechanism(self.noise_multiplier, self.sample_rate, self.steps)


class Ledger(RecordLog[Spend]):
    """A file with one line per spend."""

    def __init__(self, path: Path) -> None:
        fault = (
            "a line of a ledger; this site sends no private release until the file is restored from a copy "
            "that is not older"
        )
        super().__init__(path, Spend, fault, optional=("division",))
        make_folder(path.parent, 0o700)


def of_images(spends: Sequence[Spend], dataset: str, split: str, division: str) -> list[Spend]:
    """The spends that can have used the images of this split; a folder's subfolders are the same images.

    The splits of one division are disjoint, so each has its own spends. If the dataset was ever divided in
    another way, an image of this split may have been in any split, and all spends count.
    """
    same = [s for s in spends if overlap(s.dataset, dataset)]
    if division and all((s.dataset, s.division) == (dataset, division) for s in same):
        return [s for s in same if s.split == split]
    return same


def reserve(site: Site, spends: Sequence[Spend], units: int) -> None:
    """Add the costs of one release to the ledger before the release is computed.

    Args:
        spends: of the same images; the budget must allow all of them.
        units: number of protected units among the images that the release uses.

    Raises:
        RefusalError: delta-too-large or budget-spent.
        PolicyError: the file is not a ledger, is an older copy, or counts other units.
    """
    budget, first = site.policy.budget, spends[0]
    assert budget.delta is not None
    if budget.delta >= 1 / units:
        raise RefusalError(
            Outcome.DELTA_TOO_LARGE,
            f"{first.task}: expected budget.delta below 1 / {units} {budget.unit}s, found {budget.delta:g}",
        )
    remembered = lines_in_audit(site)
    for number, spend in enumerate(spends):

        def allow(lines: Sequence[Spend], left: Sequence[Spend] = spends[number:]) -> None:
            if len(lines) < remembered:
                raise PolicyError(
                    f"{site.ledger}: {len(lines)} lines, but the audit log recorded {remembered}: an older "
                    "ledger was restored; restore the newest one"
                )
            before = of_images(lines, first.dataset, first.split, first.division)
            check_budget(before, left, budget, site.ledger)

        Ledger(site.ledger).add(spend, allow)


def check_budget(
    before: Sequence[Spend], spends: Sequence[Spend], budget: BudgetPolicy, ledger: Path
) -> None:
    """Raise RefusalError if `spends` after `before` exceed the budget, PolicyError if their units differ.

    Where they are of several splits, an image may have been in each: the smaller budget counts.
    """
    task, unit = spends[0].task, spends[0].unit
    if any(s.unit != unit for s in before):
        raise PolicyError(
            f"{ledger}: {task} was released per {before[0].unit} before, budget.unit is now "
            f"{unit}; costs of different units cannot be added"
        )
    assert budget.delta is not None
    splits = {s.split for s in (*before, *spends)}
    budgets = (budget.epsilon if split == "train" else budget.epsilon_metrics for split in splits)
    epsilon = min(known for known in budgets if known is not None)  # a policy with noise has a budget
    after = epsilon_of([s.mechanism for s in (*before, *spends)], budget.delta)
    if after > epsilon:
        raise RefusalError(
            Outcome.BUDGET_SPENT,
            f"{task}: this release would make epsilon {after:.2f}, the budget is {epsilon:g}",
        )


def lines_in_audit(site: Site) -> int:
    """The highest number of ledger lines that the audit log recorded with any release."""
    counts = [
        line.release.epsilon.get(LEDGER_LINES) or 0
        for line in audit_log(site.audit).lines()
        if line.release.epsilon is not None
    ]
    return int(max(counts, default=0))


@dataclass(frozen=True)
class Account:
    """Epsilon spent so far, the maximum over the institution's datasets; None: not differentially private.

    train, metrics: if one unit is added or removed; train_replaced, metrics_replaced: if one is replaced.
    """

    train: float | None
    metrics: float | None
    train_replaced: float | None
    metrics_replaced: float | None
    lines: int

    def settings(self) -> dict[str, Scalar]:
        """The account as settings of a reply, without the values that are None."""
        values = (self.train, self.metrics, self.train_replaced, self.metrics_replaced)
        given = dict(zip(EPSILONS, values, strict=True))
        return {key: value for key, value in given.items() if value is not None}

    def logged(self) -> dict[str, float | None]:
        """The account as a line of the audit log holds it."""
        return {"train": self.train, "metrics": self.metrics, LEDGER_LINES: self.lines}


def account_of(institution: Institution) -> Account | None:
    """The institution's account; None if its policy adds no noise."""
    policy, site = institution.site.policy, institution.site
    if not policy.private and policy.metrics != "noisy":
        return None
    assert policy.budget.delta is not None
    spends, delta = Ledger(site.ledger).lines(), policy.budget.delta
    # Each split has a budget of its own; an earlier run may have evaluated another one.
    measured = ("test", "val") if policy.metrics == "noisy" else ()
    trained = () if policy.exact else ("train",)

    def worst(parts: Sequence[str], *, replaced: bool) -> float | None:
        costs = []
        for task in institution.site.tasks:
            dataset, division = institution.dataset(task), institution.task(task).division
            for part in parts:
                used = of_images(spends, dataset, part, division)
                costs.append(epsilon_of([s.mechanism for s in used], delta, replaced=replaced))
        return max(costs) if costs else None

    return Account(
        train=worst(trained, replaced=False),
        metrics=worst(measured, replaced=False),
        train_replaced=worst(trained, replaced=True),
        metrics_replaced=worst(measured, replaced=True),
        lines=len(spends),
    )
