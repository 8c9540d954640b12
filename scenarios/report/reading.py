"""A run folder as typed data. This module opens only the server's documented files (docs/run-folder.md)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from casam_core.errors import CasamError, RunInputError
from casam_core.protocol.audit import Release, broken, read_log
from server.run.summary_schema import FILE, Summary, read_json, read_summary

if TYPE_CHECKING:
    from casam_bench.membership.audit_lines import Audits

PRIVACY_AUDIT = "privacy_audit.json"
"""In a run folder: what `casam attack` proved about the claims of private releases."""


@dataclass(frozen=True)
class Event:
    """One line of events.jsonl. seconds: since the run's first event. stage: 0 is the frozen backbone."""

    seconds: float
    name: str
    stage: int
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One finished run.

    label: its name on this page. scenario: the resolved scenario without file paths of a machine. started:
    seconds since 1970. arrivals: the releases in the server's audit log. audit_fault: what is wrong with
    that log, if anything. audits: lower bounds of epsilon; empty if `casam attack` did not measure them.
    """

    label: str
    summary: Summary
    scenario: Mapping[str, Any]
    started: float
    events: tuple[Event, ...]
    arrivals: tuple[Release, ...]
    audit_fault: str | None
    audits: Audits

    @property
    def institutions(self) -> list[str]:
        """Names of the institutions, in the scenario's order."""
        return [str(site["name"]) for site in self.scenario["institutions"]]

    def data_of(self, institution: str) -> frozenset[str]:
        """The tasks that an institution of the scenario holds; none if it is another scenario's."""
        held = (site["data"] for site in self.scenario["institutions"] if site["name"] == institution)
        return frozenset(task for data in held for task in data)

    @property
    def stages(self) -> int:
        """Number of evaluated stages, without stage 0."""
        return len(self.summary.matrix["iou"])

    @property
    def told_to_the_end(self) -> bool:
        """Whether the events reach the end of the run: none is missing or damaged."""
        return any(event.name == "end" for event in self.events)

    @property
    def own_orders(self) -> bool:
        """Whether an institution learned in an order of its own, so that no stage is that of one task."""
        return any(site.get("stream") is not None for site in self.scenario["institutions"])

    def stage_name(self, stage: int) -> str:
        """`2. histology`; where institutions learned in orders of their own `stage 2`."""
        return f"stage {stage}" if self.own_orders else f"{stage}. {self.summary.tasks[stage - 1]}"

    def present(self, institution: str, stage: int) -> bool:
        """Whether the institution takes part in this stage by its policy."""
        privacy = self.summary.privacy.get(institution)
        return privacy is not None and privacy.policy.present(stage)


def read_run(folder: Path, label: str) -> Run:
    """The run in `folder`. Raises RunInputError if it holds no finished run, or a run of another schema."""
    if not (folder / FILE).is_file():
        raise RunInputError(f"{folder}: expected a finished run's folder, {why_unfinished(folder)}")
    summary = read_summary(folder)
    if any(len(row) != len(summary.tasks) for rows in summary.matrix.values() for row in rows):
        raise RunInputError(f"{folder / FILE}: expected a matrix with a column for each task; it is damaged")
    scenario = read_json(folder / "scenario.json")
    if not is_resolved(scenario):
        raise RunInputError(f"{folder / 'scenario.json'}: expected a resolved scenario with institutions")
    # The checkpoint's path belongs to one machine, and pages are passed on.
    scenario.get("backbone", {}).pop("checkpoint", None)
    started, events = read_events(folder / "events.jsonl")
    arrivals, fault = read_audit(folder / "audit.jsonl")
    return Run(label, summary, scenario, started, events, arrivals, fault, audits_in(folder))


def is_resolved(scenario: object) -> bool:
    """Whether this is a table with institutions that have names and data."""
    sites = scenario.get("institutions") if isinstance(scenario, dict) else None
    return (
        isinstance(sites, list)
        and bool(sites)
        and all(
            isinstance(site, dict) and "name" in site and isinstance(site.get("data"), dict) for site in sites
        )
    )


def audits_in(folder: Path) -> Audits:
    """The lines of the privacy audit; empty without one. Raises RunInputError if they cannot be read."""
    path = folder / PRIVACY_AUDIT
    if not path.is_file():
        return {}
    # casam_bench imports torch, which few pages need.
    from casam_bench.membership.audit_lines import read_audits

    return read_audits(path)


def frozen_iou(summary: Summary) -> float | None:
    """The frozen backbone's mean IoU over the stream; None if the IoU of a task is unknown."""
    values = [summary.zero_shot["iou"].get(task) for task in summary.tasks]
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def refusals(summary: Summary) -> int:
    """Number of refusals of all institutions together."""
    return sum(sum(site.refusals.values()) for site in summary.privacy.values())


def why_unfinished(folder: Path) -> str:
    """The end of an error message: what the folder holds instead of a summary."""
    if not folder.is_dir():
        return "found no such folder; check the path"
    if not (folder / "events.jsonl").is_file():
        return "found neither summary.json nor a study (a folder runs/); check the path"
    _, events = read_events(folder / "events.jsonl")
    if events and events[-1].name == "failed":
        return f"found a run that failed: {events[-1].facts.get('reason', 'its events give no reason')}"
    return (
        "found a run without summary.json; wait until it ends, or if it was stopped: casam run --resume "
        f"{folder}"
    )


def read_events(path: Path) -> tuple[float, tuple[Event, ...]]:
    """(time of the first event, all events). A line that a crash cut off ends the list.

    An event without a stage belongs to the stage that is evaluated next.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    events: list[Event] = []
    started, stage = 0.0, 0
    for line in lines:
        try:
            facts = json.loads(line)
            time, name = float(facts.pop("time")), str(facts.pop("event"))
        except (ValueError, KeyError, AttributeError, TypeError):
            break
        if not events:
            started = time
        number = facts.get("stage")
        events.append(Event(time - started, name, number if isinstance(number, int) else stage, facts))
        if name == "evaluated":
            stage = events[-1].stage + 1
    return started, tuple(events)


def read_audit(path: Path) -> tuple[tuple[Release, ...], str | None]:
    """(releases that arrived, None); with a damaged log, no releases and a description of the damage."""
    if not path.is_file():
        return (), "the run folder holds no audit.jsonl"
    try:
        lines = read_log(path)
    except CasamError:
        return (), "the server's audit log cannot be read"
    if (fault := broken(lines)) is not None:
        return (), f"the server's audit log was altered: {fault}"
    return tuple(line.release for line in lines), None


@dataclass(frozen=True)
class Found:
    """The runs of the command's arguments. skipped: names of unfinished runs in studies. answers: the
    studies' summaries, as (study's folder, its summary.md)."""

    runs: tuple[Run, ...]
    skipped: tuple[str, ...] = ()
    answers: tuple[tuple[str, str], ...] = ()


def read_all(paths: Sequence[Path], progress: Callable[[int, int], None] = lambda done, total: None) -> Found:
    """All runs of the paths, in order. Unfinished runs of a study are skipped.

    Raises:
        RunInputError: A path is not a finished run, or is a study without one.
    """
    folders: list[Path] = []
    skipped: list[Path] = []
    answers: list[tuple[str, str]] = []
    for path in paths:
        if (path / "runs").is_dir() and not (path / FILE).is_file():
            inside = sorted(run for run in (path / "runs").iterdir() if run.is_dir())
            finished = [run for run in inside if (run / FILE).is_file()]
            if not finished:
                raise RunInputError(
                    f"{path}: expected a study with finished runs, found none in {path / 'runs'}"
                )
            folders += finished
            skipped += [run for run in inside if run not in finished]
            if (path / "summary.md").is_file():
                answers.append((path.resolve().name, (path / "summary.md").read_text(encoding="utf-8")))
        else:
            folders.append(path)
    runs = []
    for done, (folder, label) in enumerate(zip(folders, labels(folders), strict=True), 1):
        runs.append(read_run(folder, label))
        progress(done, len(folders))
    return Found(tuple(runs), tuple(run.name for run in skipped), tuple(answers))


def labels(folders: Iterable[Path]) -> list[str]:
    """Each folder's name, with as many parent folders as are needed to make it unique."""
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise RunInputError("the same run folder is named twice; name each folder once")
    depth = 1
    while True:
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
        depth += 1
