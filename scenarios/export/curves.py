"""The server's figures of a run as curves over its stages. No file in a folder private/ is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from scenarios.report.reading import Run
from scenarios.report.sections.record import alignment_of

FIGURES = ("last_iou", "avg_iou", "ff_iou", "bwt_iou", "fwt_iou", "plasticity_iou")


@dataclass(frozen=True)
class Point:
    """One number. step: the stage; 0 is the frozen backbone. time: seconds since 1970 when it was known."""

    tag: str
    step: int
    value: float
    time: float


@dataclass(frozen=True)
class Curves:
    """One run. facts: its settings, as text. started, ended: seconds since 1970."""

    label: str
    facts: dict[str, str]
    points: tuple[Point, ...]
    started: float
    ended: float


def curves_of(run: Run) -> Curves:
    """Everything that a sink writes, sorted by tag and step. A missing measurement has no point.

    iou/TASK, unseen-iou/TASK: fractions. epsilon-train/INSTITUTION, epsilon-metrics/INSTITUTION: spent so
    far. bytes-up/INSTITUTION, bytes-down/INSTITUTION: so far. summary/...: figures of the run at its last
    stage; ff_iou is in points (docs/run-folder.md).
    """
    times = measured_at(run)
    found = {(tag, step): value for tag, step, value in values_of(run) if value is not None}
    points = tuple(Point(tag, step, found[tag, step], times[step]) for tag, step in sorted(found))
    summary = run.summary
    facts = {
        "scenario": summary.scenario,
        "scenario_digest": summary.scenario_digest,
        "method": summary.method,
        "seed": str(summary.seed),
        "alignment": alignment_of(run.scenario),
        "evaluated_on": summary.evaluated_on,
        "noise": summary.noise or "none",
        **{key: str(value) for key, value in summary.environment.items()},
    }
    return Curves(run.label, facts, points, run.started, times[run.stages])


def measured_at(run: Run) -> list[float]:
    """The end of each stage, stage 0 first. If its event is missing: the end of the stage before it."""
    ends = {event.stage: run.started + event.seconds for event in run.events if event.name == "evaluated"}
    times = [ends.get(0, run.started)]
    for stage in range(1, run.stages + 1):
        times.append(ends.get(stage, times[-1]))
    return times


def values_of(run: Run) -> Iterator[tuple[str, int, float | None]]:
    """(tag, step, value). Of two values with the same tag and step, the later one counts."""
    summary = run.summary
    frozen = summary.zero_shot["iou"]
    yield from ((f"iou/{task}", 0, frozen.get(task)) for task in summary.tasks)
    yield from ((f"unseen-iou/{task}", 0, score) for task, score in summary.unseen.zero_shot.items())
    for stage, row in enumerate(summary.matrix["iou"], 1):
        yield from ((f"iou/{task}", stage, score) for task, score in zip(summary.tasks, row, strict=True))
    for stage, scores in enumerate(summary.unseen.iou, 1):
        yield from ((f"unseen-iou/{task}", stage, score) for task, score in scores.items())
    for event in run.events:
        if event.name == "answer" and 0 <= event.stage <= run.stages:
            for name, epsilon in event.facts.get("epsilon", {}).items():
                yield f"{name}/{event.facts['institution']}", event.stage, float(epsilon)
        if event.name == "traffic":
            for way in ("up", "down"):
                for name, count in event.facts.get(way, {}).items():
                    yield f"bytes-{way}/{name}", event.stage, float(count)
    for name in FIGURES:
        yield f"summary/{name}", run.stages, getattr(summary, name)
    yield "summary/routing_accuracy", run.stages, summary.routing.accuracy
