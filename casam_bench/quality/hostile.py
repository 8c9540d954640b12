"""Hostile institutions and defences, with the real backbone.

There are two places of attack. In a round, one of three holders of a task is hostile; the figure is the
task's IoU after the round, by strategy of merging. In a stream, one institution is hostile with its own task;
the figure is the share of the *other* tasks' images that the router still sends to their own task, without
and with checks of entries (copies, canaries).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from casam_bench.bench import Figures, Surroundings, table_of
from casam_core.config.scenario import Scenario
from server.run.summary_schema import Summary, read_summary

OFF = {"norm_factor": None, "canary_share": None}
"""Only the check of the answers' form is on; it cannot be switched off."""

ROUNDS: dict[str, dict[str, Any]] = {
    "mean": {"admission": OFF},
    "mean, norm": {},
    "median, norm": {"training": {"strategy": "fedmedian"}},
}
ROUND_ATTACKS = ("boosted", "scaled", "sign-flipped", "random")

STREAMS: dict[str, dict[str, Any]] = {"off": {"admission": OFF}, "on": {}}
STREAM_ATTACKS = ("copied-router", "hijack", "sign-flipped")

BASE: dict[str, Any] = {
    "name": "hostile",
    "training": {"epochs": 3, "batch_images": 2, "instances": 2, "fallback_to_identity": False},
    "evaluation": {"max_instances": 4},
    "participation": {"missing": "skip"},
}


def phantom(name: str, images: int) -> dict[str, Any]:
    """A synthetic task."""
    return {"reader": "phantom", "phantom": name, "images": images}


def in_a_round(attack: str | None) -> list[dict[str, Any]]:
    """Three holders of one task; the last is hostile."""
    sites = [{"name": name, "data": {"histology": phantom("histology", 16)}} for name in ("a", "b", "c")]
    return [*sites[:2], {**sites[2], "faults": {"attack": attack}}]


def in_a_stream(attack: str | None) -> list[dict[str, Any]]:
    """Three institutions with one task each; the last one learns last and is hostile."""
    tasks = ("polyp", "histology", "glomeruli_a")
    sites = [
        {"name": name, "data": {task: phantom(task, 24)}}
        for name, task in zip(("a", "b", "c"), tasks, strict=True)
    ]
    return [*sites[:2], {**sites[2], "faults": {"attack": attack}}]


def scenario_of(
    stream: list[str], sites: list[dict[str, Any]], changes: Mapping[str, Mapping[str, Any]]
) -> Scenario:
    """BASE with changes by section."""
    table = {**BASE, "stream": stream, "institutions": sites}
    for section, values in changes.items():
        table[section] = {**table.get(section, {}), **values}
    return Scenario.model_validate(table)


def run(around: Surroundings) -> Figures:
    """Attacks with answers of the right form; others are always rejected (tests/whole_runs/test_hostile.py).

    iou_ATTACK_MERGE: of the attacked round's task. routed_ATTACK_CHECKS: share of the two honest tasks'
    images that go to their own task. `honest` as ATTACK: without an attack.
    """
    return run_rounds(around) | run_streams(around)


def run_rounds(around: Surroundings) -> Figures:
    """Attacks within a round, by strategy of merging."""
    figures: Figures = {}
    rounds = table_of("IoU of a task with one hostile holder of three", ("attack", *ROUNDS))
    for attack in (None, *ROUND_ATTACKS):
        cells = []
        for name, changes in ROUNDS.items():
            ended = outcome(around, scenario_of(["histology"], in_a_round(attack), changes))
            iou = ended.matrix["iou"][-1][0]
            assert iou is not None  # all institutions share scores here
            cells.append(f"{iou:.3f}{'' if 'c' in ended.holders['histology'] else ' (rejected)'}")
            figures[f"iou_{label(attack)}_{label(name)}"] = iou
        rounds.add_row(attack or "none", *cells)
        around.say(f"hostile, round, {attack or 'none'}: {'  '.join(cells)}")
    around.show(rounds)
    return figures


def run_streams(around: Surroundings) -> Figures:
    """Attacks of an institution with its own task, without and with checks of entries."""
    figures: Figures = {}
    title = "Share of two honest tasks' images that go to their own task, by checks of entries"
    streams = table_of(title, ("attack", *STREAMS, "entry with checks"))
    for attack in (None, *STREAM_ATTACKS):
        cells, end = [], "-"
        for name, changes in STREAMS.items():
            scenario = scenario_of(["polyp", "histology", "glomeruli_a"], in_a_stream(attack), changes)
            ended = outcome(around, scenario)
            share = routed(ended.routing.confusion or {}, scenario.stream[:2])
            cells.append(f"{share:.3f}")
            figures[f"routed_{label(attack)}_{name}"] = share
            if name == "on" and attack is not None:
                end = end_of(ended)
        streams.add_row(attack or "none", *cells, end)
        around.say(f"hostile, stream, {attack or 'none'}: {'  '.join(cells)}  {end}")
    around.show(streams)
    return figures


def outcome(around: Surroundings, scenario: Scenario) -> Summary:
    """The figures of a run in this process."""
    with tempfile.TemporaryDirectory(prefix="casam-bench-") as folder:
        around.engines.inprocess(scenario, Path(folder) / "run")
        return read_summary(Path(folder) / "run")


def routed(confusion: Mapping[str, Mapping[str, int]], tasks: list[str]) -> float:
    """Share of these tasks' images that go to their own task."""
    images = sum(sum(confusion[task].values()) for task in tasks)
    return sum(confusion[task].get(task, 0) for task in tasks) / images


def end_of(ended: Summary) -> str:
    """The fate of the hostile institution's entry: quarantined, rejected or accepted."""
    if ended.quarantine:
        return "quarantined: " + "; ".join(ended.quarantine[0].reasons)
    if rejected := ended.privacy["c"].rejections:
        return "rejected: " + ", ".join(rejected)
    return "accepted"


def label(name: str | None) -> str:
    """The name of an attack or defence as part of a figure's name."""
    return "honest" if name is None else name.replace(", ", "_").replace("-", "_")
