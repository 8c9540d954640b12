"""The metrics of a server's runs and of a site.

A server's metrics are counted from events.jsonl: facts that passed an institution's guard, and facts of the
server itself. A site's metrics are counted from its audit log, so they are facts that left already, and from
the number of lines of its ledger and of its approvals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from casam_core.errors import RunInputError
from casam_core.protocol.audit import AuditError, Line, audit_log
from client.node.approvals import approvals_in, pending_in
from scenarios.deploy.monitoring.exposition import Family
from scenarios.engines.watch import Events, RunView

STATES = ("running", "completed", "failed")

COUNTED: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "answer": ("casam_run_answers_total", "Results that the server accepted.", ("institution", "kind")),
    "refusal": (
        "casam_run_refusals_total",
        "Requests that an institution's policy refused, by outcome word.",
        ("institution", "kind", "outcome"),
    ),
    "no-result": (
        "casam_run_missing_total",
        "Requests without a result: errors, late answers, lost nodes, by outcome word.",
        ("institution", "kind", "outcome"),
    ),
    "rejected": (
        "casam_run_rejected_total",
        "Answers that the server's checks rejected.",
        ("institution", "kind"),
    ),
    "absent": ("casam_run_absences_total", "How often an institution was not found.", ("institution",)),
    "other-version": (
        "casam_run_other_versions_total",
        "How often a node was left out because it runs another version.",
        (),
    ),
    "quarantined": ("casam_run_quarantined_total", "Entries that were put in quarantine.", ()),
    "retry": ("casam_run_retries_total", "How often institutions were asked again, by kind.", ("kind",)),
}
"""By event: the name of its counter, its meaning, and the fields of the event that become labels.

No field of free text is among them."""


class RunFigures:
    """One run. Each call of `families` reads only the events that are new."""

    def __init__(self, folder: Path) -> None:
        self._run, self._view = folder.name, RunView()
        self._events = Events(folder / "events.jsonl")
        self._counts: dict[str, Counter[tuple[str, ...]]] = {event: Counter() for event in COUNTED}
        self._asked: Counter[tuple[str, ...]] = Counter()

    def families(self) -> list[Family]:
        """The metrics of the run so far. Raises RunError for a damaged line."""
        for event in self._events.new():
            self._view.take(event)
            self._count(event)
        view, run = self._view, (self._run,)
        sites = view.sites.items()
        spent: dict[tuple[str, ...], float] = {
            (*run, name, key): value for name, site in sites for key, value in site.epsilon.items()
        }
        per_site = ("run", "institution")
        return [
            Family(
                "casam_run_status", "gauge", "1 for the present status of the run.", ("run", "status"),
                {(*run, status): status == view.status for status in STATES},
            ),
            gauge("casam_run_stages", "Tasks of the stream.", {run: len(view.stream)}),
            gauge("casam_run_stages_measured", "Measured stages.", {run: max(view.ends, default=0)}),
            gauge(
                "casam_run_last_event_timestamp_seconds",
                "Time of the last event, in seconds since 1970.",
                {run: view.last or 0.0},
            ),
            Family(
                "casam_run_requests_total", "counter", "Requests to institutions.",
                ("run", "institution", "kind"), self._asked,
            ),
            *(
                Family(name, "counter", meaning, ("run", *labels), self._counts[event])
                for event, (name, meaning, labels) in COUNTED.items()
            ),
            Family(
                "casam_run_received_bytes_total", "counter", "Bytes from an institution.", per_site,
                {(*run, name): site.up for name, site in sites},
            ),
            Family(
                "casam_run_sent_bytes_total", "counter", "Bytes to an institution.", per_site,
                {(*run, name): site.down for name, site in sites},
            ),
            Family(
                "casam_run_epsilon_spent", "gauge",
                "Epsilon that an institution has spent, as its last answer said.",
                (*per_site, "split"), spent,
            ),
        ]  # fmt: skip

    def _count(self, event: Mapping[str, Any]) -> None:
        kind = str(event["event"])
        if kind == "asked":
            self._asked.update((self._run, str(name), str(event["kind"])) for name in event["institutions"])
        elif kind in COUNTED:
            labels = (str(event.get(label, "")) for label in COUNTED[kind][2])
            self._counts[kind][(self._run, *labels)] += 1


def newest_run(folder: Path) -> Callable[[], list[Family]]:
    """A function that counts the newest run in `folder`, or the run that `folder` is.

    Raises RunInputError if `folder` is no folder.
    """
    if not folder.is_dir():
        raise RunInputError(f"{folder}: expected a folder with runs, found none; check the path")
    known: dict[Path, RunFigures] = {}

    def families() -> list[Family]:
        files = [*folder.glob("events.jsonl"), *folder.glob("*/events.jsonl")]
        if not files:
            return [gauge("casam_runs", "Runs in the folder.", {(): 0.0})]
        run = max(files, key=lambda path: path.stat().st_mtime_ns).parent
        figures = known.setdefault(run, RunFigures(run)).families()
        return [gauge("casam_runs", "Runs in the folder.", {(): float(len(files))}), *figures]

    return families


def site_figures(home: Path) -> list[Family]:
    """The metrics of the site whose home this is."""
    try:
        lines, consistent = audit_log(home / "audit.jsonl").lines(), True
    except AuditError:
        lines, consistent = [], False
    ledger = home / "ledger.jsonl"
    answers: Counter[tuple[str, ...]] = Counter((li.release.kind, li.release.outcome) for li in lines)
    sent: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        sent[(line.release.kind,)] += line.release.bytes
    given = [approval for approval in approvals_in(home) if not approval.withdrawn]
    return [
        gauge("casam_site_audit_consistent", "1: the audit log's chain is whole.", {(): float(consistent)}),
        Family(
            "casam_site_answers_total", "counter", "Answers of this site, by outcome word.",
            ("kind", "outcome"), answers,
        ),
        Family("casam_site_sent_bytes_total", "counter", "Bytes that left this site.", ("kind",), sent),
        Family(
            "casam_site_epsilon_spent", "gauge",
            "Largest epsilon that an answer of this site stated, by data split.", ("split",), largest(lines),
        ),
        gauge(
            "casam_site_ledger_lines", "Private releases that this site ever began.",
            {(): ledger.read_bytes().count(b"\n") if ledger.exists() else 0},
        ),
        gauge("casam_site_scenarios_approved", "Scenarios that may run here.", {(): len(given)}),
        gauge(
            "casam_site_scenarios_waiting", "Scenarios that wait for approval.", {(): len(pending_in(home))}
        ),
    ]  # fmt: skip


def largest(lines: Iterable[Line]) -> dict[tuple[str, ...], float]:
    """By split, the largest epsilon of all answers: what was spent only grows."""
    found: dict[tuple[str, ...], float] = {}
    for line in lines:
        for split, value in (line.release.epsilon or {}).items():
            if value is not None and split != "ledger":
                found[(split,)] = max(value, found.get((split,), 0.0))
    return found


def gauge(name: str, meaning: str, samples: Mapping[tuple[str, ...], float]) -> Family:
    """A gauge of one sample: without labels, or of a run."""
    return Family(name, "gauge", meaning, ("run",) if () not in samples else (), samples)
