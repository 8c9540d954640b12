"""What the rows of a calibration say: how many full figures lie in their interval, and the seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from casam_bench.bench import Figures, markdown

SAME = 5.1e-5
"""Half of the last digit of a figure that leaves, and the rounding of rows."""

TARGET, SECONDS = 0.85, 10.0
"""The share of full figures that is aimed at, and the median of an answer's seconds."""


@dataclass(frozen=True)
class Row:
    """One figure of one answer beside that of one full run; nan: it does not leave.

    draws: of the noise in the answer, 0 without noise. wall: seconds of the command with its start; seconds:
    without it. worked: processor seconds with the start. draw: number of the full run. noise_low, noise_high:
    90 % over draws of the noise; low, high: as printed, also over other test images. said: why there is no
    figure at all: no answer, or an end of the changed run.
    """

    kind: str
    scenario: str
    change: str
    draws: int
    wall: float
    worked: float
    seconds: float
    draw: int
    institution: str
    task: str
    now: float
    predicted: float
    noise_low: float
    noise_high: float
    low: float
    high: float
    full: float
    said: str

    @property
    def question(self) -> tuple[str, str]:
        """What the rows of one answer share."""
        return self.scenario, self.change

    @property
    def moved(self) -> bool:
        """Whether the answer says that noise moves this figure."""
        return self.noise_high > self.noise_low

    @property
    def mean(self) -> bool:
        """Whether this is the mean of the answer's figures."""
        return (self.institution, self.task) == ("all", "mean")

    @property
    def inside(self) -> bool:
        """Whether the full figure lies in the interval over the noise, or both say that none leaves."""
        if math.isnan(self.full) or math.isnan(self.predicted):
            return math.isnan(self.full) and math.isnan(self.predicted)
        return self.noise_low - SAME <= self.full <= self.noise_high + SAME

    @property
    def inside_printed(self) -> bool:
        """The same for the interval that is printed."""
        return self.inside or self.low - SAME <= self.full <= self.high + SAME


def coverage(rows: Sequence[Row]) -> float:
    """The share of rows whose full figure lies in the interval over the noise; nan for none."""
    return sum(row.inside for row in rows) / len(rows) if rows else math.nan


def answered(rows: Sequence[Row]) -> list[Row]:
    """The rows with figures."""
    return [row for row in rows if not row.said]


def groups(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """(what they are, the rows) of the table's lines: figures that noise moves apart from exact ones."""
    for kind in dict.fromkeys(row.kind for row in rows):
        own = [row for row in answered(rows) if row.kind == kind]
        single = [row for row in own if not row.mean]
        yield f"{kind}: figures that noise moves", [row for row in single if row.moved]
        yield f"{kind}: other figures", [row for row in single if not row.moved]
        yield f"{kind}: means, with noise", [row for row in own if row.mean and row.moved]
        yield f"{kind}: means, without noise", [row for row in own if row.mean and not row.moved]


def seconds_of(rows: Sequence[Row]) -> dict[str, tuple[float, float, float]]:
    """By question with an answer: (seconds, with the start, of a processor with the start)."""
    return {" ".join(row.question): (row.seconds, row.wall, row.worked) for row in answered(rows)}


def without(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """By question that has no figures: what was said."""
    return {row.question: row.said for row in rows if row.said}


def figures_of(rows: Sequence[Row]) -> Figures:
    """Shares inside by group, questions with and without an answer, and medians of seconds."""
    found = {f"inside, {name}": coverage(own) for name, own in groups(rows) if own}
    times = list(seconds_of(rows).values())
    return {
        **found,
        "answered": len(times),
        "without": len(without(rows)),
        "median_seconds": median(t[0] for t in times),
        "median_seconds_with_start": median(t[1] for t in times),
        "median_processor_seconds": median(t[2] for t in times),
    }


def table_of(rows: Sequence[Row]) -> str:
    """Markdown: a line per group, then the seconds, then the questions without figures."""
    heads = ("full figures", "changes", "figures", "in 90 % over the noise", "in 90 % as printed")
    lines = []
    for name, own in groups(rows):
        if own:
            printed = sum(row.inside_printed for row in own) / len(own)
            asked = len({row.question for row in own})
            lines.append([name, str(asked), str(len(own)), f"{coverage(own):.0%}", f"{printed:.0%}"])
    times, took = seconds_of(rows), []
    for name, at in (("without the start", 0), ("with it", 1), ("of a processor, with it", 2)):
        own_times = [found[at] for found in times.values()]
        took.append([name, f"{median(own_times):.1f}", f"{max(own_times):.1f}"])
    parts = markdown(heads, lines), "", markdown(("seconds of an answer", "median", "largest"), took)
    return "\n".join([*parts, *lines_without(rows)])


def lines_without(rows: Sequence[Row]) -> Iterator[str]:
    """The questions that have no figures."""
    for (scenario, change), said in without(rows).items():
        yield f"\n{scenario}, {change}: {said.partition('; ')[0]}."
