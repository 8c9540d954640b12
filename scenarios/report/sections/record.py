"""What happened in the run, its environment, and how to reproduce it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from scenarios.report.parts import Block, Cell, Code, Notice, Row, Section, Table
from scenarios.report.reading import Event, Run
from scenarios.report.sections.timeline import STATES, timeline
from scenarios.report.words import DASH, KINDS, MISSING, OUTCOMES, duration, listed


def course(run: Run) -> Section:
    """Timeline and faults."""
    deeds = timeline(run)
    heads = ["0. frozen SAM", *(run.stage_name(stage) for stage in range(1, run.stages + 1))]
    rows: list[Row] = [(name, *(deed.cell() for deed in row)) for name, row in deeds.items()]
    counts: list[Row] = [
        (
            word,
            *(str(sum(row[stage].state == state for row in deeds.values())) for stage in range(len(heads))),
        )
        for state, word in STATES.items()
    ]
    blocks: list[Block] = [
        Table(
            "Timeline: what each institution did in each stage",
            ("institution", *heads),
            tuple(rows),
            words=frozenset(range(1, len(heads) + 1)),
        ),
        Table("Institutions by what they did", ("state", *heads), tuple(counts)),
    ]
    faults = fault_table(run)
    if not run.told_to_the_end:
        blocks.insert(0, Notice(CUT_OFF, "warn"))
    if faults is not None:
        blocks.append(faults)
    elif run.told_to_the_end:
        blocks.append(Notice("No refusals, no failures, no late answers.", "good"))
    if run.audit_fault is not None:
        blocks.append(Notice(f"Audit: {run.audit_fault}. This page cannot confirm what arrived.", "warn"))
    else:
        blocks.append(
            Notice(
                f"Audit: the server's hash-chained log records {len(run.arrivals)} answers and is "
                "consistent. `casam audit compare` compares it with an institution's own log.",
                "soft",
            )
        )
    return Section(
        "timeline",
        "Who did what",
        "Trained: the institution's images were used to train this stage's layer. Waited: the institution "
        "took part but had nothing to train; if it shares scores, it evaluated its test images. Refused: its "
        "policy refused to train. No result: it failed, was late, or the server rejected its answer. Away: "
        "it takes no part in this stage by its policy, or the server did not find it.",
        blocks,
    )


CUT_OFF = (
    "events.jsonl is missing, or damaged before the end of the run. What follows, and every curve over the "
    "stages but IoU, shows only what stands before the damage."
)


def fault_table(run: Run) -> Table | None:
    """Refusals, missing and rejected answers, quarantined entries, fallbacks and failures.

    Equal ones share a row. None if there are none.
    """
    found: dict[tuple[str, str, str], list[Event]] = {}
    for event in run.events:
        if (fault := fault_of(event)) is not None:
            found.setdefault(fault, []).append(event)
    rows: list[Row] = []
    for (who, what, meaning), events in found.items():
        stages = sorted({event.stage for event in events})
        bad = any(event.name in BAD for event in events)
        rows.append(
            (
                duration(events[0].seconds),
                ranges(stages),
                who,
                Cell(what, "failed" if bad else "refused"),
                str(len(events)),
                meaning,
            )
        )
    if not rows:
        return None
    head = ("first after", "stages", "who", "what", "times", "what it means")
    return Table(
        "Refusals and faults, in the order of their first occurrence",
        head,
        tuple(rows),
        words=frozenset({1, 2, 3, 5}),
    )


BAD = ("no-result", "failed", "rejected", "quarantined", "absent")
"""Events that are faults, not decisions."""


def fault_of(event: Event) -> tuple[str, str, str] | None:
    """(who, what, what it means); None for an event that is neither a refusal nor a fault."""
    facts = event.facts
    if event.name in ("refusal", "no-result"):
        outcome, kind = str(facts.get("outcome")), str(facts.get("kind"))
        meaning = OUTCOMES.get(outcome)
        what = f"{KINDS.get(kind, kind)}: {meaning.short if meaning else outcome}"
        return str(facts.get("institution")), what, meaning.long if meaning else ""
    if event.name == "rejected":
        what = f"{KINDS.get(str(facts.get('kind')), str(facts.get('kind')))}: rejected"
        return str(facts.get("institution")), what, f"The server does not use it: {facts.get('reason')}."
    if event.name == "failed":
        return "server", "the run failed", str(facts.get("reason", ""))
    if event.name in ABOUT_TASKS:
        what, means = ABOUT_TASKS[event.name]
        return str(facts.get("task")), what, means.format(reason=facts.get("reason", ""))
    if event.name in ABOUT_INSTITUTIONS:
        return str(facts.get("institution")), *ABOUT_INSTITUTIONS[event.name]
    return None


ABOUT_TASKS = {
    "fallback": (
        "fallback to the identity",
        "The new layer was not better than frozen SAM on the holders' validation images.",
    ),
    "refused": (
        "not learned",
        "No layer arrived that could be used: all were refused or rejected, or no holder was there. So the "
        "other institutions use frozen SAM for this task.",
    ),
    "skipped": ("not learned", "Fewer holders trained it than the scenario's quorum."),
    "quarantined": (
        "in quarantine",
        "The entry is not in the bank: {reason}. After a check, `casam bank admit` can admit it.",
    ),
    "admitted": ("admitted by hand", "The entry was in quarantine and is now in the bank."),
}
"""(what, what it means) of events about a task."""

ABOUT_INSTITUTIONS = {
    "absent": ("away", "The server did not find it; the others continued without it."),
    "back": ("back", "It answers again."),
}
"""(what, what it means) of events about an institution."""


def ranges(numbers: list[int]) -> str:
    """Ranges with a dash: 0, 1, 2, 3, 5 becomes `0-3, 5`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}{DASH}{p[-1]}" for p in parts)


def surroundings(run: Run) -> Section:
    """The environment, and how to reproduce the run."""
    summary, environment = run.summary, run.summary.environment
    names = {
        "python": "Python",
        "torch": "PyTorch",
        "flwr": "Flower",
        "platform": "operating system",
        "compute": "arithmetic (device, threads, precision)",
        "backbone": "frozen backbone's weights (SHA-256)",
        "code": "casam's code (fingerprint)",
    }
    rows: list[Row] = [(names.get(key, key), str(value)) for key, value in environment.items()]
    rows += [
        ("method", summary.method),
        ("alignment layer", alignment_of(run.scenario)),
        ("trained parameters of the last stage's layer", f"{summary.trained_parameters:,}"),
        ("seed", str(summary.seed)),
        ("scenario's digest (SHA-256)", summary.scenario_digest),
        ("began (UTC)", began(run.started) if run.events else MISSING),
        ("took", duration(summary.timing.seconds)),
    ]
    root = " --data-root FOLDER" if needs_data(run.scenario) else ""
    command = f"casam run scenario.json{root} --out NEW_FOLDER"
    where = " FOLDER is the folder with the scenario's datasets." if root else ""
    return Section(
        "reproduce",
        "Surroundings, and how to reproduce the run",
        "",
        (
            Table("Environment", ("what", "value"), tuple(rows), words=frozenset({1})),
            Notice(
                "Run the command with scenario.json of the run folder and the casam version of the "
                f"fingerprint above.{where} On the same kind of machine this gives the same figures. The "
                "digest must be the same."
            ),
            Code("Command", command),
            Code("scenario.json", json.dumps(run.scenario, indent=1, sort_keys=True), folded=True),
        ),
    )


def alignment_of(scenario: Mapping[str, Any]) -> str:
    """`low_rank, rank 8`"""
    spec = scenario.get("alignment", {})
    others = sorted(scenario.get("alignments", {}))
    rank = f", rank {spec['rank']}" if "rank" in spec else ""
    return f"{spec.get('form')}{rank}" + (f"; {listed(others)} have their own" if others else "")


def needs_data(scenario: Mapping[str, Any]) -> bool:
    """Whether any institution reads real images."""
    return any(data.get("path") for site in scenario["institutions"] for data in site["data"].values())


def began(seconds: float) -> str:
    """`2026-11-25 04:00`, in UTC"""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
