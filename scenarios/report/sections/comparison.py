"""Several runs side by side: changed keys, results, and each institution's gain and cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from scenarios.report.parts import Block, Cell, Notice, Row, Section, Table
from scenarios.report.reading import Run
from scenarios.report.sections.outcome_of_runs import outcome
from scenarios.report.words import MISSING, fraction, points, policy_in_words, signed, size

MOST_CHANGES = 60
LONGEST_VALUE = 60


def comparison(runs: Sequence[Run]) -> list[Section]:
    """The sections before the runs' own parts."""
    return [changed(runs), outcome(runs), who_gains(runs), prices(runs)]


def changed(runs: Sequence[Run]) -> Section:
    """The runs, and every key in which their scenarios differ."""
    head = ("run", "scenario", "method", "seed", "digest", "code")
    rows = tuple(map(identity_of, runs))
    blocks: list[Block] = [Table("The runs", head, rows, words=frozenset({1, 2, 4, 5}))]
    flats = [dict(flat(run.scenario)) for run in runs]
    known = sorted(set().union(*flats))
    keys = [key for key in known if len({f.get(key) for f in flats}) > 1]
    if not keys:
        blocks.append(Notice("All runs have the same scenario."))
    else:
        shown = [(key, *(shortened(f.get(key, MISSING)) for f in flats)) for key in keys[:MOST_CHANGES]]
        more = f" ({MOST_CHANGES} of {len(keys)} shown)" if len(keys) > MOST_CHANGES else ""
        columns = frozenset(range(1, len(runs) + 1))
        heads = ("key", *(run.label for run in runs))
        blocks.append(Table(f"Keys in which the scenarios differ{more}", heads, tuple(shown), words=columns))
    if len({run.summary.environment.get("code") for run in runs}) > 1:
        blocks.append(Notice("The runs were made by different versions of casam's code.", "warn"))
    return Section("changed", "What was changed", "", blocks)


def identity_of(run: Run) -> Row:
    """A run's row in the first table."""
    found = run.summary
    code = str(found.environment.get("code", ""))
    return run.label, found.scenario, found.method, str(found.seed), found.scenario_digest[:12], code


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """(dotted key, JSON value) of every leaf; an institution's key has its name instead of its index."""
    if isinstance(value, Mapping):
        return [leaf for key, inner in value.items() for leaf in flat(inner, f"{prefix}.{key}".lstrip("."))]
    if (
        isinstance(value, list)
        and value
        and all(isinstance(item, Mapping) and "name" in item for item in value)
    ):
        return [leaf for item in value for leaf in flat(item, f"{prefix}.{item['name']}")]
    return [(prefix, json.dumps(value))]


def shortened(text: str) -> str:
    """Cut a long value; the run's scenario.json holds it in full."""
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def who_gains(runs: Sequence[Run]) -> Section:
    """Every institution's own images under every run."""
    places = list(
        dict.fromkeys(
            (name, task)
            for run in runs
            for name in run.institutions
            for task in sorted(run.summary.statistics.get(name, {}))
        )
    )
    rows: list[Row] = []
    for name, task in places:
        cells: list[str | Cell] = []
        first: float | None = None
        for number, run in enumerate(runs):
            found = run.summary.statistics.get(name, {}).get(task)
            if found is None:
                cells.append("not told" if task in run.data_of(name) else "not there")
                continue
            notes = [f"gain {points(found.gain.mean)}"]
            if found.gain.low is not None:
                notes[0] += f" ({points(found.gain.low)} to {points(found.gain.high)})"
            if number and first is not None:
                notes.append(f"{signed(found.iou.mean - first)} from the first run")
            first = found.iou.mean if not number else first
            cells.append(Cell(fraction(found.iou.mean), "", tuple(notes)))
        rows.append((f"{name} · {task}", *cells))
    blocks: list[Block] = []
    if rows:
        heads = ("institution · task", *(run.label for run in runs))
        caption = "IoU on each institution's own images; gain over frozen SAM in points with 95 % interval"
        blocks.append(Table(caption, heads, tuple(rows)))
    else:
        blocks.append(Notice("No institution shares exact scores with intervals in these runs.", "soft"))
    return Section(
        "who",
        "Who gains, who pays",
        "Each institution evaluates its own images at the last stage. This table has no figures of "
        "institutions that share their scores with noise or not at all.",
        blocks,
    )


def prices(runs: Sequence[Run]) -> Section:
    """Policies, epsilon and bytes by institution."""
    names = list(dict.fromkeys(name for run in runs for name in run.institutions))
    rows: list[Row] = []
    for name in names:
        cells: list[str | Cell] = []
        for run in runs:
            ledger = run.summary.privacy.get(name)
            if ledger is None:
                cells.append("not there")
                continue
            notes = list(policy_in_words(ledger.policy))
            spent = [("training", ledger.epsilon_train), ("test", ledger.epsilon_metrics)]
            notes += [f"ε {what} images {value:.2f}" for what, value in spent if value is not None]
            if refused := sum(ledger.refusals.values()):
                notes.append(f"{refused} refusal{'s' if refused > 1 else ''}")
            cells.append(Cell(f"{size(run.summary.bytes.up.get(name, 0))} sent", "", tuple(notes)))
        rows.append((name, *cells))
    return Section(
        "prices",
        "What each institution allowed and spent",
        "",
        (
            Table(
                "Policy, epsilon, bytes sent and refusals by institution and run",
                ("institution", *(run.label for run in runs)),
                tuple(rows),
                words=frozenset(range(1, len(runs) + 1)),
            ),
        ),
    )
