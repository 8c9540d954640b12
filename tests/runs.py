"""Reading a run's folder: what happened, how far it came, what must be the same in another run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LASTING = ("matrix", "zero_shot", "routing", "holders", "last_iou", "statistics")


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """One kind of event of a run, in their order."""
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def lines_in(run: Path) -> int:
    """How far a run has come: events and arrivals."""
    files = (run / "events.jsonl", run / "audit.jsonl")
    return sum(file.read_bytes().count(b"\n") for file in files if file.exists())


def result(run: Path) -> dict[str, Any]:
    """What must be the same: the figures, and every byte of the bank."""
    summary = json.loads((run / "summary.json").read_text())
    bank = run / "bank"
    return {
        **{key: summary[key] for key in LASTING},
        "bank": {str(p.relative_to(bank)): p.read_bytes() for p in bank.rglob("*") if p.is_file()},
    }
