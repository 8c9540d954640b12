"""The state of a run from its events.jsonl: each institution's work by stage, figures, time left.

Reads only the server's events, no private files of institutions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from casam_core.config.toml import as_table
from casam_core.errors import RunError
from server.run.summary_schema import FILE

WORK = {
    "train.align": ("trains", "trained"),
    "train.router": ("describes", "described"),
    "train.calibrate": ("calibrates", "calibrated"),
    "evaluate.stage": ("measures", "done"),
    "query.forget": ("forgets", "forgot"),
    "train": ("sums", "summed"),
}
"""By kind of request: the word for an institution that works on it, and for one that has answered."""

REFUSED, FAULT = "refused", "fault"


@dataclass
class SiteView:
    """One institution. states: by stage. iou: by task, the latest value. up, down: bytes so far.

    refusals: answers that refused. faults: answers that were missing, rejected or errors.
    """

    tasks: tuple[str, ...] = ()
    states: dict[int, str] = field(default_factory=dict)
    iou: dict[str, float] = field(default_factory=dict)
    epsilon: dict[str, float] = field(default_factory=dict)
    up: int = 0
    down: int = 0
    refusals: int = 0
    faults: int = 0

    def enter(self, stage: int, state: str) -> None:
        """Set the state of a stage; a refusal or fault stays visible."""
        if self.states.get(stage) not in (REFUSED, FAULT):
            self.states[stage] = state


@dataclass
class RunView:
    """The whole run. status: running, completed or failed. ends: by finished stage, the time of its end.

    started, last: times of the first and the last event. All times are seconds since 1970. An interruption
    moves `started` and `ends`.
    """

    stream: tuple[str, ...] = ()
    sites: dict[str, SiteView] = field(default_factory=dict)
    stage: int = 0
    status: str = "running"
    reason: str = ""
    started: float | None = None
    last: float | None = None
    ends: dict[int, float] = field(default_factory=dict)
    iou: dict[str, float | None] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> str | None:
        """Apply one more event. Returns a line for a person, or None. Unknown events are ignored.

        Raises RunError for an event that lacks a field.
        """
        try:
            now = float(event["time"])
            if event["event"] == "start" and self.last is not None:
                self.go_on(now - self.last)
            self.last = now
            self.started = self.started or now
            told = _TAKE.get(str(event["event"]))
            return told(self, event) if told else None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"events.jsonl: an event is damaged ({type(error).__name__}: {error})") from error

    def go_on(self, pause: float) -> None:
        """An interrupted run is resumed after `pause` seconds, which belong to no stage."""
        self.status, self.reason = "running", ""
        self.started = (self.started or 0) + pause
        self.ends = {stage: end + pause for stage, end in self.ends.items()}

    def seconds_left(self, now: float) -> float | None:
        """Estimate from the mean duration of the finished stages; None before the first one."""
        if self.status != "running":
            return 0.0
        if self.started is None or not self.stream or max(self.ends, default=0) < 1:
            return None
        # Stage 0 only evaluates; the others learn and evaluate.
        ended, begun = max(self.ends), self.ends.get(0, self.started)
        mean = (self.ends[ended] - begun) / ended
        return max(0.0, mean * (len(self.stream) - ended) - (now - self.ends[ended]))


def _met(view: RunView, event: Mapping[str, Any]) -> None:
    view.stream = tuple(event["stream"])
    for name, tasks in event["institutions"].items():
        view.sites.setdefault(name, SiteView()).tasks = tuple(tasks)


def _asked(view: RunView, event: Mapping[str, Any]) -> str:
    view.stage = int(event["stage"])
    does, _ = WORK.get(event["kind"], (event["kind"], ""))
    for name in event["institutions"]:
        view.sites.setdefault(name, SiteView()).enter(view.stage, does)
    who = ", ".join(event["institutions"])
    return f"stage {view.stage}: {does.removesuffix('s')}: {who}"


def _answer(view: RunView, event: Mapping[str, Any]) -> str:
    site = view.sites.setdefault(event["institution"], SiteView())
    site.up, site.down = int(event["up"]), int(event["down"])
    site.epsilon |= event["epsilon"]
    site.iou |= event["iou"]
    _, state = WORK.get(event["kind"], ("", "answered"))
    site.enter(int(event["stage"]), state)
    scores = "".join(f", {task} {iou:.3f}" for task, iou in event["iou"].items())
    spent = "".join(f", {name} {value:.2f}" for name, value in event["epsilon"].items())
    return f"stage {event['stage']}: {event['institution']} {state}{scores}{spent}, {site.up:,} bytes up"


def _no(view: RunView, event: Mapping[str, Any]) -> str:
    site = view.sites.setdefault(event["institution"], SiteView())
    refused = event["event"] == "refusal"
    site.refusals, site.faults = site.refusals + refused, site.faults + (not refused)
    stage = int(event.get("stage", view.stage))
    site.states[stage] = REFUSED if refused else FAULT
    verb = "refuses" if refused else "gives no result to"
    return f"stage {stage}: {event['institution']} {verb} {event['kind']}: {event['outcome']}"


def _rejected(view: RunView, event: Mapping[str, Any]) -> str:
    site, stage = view.sites.setdefault(event["institution"], SiteView()), int(event["stage"])
    site.faults, site.states[stage] = site.faults + 1, FAULT
    return f"stage {stage}: {event['institution']}'s answer to {event['kind']} rejected: {event['reason']}"


def _quarantined(view: RunView, event: Mapping[str, Any]) -> str:
    return f"stage {event['stage']}: the entry of {event['task']} is in quarantine: {event['reason']}"


def _skipped(view: RunView, event: Mapping[str, Any]) -> str:
    return f"stage {event['stage']}: {event['task']} is not learned, the quorum is not reached"


def _absent(view: RunView, event: Mapping[str, Any]) -> str:
    site = view.sites.setdefault(event["institution"], SiteView())
    site.faults += 1
    return f"{event['institution']} is not found; the others continue"


def _back(view: RunView, event: Mapping[str, Any]) -> str:
    return f"{event['institution']} is back"


def _evaluated(view: RunView, event: Mapping[str, Any]) -> str:
    view.ends[int(event["stage"])] = float(event["time"])
    view.iou = dict(event["iou"])
    cells = ", ".join(f"{task} {'-' if iou is None else f'{iou:.3f}'}" for task, iou in view.iou.items())
    return f"stage {event['stage']}/{len(view.stream)} measured: {cells}"


def _end(view: RunView, event: Mapping[str, Any]) -> str:
    view.status = "completed"
    return "completed"


def _failed(view: RunView, event: Mapping[str, Any]) -> str:
    view.status, view.reason = "failed", str(event["reason"])
    return f"failed: {view.reason}"


_TAKE = {
    "met": _met,
    "asked": _asked,
    "answer": _answer,
    "refusal": _no,
    "no-result": _no,
    "rejected": _rejected,
    "quarantined": _quarantined,
    "skipped": _skipped,
    "absent": _absent,
    "back": _back,
    "evaluated": _evaluated,
    "end": _end,
    "failed": _failed,
}


class Events:
    """A growing file of events; every complete line is read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._ended = False

    def new(self) -> Iterator[dict[str, Any]]:
        """Events since the last call. An incomplete last line waits for the next call.

        A run is complete with its summary.json. If the server was killed before the event `end`, which
        follows that file, this makes one. Raises RunError for a damaged line.
        """
        summary = self.path.with_name(FILE)
        complete = summary.stat().st_mtime if summary.exists() else None
        for line in self._lines():
            try:
                event = as_table(json.loads(line))
            except ValueError as error:
                raise RunError(f"{self.path}: a line is damaged: {error}") from error
            self._ended |= event.get("event") == "end"
            yield event
        if complete is not None and not self._ended:
            self._ended = True
            yield {"time": complete, "event": "end"}

    def _lines(self) -> list[bytes]:
        """The complete lines that are new."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.splitlines()
