"""What each institution did in each stage, from events.jsonl and the policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scenarios.report.parts import Cell, Tone
from scenarios.report.reading import Event, Run
from scenarios.report.words import KINDS, OUTCOMES

STATES: dict[Tone, str] = {
    "trained": "trained",
    "waited": "waited",
    "refused": "refused",
    "failed": "no result",
    "away": "away",
}
"""The word of each state; style.css adds a symbol."""


@dataclass(frozen=True)
class Deed:
    """What one institution did in one stage. notes: its refusals and failures."""

    state: Tone
    notes: tuple[str, ...] = ()

    def cell(self) -> Cell:
        """The cell of the timeline."""
        return Cell(STATES[self.state], self.state, self.notes)


def timeline(run: Run) -> dict[str, list[Deed]]:
    """By institution: a deed for stage 0 (the frozen backbone) and every stage after it."""
    by_stage: list[list[Event]] = [[] for _ in range(run.stages + 1)]
    for event in run.events:
        if event.stage <= run.stages:
            by_stage[event.stage].append(event)
    missing: list[set[str]] = []
    for events in by_stage:
        now = set(missing[-1]) if missing else set()
        for event in events:
            if event.name == "absent":
                now.add(str(event.facts.get("institution")))
            elif event.name == "back":
                now.discard(str(event.facts.get("institution")))
        missing.append(now)
    return {
        name: [
            deed(run, name, stage, events, missing=name in missing[stage])
            for stage, events in enumerate(by_stage)
        ]
        for name in run.institutions
    }


def deed(run: Run, institution: str, stage: int, events: Sequence[Event], *, missing: bool) -> Deed:
    """One cell; the first that applies: trained, failed, refused to train, away, waited."""
    mine = [event for event in events if event.facts.get("institution") == institution]
    refused = [event for event in mine if event.name == "refusal"]
    failed = [event for event in mine if event.name in ("no-result", "rejected")]
    notes = tuple(dict.fromkeys(note_of(event) for event in (*failed, *refused)))
    if trained(institution, events):
        return Deed("trained", notes)
    if failed:
        return Deed("failed", notes)
    if any(event.facts.get("kind") != "evaluate.stage" for event in refused):
        return Deed("refused", notes)
    if missing:
        return Deed("away", (*notes, "not found"))
    if not run.present(institution, stage):
        policy = run.summary.privacy[institution].policy if institution in run.summary.privacy else None
        early = policy is not None and stage < policy.joins_at
        return Deed("away", ("has not joined yet" if early else "has left",))
    return Deed("waited", notes)


def trained(institution: str, events: Sequence[Event]) -> bool:
    """Whether the institution's training images are part of this stage's layer."""
    return any(event.name == "align" and institution in event.facts.get("holders", ()) for event in events)


def note_of(event: Event) -> str:
    """`scores: scores not shared`, `training: no answer in time`."""
    outcome, kind = str(event.facts.get("outcome", event.name)), str(event.facts.get("kind"))
    what = OUTCOMES[outcome].short if outcome in OUTCOMES else outcome
    return f"{KINDS.get(kind, kind)}: {what}"
