"""Where a run left its bank."""

from __future__ import annotations

from pathlib import Path


def bank_of_run(folder: Path) -> Path:
    """The bank's folder in a run folder: of a method with one layer for all tasks, that of the last stage."""
    stages = sorted((folder / "bank").glob("stage-*"), key=lambda path: int(path.name.removeprefix("stage-")))
    return stages[-1] if stages else folder / "bank"
