"""The results of a privacy audit: a line per private release, in a file of the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from casam_core.errors import RunError
from casam_core.files import write_atomic


@dataclass(frozen=True)
class Line:
    """An audited release.

    claim: epsilon of its mechanisms at this delta. at_least: the lower bound of epsilon at 95 % that the
    correct guesses prove; 0 if nothing is proved.
    """

    release: str
    claim: float
    delta: float
    at_least: float
    canaries: int
    guesses: int
    correct: int

    @property
    def ratio(self) -> float:
        """The lower bound as a share of the claim."""
        return self.at_least / self.claim if self.claim else 0.0

    @property
    def refuted(self) -> bool:
        """Whether the lower bound is above the claim."""
        return self.at_least > self.claim


Audits = Mapping[str, Sequence[Line]]
"""By institution."""


def write_audits(path: Path, audits: Audits) -> None:
    """Store the lines."""
    content = {name: [asdict(line) for line in lines] for name, lines in audits.items()}
    write_atomic(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def read_audits(path: Path) -> Audits:
    """The stored lines. Raises RunError if the file has another content."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): [Line(**line) for line in lines] for name, lines in content.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{path}: expected the lines of a privacy audit, found another content; delete the file and run "
            "casam attack again"
        ) from error


def facts_of(line: Line) -> tuple[str, ...]:
    """The cells of a line: release, claim, lower bound, their ratio, delta, canaries, guesses, correct."""
    return (
        line.release,
        f"{line.claim:.2f}",
        f"{line.at_least:.2f}",
        f"{line.ratio:.0%}",
        f"{line.delta:g}",
        f"{line.canaries:,}",
        f"{line.guesses:,}",
        f"{line.correct:,}",
    )


COLUMNS = (
    "release",
    "epsilon claimed",
    "epsilon at least",
    "ratio",
    "delta",
    "canaries",
    "guesses",
    "correct",
)
"""The headings of `facts_of`."""
