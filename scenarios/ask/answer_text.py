"""An answer on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from scenarios.ask.answers import Answer, Cost, Row
from scenarios.commands.terminal import plain_columns

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
    noise = f"; {found.draws} draws of the noise" if found.draws else "; nothing is drawn at random"
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
