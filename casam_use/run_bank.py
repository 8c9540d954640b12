"""Where a run left its bank."""

from __future__ import annotations

from pathlib import Path


def bank_of_run(folder: Path) -> Path:
    """The bank's folder in a run folder: of a method with one layer for all tasks, that of the last stage."""
    numbers = {path: path.name.removeprefix("stage-") for path in (folder / "bank").glob("stage-*")}
    stages = {int(number): path for path, number in numbers.items() if number.isdecimal()}
    return stages[max(stages)] if stages else folder / "bank"
