"""Run folders written by hand: what the server writes, with figures that can be checked in the head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from casam_core.config.scenario import Scenario
from casam_core.protocol.audit import AuditLog, Release
from casam_core.routing.decision import margin_histogram
from tests.conftest import phantom

TASKS = ["polyp", "histology", "cardiac_mr"]
IOU = [[0.80, None, None], [0.80, 0.70, None], [0.78, 0.70, 0.90]]
FROZEN = {"polyp": 0.60, "histology": 0.65, "cardiac_mr": 0.85, "spleen_ct": 0.50}
"""last = (0.78 + 0.70 + 0.90) / 3, frozen = 0.70, forgetting = mean(2, 0) = 1 point."""

DP = {
    "adapter": {"noise": "dp"},
    "router": {"noise": "dp"},
    "metrics": "noisy",
    "budget": {"epsilon": 3.0, "epsilon_metrics": 5.0, "delta": 0.001},
}


def scenario_of(name: str = "by-hand", seed: int = 0, **changes: Any) -> Scenario:
    """Four institutions that learn three tasks, and one whose task is never learned."""
    table = {
        "name": name,
        "description": "Made by hand.",
        "seed": seed,
        "stream": TASKS,
        "backbone": {"name": "tiny"},
        "institutions": [
            {"name": "north", "data": {"polyp": phantom("polyp")}},
            {"name": "south", "data": {"histology": phantom("histology")}, "policy": DP},
            {"name": "west", "data": {"histology": phantom("histology")}, "policy": {"joins_at": 2}},
            {
                "name": "heart",
                "data": {"cardiac_mr": phantom("cardiac_mr")},
                "policy": {"router": {"share": "never"}},
            },
            {"name": "visitor", "unseen": True, "data": {"spleen_ct": phantom("spleen_ct")}},
        ],
    }
    return Scenario.model_validate(table | changes)


def estimate(mean: float, half: float | None) -> dict[str, float | None]:
    """A mean with its interval, or without one."""
    if half is None:
        return {"mean": mean, "sd": None, "low": None, "high": None}
    return {"mean": mean, "sd": 2 * half, "low": mean - half, "high": mean + half}


def statistics(iou: float, gain: float, half: float | None, units: int = 12) -> dict[str, Any]:
    """One task at one institution."""
    return {"units": units, "iou": estimate(iou, half), "gain": estimate(gain, half)}


def summary_of(scenario: Scenario, **changes: Any) -> dict[str, Any]:
    """summary.json as this version writes it."""
    names = [site.name for site in scenario.institutions]
    spent: dict[str, dict[str, Any]] = {
        "south": {"epsilon_train": 2.25, "epsilon_metrics": 4.0},
        "heart": {"refusals": {"router-not-shared": 1}},
    }
    margins = {
        "polyp": [-2.0] * 9 + [0.5],
        "histology": [-1.0] * 10,
        "cardiac_mr": [-30.0] * 8,
        "spleen_ct": [0.2] * 3 + [4.0] * 5,
    }
    content = {
        "schema": 1,
        "scenario": scenario.name,
        "scenario_digest": scenario.digest(),
        "seed": scenario.seed,
        "method": scenario.method,
        "status": "completed",
        "evaluated_on": "test",
        "tasks": TASKS,
        "holders": {"polyp": ["north"], "histology": ["south", "west"], "cardiac_mr": ["heart"]},
        "matrix": {"iou": IOU, "dice": IOU, "biou": IOU, "biou_official": IOU},
        "zero_shot": dict.fromkeys(("iou", "dice", "biou", "biou_official"), FROZEN),
        "unseen": {
            "tasks": ["spleen_ct"],
            "zero_shot": {"spleen_ct": 0.5},
            "iou": [{"spleen_ct": 0.5}, {"spleen_ct": 0.5}, {"spleen_ct": 0.45}],
            "unknown_rate": [{"spleen_ct": 1.0}, {"spleen_ct": 1.0}, {"spleen_ct": 0.75}],
        },
        "statistics": {
            "north": {"polyp": statistics(0.78, 0.18, 0.05)},
            "west": {"histology": statistics(0.70, 0.01, 0.04)},
            "heart": {"cardiac_mr": statistics(0.90, 0.05, None, units=1)},
        },
        "last_iou": (0.78 + 0.70 + 0.90) / 3,
        "avg_iou": (0.80 + 0.75 + (0.78 + 0.70 + 0.90) / 3) / 3,
        "ff_iou": 1.0,
        "bwt_iou": -0.01,
        "fwt_iou": 0.0125,
        "plasticity_iou": (0.80 + 0.70 + 0.90) / 3,
        "complete": dict.fromkeys(("last_iou", "avg_iou", "ff_iou", "bwt_iou"), True),
        "iou_instance": {"polyp": 0.77, "histology": 0.69, "cardiac_mr": 0.9},
        "worst_institution_iou": {"polyp": 0.78, "histology": 0.66, "cardiac_mr": 0.9},
        "hd95": None,
        "routing": {
            "accuracy": 27 / 28,
            "confusion": {
                "polyp": {"polyp": 9, "identity": 1},
                "histology": {"histology": 10},
                "cardiac_mr": {"cardiac_mr": 8},
                "spleen_ct": {"polyp": 2, "identity": 6},
            },
            "false_unknown_rate": 1 / 28,
            "unseen_unknown_rate": 0.75,
            "auroc": 0.95,
            "fpr95": 0.1,
            "near": {"auroc": 0.9, "fpr95": 0.2},
            "margins": {
                task: [[i, int(n)] for i, n in enumerate(margin_histogram(found)) if n]
                for task, found in margins.items()
            },
        },
        "trained_parameters": 4352,
        "bytes": {
            "up": {name: 20_000 * (i + 1) for i, name in enumerate(names)},
            "down": dict.fromkeys(names, 90000),
        },
        "privacy": {
            site.name: {
                "policy": site.policy.model_dump(mode="json"),
                "epsilon_train": None,
                "epsilon_metrics": None,
                "delta": site.policy.budget.delta,
                "unit": site.policy.budget.unit,
                "refusals": {},
                "releases": 5,
                "bytes": 20_000,
                **spent.get(site.name, {}),
            }
            for site in scenario.institutions
        },
        "noise": "seeded (simulated, protects nobody)",
        "decodes": [50, 60, 30, 20],
        "timing": {
            "seconds": 75.0,
            "stages": [
                {"task": task, "align": 10.0, "router": 1.0, "evaluate": 4.0 + i}
                for i, task in enumerate(TASKS)
            ],
        },
        "environment": {"python": "3.11", "torch": "2", "compute": "cpu", "code": "0123456789abcdef"},
        "run": {"folder": scenario.name},
    }
    return content | changes


def events_of(names: list[str]) -> list[dict[str, Any]]:
    """What happened, a second apart."""
    everybody = [name for name in names if name != "west"]
    events: list[dict[str, Any]] = [{"event": "start", "scenario": "digest"}]
    events.append({"event": "evaluated", "stage": 0, "iou": FROZEN, "routes": {}, "decodes": 50})
    routes = {
        "polyp": {"polyp": 9, "identity": 1},
        "histology": {"histology": 10},
        "cardiac_mr": {"cardiac_mr": 8},
        "spleen_ct": {"identity": 8},
    }
    holders = {"polyp": ["north"], "histology": ["south", "west"], "cardiac_mr": ["heart"]}
    for stage, task in enumerate(TASKS, 1):
        events.append(
            {
                "event": "align",
                "stage": stage,
                "task": task,
                "round": 1,
                "holders": holders[task],
                "images": 9,
            }
        )
        if task == "cardiac_mr":
            refusal = {"kind": "train.router", "outcome": "router-not-shared", "incident": "00c0ffee"}
            events.append({"event": "refusal", "institution": "heart", **refusal})
        threshold = None if task == "cardiac_mr" else 1.5
        events.append(
            {"event": "entry", "stage": stage, "task": task, "entry": "e" * 8, "threshold": threshold}
        )
        if stage == 2:
            late = {"kind": "evaluate.stage", "outcome": "no-answer", "incident": ""}
            events.append({"event": "no-result", "institution": "visitor", **late})
        there = names if stage > 1 else everybody
        events.append(
            {
                "event": "traffic",
                "stage": stage,
                "up": dict.fromkeys(there, 5000 * stage),
                "down": dict.fromkeys(there, 30000 * stage),
            }
        )
        events.append({"event": "evaluated", "stage": stage, "iou": {}, "routes": routes, "decodes": 20})
    events.append({"event": "end"})
    return events


def release(institution: str, stage: int) -> Release:
    """One line of the server's audit log."""
    return Release(
        time="2026-11-25T03:00:00+00:00",
        institution=institution,
        run="by-hand",
        request=f"{institution}-{stage}",
        kind="evaluate.stage",
        stage=stage,
        round=0,
        task="",
        outcome="ok",
        clause="",
        records=(),
        bytes=5_000,
        digest="d" * 64,
    )


def write_run(folder: Path, scenario: Scenario | None = None, **changes: Any) -> Path:
    """A finished run's folder; `changes` go into summary.json."""
    scenario = scenario or scenario_of()
    names = [site.name for site in scenario.institutions]
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary_of(scenario, **changes), sort_keys=True))
    (folder / "scenario.json").write_text(json.dumps(scenario.model_dump(mode="json"), sort_keys=True))
    write_events(folder, events_of(names))
    log = AuditLog(folder / "audit.jsonl")
    for name in names:
        log.add(release(name, 1))
    return folder


def write_events(folder: Path, events: list[dict[str, Any]]) -> None:
    """events.jsonl, a second apart."""
    lines = [json.dumps({"time": 1_790_000_000.0 + i, **event}) for i, event in enumerate(events)]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
