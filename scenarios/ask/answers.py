"""An answer as data and as lines: every figure as it is and as it would be, the cost, and what is unknown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from scenarios.printing import plain_columns

SAME = 5e-5
"""Half of the last digit in which scores leave an institution: smaller differences are none."""


@dataclass(frozen=True)
class Row:
    """The IoU of one task at one institution. None: no figure leaves it.

    now: in the run. same_seed: in a run with the run's seed. predicted: the mean over draws of the noise; it
    is same_seed where there is no noise. low, high: 90 % interval for a run with another draw of the noise
    and other test images; noise_low, noise_high: with the same test images. routes: by task, test images of
    same_seed.
    """

    institution: str
    task: str
    now: float | None
    same_seed: float | None
    predicted: float | None
    low: float | None
    high: float | None
    noise_low: float | None
    noise_high: float | None
    routes: dict[str, int]
    rerouted: bool

    @property
    def affected(self) -> bool:
        """Whether the change does anything to these images."""
        if self.now is None or self.predicted is None:
            return self.now is not self.predicted
        return self.rerouted or abs(self.predicted - self.now) > SAME


@dataclass(frozen=True)
class Cost:
    """What one institution spends and refuses, in the run and in the changed one; exact."""

    institution: str
    epsilon_train_now: float | None
    epsilon_train: float | None
    epsilon_metrics_now: float | None
    epsilon_metrics: float | None
    refusals: dict[str, int]


@dataclass(frozen=True)
class Answer:
    """mean: of the rows with a figure now and then; None if it is not a mean of several. draws: of the noise,
    the first as in `casam run`. trained: layers that the run had not trained.
    unknown: what this cannot know; study: the command of the full runs that would tell."""

    settings: tuple[str, ...]
    rows: tuple[Row, ...]
    mean: Row | None
    costs: tuple[Cost, ...]
    draws: int
    seconds: float
    trained: tuple[str, ...]
    unknown: tuple[str, ...]
    study: str

    @property
    def affected(self) -> tuple[str, ...]:
        """Institutions with a figure or an epsilon that changes."""
        by_cost = {
            cost.institution
            for cost in self.costs
            if (cost.epsilon_train_now, cost.epsilon_metrics_now)
            != (cost.epsilon_train, cost.epsilon_metrics)
        }
        names = {row.institution for row in self.rows if row.affected} | by_cost
        return tuple(cost.institution for cost in self.costs if cost.institution in names)

    def as_json(self) -> dict[str, Any]:
        """All of it as a table of JSON."""
        return asdict(self) | {"affected": self.affected}

    @staticmethod
    def of(table: Mapping[str, Any]) -> Answer:
        """The answer that `as_json` made."""
        told = {key: value for key, value in table.items() if key != "affected"}
        mean = told["mean"]
        told |= {key: tuple(told[key]) for key in ("settings", "trained", "unknown")}
        told |= {"rows": tuple(Row(**row) for row in told["rows"]), "mean": Row(**mean) if mean else None}
        return Answer(**told | {"costs": tuple(Cost(**cost) for cost in told["costs"])})


HEADS = ("institution", "task", "IoU now", "predicted", "90 %", "changes")
HEADS_OF_COST = ("institution", "epsilon of training", "epsilon of scores", "refusals")
"""Columns of the two tables, here and on a page."""


def answer_lines(found: Answer) -> Iterator[str]:
    """The answer, line by line."""
    yield f"What if: {', '.join(found.settings)}"
    yield ""
    shown = [*found.rows, found.mean] if found.mean else found.rows
    yield from plain_columns([[*HEADS], *map(cells, shown)])
    yield ""
    yield from plain_columns([[*HEADS_OF_COST], *map(costs, found.costs)])
    yield ""
    yield f"Affected: {', '.join(found.affected) or 'nobody'}"
    yield from notes(found)


def notes(found: Answer) -> Iterator[str]:
    """What was trained, the seconds, what is not known, and what would tell."""
    if found.trained:
        yield f"Trained now: {', '.join(found.trained)}"
    noise = f"; draws of the noise: {found.draws}" if found.draws else "; nothing is drawn at random"
    yield f"{found.seconds:.1f} s{noise}"
    for what in found.unknown:
        yield f"Not known: {what}"
    yield f"Full runs would tell: {found.study}"


def cells(row: Row) -> list[str]:
    """One line of the table."""
    span = "-" if row.low is None or row.high is None else f"{row.low:.3f} to {row.high:.3f}"
    sign = "yes" if row.affected else ""
    return [row.institution, row.task, figure(row.now), figure(row.predicted), span, sign]


def costs(cost: Cost) -> list[str]:
    """One line of the table of costs."""
    return [
        cost.institution,
        change(cost.epsilon_train_now, cost.epsilon_train),
        change(cost.epsilon_metrics_now, cost.epsilon_metrics),
        ", ".join(f"{name} {count}" for name, count in cost.refusals.items()) or "-",
    ]


def change(now: float | None, then: float | None) -> str:
    """One figure, or both if they differ."""
    return spent(then) if now == then else f"{spent(now)} -> {spent(then)}"


def spent(epsilon: float | None) -> str:
    """Epsilon, or that there is no limit on what was told."""
    return "no bound" if epsilon is None else f"{epsilon:.2f}"


def figure(value: float | None) -> str:
    """A score, or a dash."""
    return "-" if value is None else f"{value:.3f}"
