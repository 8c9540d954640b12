"""A run as its events.jsonl tells it: who does what in which stage, with which figures, for how much longer.

Only the server's events are read; nothing an institution keeps to itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from casam_core.config.toml import as_table
from casam_core.errors import RunError

WORK = {
    "train.align": ("trains", "trained"),
    "train.router": ("describes", "described"),
    "train.calibrate": ("calibrates", "calibrated"),
    "evaluate.stage": ("measures", "done"),
    "query.forget": ("forgets", "forgot"),
    "train": ("sums", "summed"),
}
"""What an institution does that was asked for this kind of work, and what it has done that answered."""

REFUSED, FAULT = "refused", "fault"


@dataclass
class SiteView:
    """One institution. states: by stage. iou: by task, as last measured. up, down: bytes so far.

    refusals, faults: how many answers were no, and how many did not come or could not be given.
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
        """A refusal or fault stays to be seen when the stage is over."""
        if self.states.get(stage) not in (REFUSED, FAULT):
            self.states[stage] = state


@dataclass
class RunView:
    """The whole run. status: running, completed or failed. ends: when each finished stage ended.

    started, last: seconds since the epoch of the first and the last event.
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
        """One more event; a line for a person where it is worth one. Unknown events are passed by.

        Raises RunError for one that does not say what it must.
        """
        try:
            self.last = float(event["time"])
            self.started = self.started or self.last
            told = _TAKE.get(str(event["event"]))
            return told(self, event) if told else None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"events.jsonl: an event is damaged ({type(error).__name__}: {error})") from error

    def seconds_left(self, now: float) -> float | None:
        """From the mean of the stages that are over; None before there is one."""
        if self.status != "running":
            return 0.0
        if self.started is None or not self.stream or max(self.ends, default=0) < 1:
            return None
        # Stage 0 only measures; the others learn and measure.
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
    return f"stage {event['stage']}: the entry of {event['task']} is held back: {event['reason']}"


def _skipped(view: RunView, event: Mapping[str, Any]) -> str:
    return f"stage {event['stage']}: {event['task']} is below its quorum and not learned"


def _absent(view: RunView, event: Mapping[str, Any]) -> str:
    site = view.sites.setdefault(event["institution"], SiteView())
    site.faults += 1
    return f"{event['institution']} is not there; the others go on"


def _back(view: RunView, event: Mapping[str, Any]) -> str:
    return f"{event['institution']} is there again"


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
    """A file of events that grows; every whole line is read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """What came since the last call; a line that is still being written waits. Raises RunError for one
        that is damaged."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                event = as_table(json.loads(line))
            except ValueError as error:
                raise RunError(f"{self.path}: a line is damaged: {error}") from error
            yield event
