"""summary.json, matrix.csv and matrix.png of a finished run (docs/run-folder.md).

Fractions throughout; ff_iou alone is in points. Whatever may differ between two equal runs stands
under `timing`, `environment` or `run`.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from casam_core.config.scenario import Scenario
from casam_core.methods import method_of
from casam_core.metrics.continual import ContinualMatrix, average, backward_transfer, forgetting, last
from casam_core.metrics.routes import routing_metrics
from casam_core.protocol.fingerprint import code_fingerprint
from casam_core.protocol.payload import EPSILON_METRICS, EPSILON_TRAIN
from casam_core.routing.decision import IDENTITY
from casam_core.routing.unknown import auroc, fpr_at_tpr, total
from server.defence.quarantine import Quarantine
from server.evaluation import StageScores
from server.federation.federation import Federation
from server.run.pictures import matrix_picture
from server.run.run_folder import RunFolder
from server.unlearning import facts_of

if TYPE_CHECKING:
    from server.stage import Stage

MATRICES = ("iou", "dice", "biou", "biou_official")


def matrix_of(stream: Sequence[str], stages: Sequence[Stage], figure: str) -> ContinualMatrix:
    """R for one figure: a row per stage, null where a task is unseen or nobody answered."""
    matrix = ContinualMatrix(tuple(stream))
    for stage in stages:
        seen = stream[: stage.number]
        matrix = matrix.with_stage({task: stage.scores.figure(figure, task) for task in seen})
    return matrix


def summarise(
    federation: Federation,
    scenario: Scenario,
    zero_shot: StageScores,
    stages: Sequence[Stage],
    seconds: float,
) -> dict[str, Any]:
    """The content of summary.json."""
    matrices = {name: matrix_of(scenario.stream, stages, name) for name in MATRICES}
    aggregates = {
        "last": last(matrices["iou"]),
        "avg": average(matrices["iou"]),
        "ff": forgetting(matrices["iou"]),
        "bwt": backward_transfer(matrices["iou"]),
    }
    final = stages[-1].scores
    held_back = Quarantine(federation.folder.path).held_back()
    unseen = [task for task in federation.tasks if task not in scenario.stream]
    routes = final.routes if method_of(scenario.method).routes else None
    routing = routing_metrics(routes, seen=scenario.stream) if routes is not None else None
    known = total(final.margins[task] for task in scenario.stream if task in final.margins)
    unknown = total(final.margins[task] for task in unseen if task in final.margins)
    counted = federation.counters
    return {
        "schema": 1,
        "scenario": scenario.name,
        "scenario_digest": scenario.digest(),
        "seed": scenario.seed,
        "method": scenario.method,
        "status": "completed",
        "evaluated_on": scenario.evaluation.split,
        "tasks": list(scenario.stream),
        "holders": holders_of(stages) | {item.task: [] for item in held_back},
        "matrix": {name: [list(row) for row in matrix.cells] for name, matrix in matrices.items()},
        "zero_shot": {name: zero_shot.figures[name] for name in MATRICES},
        "unseen": {
            "tasks": unseen,
            "zero_shot": {task: zero_shot.figure("iou", task) for task in unseen},
            "iou": [{task: stage.scores.figure("iou", task) for task in unseen} for stage in stages],
            "unknown_rate": [
                {task: unknown_rate(stage.scores.routes.get(task, {})) for task in unseen} for stage in stages
            ],
        },
        "statistics": {
            name: {task: asdict(statistics) for task, statistics in tasks.items()}
            for name, tasks in final.statistics.items()
        },
        **{f"{name}_iou": aggregate.value for name, aggregate in aggregates.items()},
        "complete": {f"{name}_iou": aggregate.complete for name, aggregate in aggregates.items()},
        "iou_instance": final.figures["iou_instance"],
        "worst_institution_iou": final.worst_iou,
        "hd95": final.figures["hd95"] if scenario.evaluation.hd95 else None,
        "routing": {
            "accuracy": routing.accuracy if routing else None,
            "confusion": routes,
            "false_unknown_rate": routing.false_unknown_rate if routing else None,
            "unseen_unknown_rate": routing.unseen_unknown_rate if routing else None,
            "auroc": auroc(known, unknown),
            "fpr95": fpr_at_tpr(known, unknown),
            "margins": {task: filled_bins(counts) for task, counts in final.margins.items()},
        },
        "trained_parameters": stages[-1].parameters,
        "bytes": {"up": counted.traffic.up, "down": counted.traffic.down},
        "privacy": {
            name: {
                "policy": member.policy.model_dump(mode="json"),
                "epsilon_train": counted.epsilon.get(name, {}).get(EPSILON_TRAIN),
                "epsilon_metrics": counted.epsilon.get(name, {}).get(EPSILON_METRICS),
                "delta": member.policy.budget.delta,
                "unit": member.policy.budget.unit,
                "anonymity": counted.anonymity.get(name, {}),
                "refusals": counted.refusals.get(name, {}),
                "rejections": counted.rejections.get(name, {}),
                "releases": counted.releases.get(name, 0),
                "bytes": counted.traffic.up.get(name, 0),
            }
            for name, member in federation.members.items()
        },
        "noise": noise_of(federation),
        "quarantine": [asdict(item) for item in held_back],
        "canary": {stage.task: stage.scores.canary for stage in stages},
        "unlearned": unlearned_in(stages, zero_shot),
        "decodes": [zero_shot.decodes, *(stage.scores.decodes for stage in stages)],
        "timing": {
            "seconds": round(seconds, 3),
            "stages": [{"task": stage.task, **stage.seconds} for stage in stages],
        },
        "environment": environment(federation),
        "run": {"folder": federation.folder.path.name},
    }


def holders_of(stages: Sequence[Stage]) -> dict[str, list[str]]:
    """By task, whose training is in its entry at the end."""
    holders = {stage.task: list(stage.holders) for stage in stages}
    for left in (left for stage in stages for left in stage.unlearned):
        holders |= {task: [] for task in left.deleted}
        holders |= {task: list(names) for task, names in left.holders.items()}
    return holders


def unlearned_in(stages: Sequence[Stage], zero_shot: StageScores) -> list[dict[str, Any]]:
    """Who left and took its part with it, with the matrix's rows before and after."""
    rows = [zero_shot.iou, *(stage.scores.iou for stage in stages)]
    return [
        facts_of(left, rows[stage.number - 1], rows[stage.number])
        for stage in stages
        for left in stage.unlearned
    ]


def noise_of(federation: Federation) -> str | None:
    """Where privacy noise came from; None where nobody's policy asks for any."""
    members = federation.members.values()
    noisy = [m for m in members if m.policy.private or m.policy.metrics == "noisy"]
    if not noisy:
        return None
    simulated = any(member.simulated for member in noisy)
    return "seeded (simulated, protects nobody)" if simulated else "operating system"


def filled_bins(counts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(bin, images) of the bins that hold any (casam_core.routing.unknown)."""
    return [(int(number), int(counts[number])) for number in np.flatnonzero(counts)]


def unknown_rate(routes: Mapping[str, int]) -> float | None:
    """Share of images sent to identity; None without images."""
    images = sum(routes.values())
    return routes.get(IDENTITY, 0) / images if images else None


def environment(federation: Federation) -> dict[str, Any]:
    """What ran where: versions, arithmetic, code."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "flwr": importlib.metadata.version("flwr"),
        "compute": federation.directory.compute,
        "backbone": federation.directory.backbone,
        "code": code_fingerprint(),
    }


def matrix_csv(matrix: ContinualMatrix) -> str:
    """One row per stage, one column per task; unseen cells are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["stage", "learned", *matrix.tasks])
    for number, row in enumerate(matrix.cells, 1):
        writer.writerow([number, matrix.tasks[number - 1], *("" if cell is None else cell for cell in row)])
    return text.getvalue()


def write_results(
    folder: RunFolder,
    federation: Federation,
    scenario: Scenario,
    zero_shot: StageScores,
    stages: Sequence[Stage],
) -> None:
    """Write the three files; summary.json last, so that its presence means that the run is whole."""
    iou = matrix_of(scenario.stream, stages, "iou")
    folder.write_text("matrix.csv", matrix_csv(iou))
    folder.write_bytes("matrix.png", matrix_picture(iou, zero_shot.figures["iou"]))
    content = summarise(federation, scenario, zero_shot, stages, folder.elapsed)
    folder.write_json("summary.json", content)
