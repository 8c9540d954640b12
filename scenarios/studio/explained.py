"""A bank, an audit log, a ledger and a policy, in words."""

from __future__ import annotations

import tempfile
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path

from casam_core.bank.bank import Bank
from casam_core.config.library import resolve_scenario
from casam_core.config.toml import explain
from casam_core.errors import CasamError, PolicyError
from casam_core.protocol.audit import Line, against_anchor, broken, read_log
from scenarios.inspection.verify import compared
from scenarios.report.parts import Block, Cell, Notice, Row, Section, Table
from scenarios.report.words import (
    ENTRY_HEADS,
    KINDS,
    MISSING,
    OUTCOMES,
    count,
    entry_row,
    listed,
    size,
)
from scenarios.studio.shelf import RunItem
from server.run.run_folder import heads_of, read_arrivals

MOST_LINES = 200
"""Lines of a log that a page shows; the newest."""

DELTA = 1e-3
"""For ledgers: the delta of the library's policies. `casam ledger show --delta` takes another."""


def bank_blocks(folder: Path) -> list[Block]:
    """The entries of a bank in the order of learning. Raises BankError."""
    bank = Bank.open(folder)
    backbones = listed(sorted({entry.provenance.backbone[:12] for entry in bank})) or MISSING
    return [
        Notice(
            "Each entry holds a layer, a router state and a threshold. The router gives an image to the "
            "entry with the best score; if the score is above that entry's threshold, the image counts as "
            "unknown and frozen SAM segments it. An entry without a threshold is used only if a person names "
            "it."
        ),
        Table(
            "Entries, in the order in which they were learned",
            ENTRY_HEADS,
            tuple(entry_row(bank, entry) for entry in bank),
            words=frozenset({1, 2, 3, 4, 7}),
        ),
        Notice(
            f"Bank {bank.digest[:12]}, learned on frozen weights {backbones}. `casam bank verify` "
            f"checks every file."
        ),
    ]


def audit_sections(run: RunItem) -> list[Section]:
    """The server's log, then that of every institution whose log is in the run folder (in a
    simulation, all).
    """
    server = run.path / "audit.jsonl"
    sections = [Section("server", "What arrived at the server", ABOUT_LOG, log_blocks(server, None))]
    for private in sorted((run.path / "institutions").glob("*/private")):
        if private.resolve().is_relative_to(run.path) and (private / "audit.jsonl").is_file():
            name = private.parent.name
            blocks = [
                *log_blocks(private / "audit.jsonl", server, name),
                *ledger_blocks(private / "ledger.jsonl"),
            ]
            sections.append(Section(f"at-{name}", f"What left {name}", "The institution's own log.", blocks))
    return sections


ABOUT_LOG = (
    "One line for each answer. Every line holds the hash of the line before it: a line that was "
    "changed, removed or moved breaks the chain. An institution logs an answer before it sends it; the "
    "server logs it when it arrives."
)


def log_blocks(path: Path, server: Path | None, name: str = "") -> list[Block]:
    """Whether the log is whole, and what it lists. server: the other side's log, to compare with what
    institution `name` logged."""
    try:
        lines = read_log(path)
        fault = broken(lines) or (against(lines, server, name) if server is not None else None)
    except CasamError as error:
        return [Notice(f"This log cannot be read: {error}", "bad")]
    if fault is not None:
        verdict = Notice(f"Do not trust this log: {fault}", "bad")
    elif server is None:
        verdict = Notice(f"The chain of {len(lines)} lines is whole.", "good")
    else:
        text = f"The chain of {len(lines)} lines is whole, and what it lists is what the server received."
        verdict = Notice(text, "good")
    return [verdict, kinds_table(lines), lines_table(lines)]


def against(lines: list[Line], server: Path, name: str) -> str | None:
    """What differs between an institution's log and the server's; None if nothing does."""
    heads = [head for head in heads_of(server) if head.institution == name]
    if (fault := against_anchor(lines, heads)) is not None:
        return fault
    arrived = [release for release in read_arrivals(server) if release.institution == name]
    return "; ".join(compared([line.release for line in lines], arrived)[1][:3]) or None


def kinds_table(lines: list[Line]) -> Table:
    """How many answers of each kind, and how they ended."""
    counts = Counter((line.release.kind, line.release.outcome) for line in lines)
    sums: Counter[tuple[str, str]] = Counter()
    for line in lines:
        sums[line.release.kind, line.release.outcome] += line.release.bytes
    rows = [
        (
            KINDS.get(kind, kind),
            Cell(outcome_word(outcome)),
            Cell(meaning(outcome)),
            count(number),
            size(sums[kind, outcome]),
        )
        for (kind, outcome), number in sorted(counts.items())
    ]
    heads = ("answer", "outcome", "what it means", "times", "bytes")
    return Table("Answers by kind", heads, tuple(rows), words=frozenset({1, 2}))


def lines_table(lines: list[Line]) -> Table:
    """The newest lines."""
    rows: list[Row] = []
    for line in lines[-MOST_LINES:]:
        release = line.release
        spent = [(k, v) for k, v in (release.epsilon or {}).items() if v is not None and k != "ledger"]
        rows.append(
            (
                str(line.sequence),
                release.time[:19].replace("T", " "),
                release.institution,
                KINDS.get(release.kind, release.kind),
                str(release.stage),
                release.task or MISSING,
                outcome_word(release.outcome),
                size(release.bytes),
                ", ".join(f"{name} {value:.2f}" for name, value in spent) or MISSING,
            )
        )
    heads = (
        "line",
        "time (UTC)",
        "institution",
        "answer",
        "stage",
        "task",
        "outcome",
        "bytes",
        "epsilon so far",
    )
    shown = f"The last {MOST_LINES} of {len(lines)} lines" if len(lines) > MOST_LINES else "All lines"
    return Table(shown, heads, tuple(rows), words=frozenset({1, 2, 3, 5, 6, 8}))


def outcome_word(outcome: str) -> str:
    """The outcome in short words."""
    return OUTCOMES[outcome].short if outcome in OUTCOMES else outcome


def meaning(outcome: str) -> str:
    """The outcome in a sentence."""
    return OUTCOMES[outcome].long if outcome in OUTCOMES else ""


def ledger_blocks(path: Path) -> list[Block]:
    """The private releases, and after each the total epsilon of its images."""
    if not path.is_file() or not path.stat().st_size:
        return [
            Notice(
                "The ledger is empty: nothing left with noise, so no epsilon was spent or limits it.", "soft"
            )
        ]
    from casam_core.privacy.accounting import epsilon_of
    from client.release.ledger import Ledger, of_images

    spends = Ledger(path).lines()
    rows: list[Row] = []
    for number, spend in enumerate(spends, 1):
        before = of_images(spends[:number], spend.dataset, spend.split, spend.division)
        total = epsilon_of([earlier.mechanism for earlier in before], DELTA)
        kind = KINDS.get(spend.kind, spend.kind)
        noise = f"{spend.noise_multiplier:.3f}"
        rows.append(
            (
                spend.time[:19].replace("T", " "),
                kind,
                spend.task,
                spend.split,
                spend.unit,
                noise,
                f"{total:.2f}",
            )
        )
    heads = (
        "time (UTC)",
        "release",
        "task",
        "images",
        "protects one",
        "noise",
        f"epsilon so far, delta {DELTA:g}",
    )
    about = (
        "Every private release, written before it is computed. Epsilon adds up over all runs of these "
        "images; software never resets it."
    )
    return [
        Notice(about),
        Table("Privacy ledger", heads, tuple(rows[-MOST_LINES:]), words=frozenset({1, 2, 3, 4})),
    ]


def policy_page(scenario_name: str, institution: str, policy_text: str) -> list[tuple[str, list[Block]]]:
    """What a scenario asks of an institution under a policy: what leaves, who sees it, what it costs.

    policy_text: TOML of a policy; empty for the one in the scenario. Raises CasamError.
    """
    from pydantic import ValidationError

    from casam_core.config.policy import Policy
    from scenarios.inspection.plain_page import Rows
    from scenarios.inspection.site_review import page_of, simulated_place

    scenario = resolve_scenario(scenario_name)
    if institution not in [site.name for site in scenario.institutions]:
        raise PolicyError(
            f"expected an institution of {scenario.name}, found {institution[:80]!r}; choose one of it"
        )
    with tempfile.TemporaryDirectory() as home:
        place = simulated_place(scenario, institution, Path(home))
        if policy_text.strip():
            try:
                place = replace(place, policy=Policy.model_validate(tomllib.loads(policy_text)))
            except ValidationError as error:
                raise PolicyError(f"policy: {explain(error)}") from error
            except tomllib.TOMLDecodeError as error:
                raise PolicyError(f"policy: expected TOML: {error}") from error
        found = page_of(place, scenario)
    sections: list[tuple[str, list[Block]]] = []
    for heading, parts in found:
        blocks: list[Block] = []
        for part in parts:
            if isinstance(part, Rows):
                lines = tuple(tuple(line) for line in part.lines)
                words = frozenset(range(1, len(part.headings)))
                blocks.append(Table(heading, tuple(part.headings), lines, words=words))
            else:
                blocks += [Notice(text) for text in ([part] if isinstance(part, str) else part)]
        sections.append((heading.replace("`", ""), blocks))
    return sections
