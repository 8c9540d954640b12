"""summary.json, matrix.csv and matrix.png of a finished run (docs/run-folder.md).

Equal runs differ only under `timing`, `environment` and `run` of summary.json.
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
from casam_core.metrics.continual import (
    Aggregate,
    ContinualMatrix,
    average,
    backward_transfer,
    forgetting,
    forgetting_at,
    forward_transfer,
    last,
    plasticity,
)
from casam_core.metrics.routes import routing_metrics
from casam_core.protocol.fingerprint import code_fingerprint
from casam_core.protocol.payload import (
    EPSILON_METRICS,
    EPSILON_METRICS_REPLACED,
    EPSILON_TRAIN,
    EPSILON_TRAIN_REPLACED,
)
from casam_core.routing.decision import IDENTITY, auroc, fpr_at_tpr, total
from server.defence.quarantine import Quarantine
from server.evaluation import StageScores
from server.federation.directory import Member
from server.federation.federation import Federation
from server.run.pictures import matrix_picture
from server.run.run_folder import RunFolder
from server.run.summary_schema import (
    FILE,
    SCHEMA,
    HeldBackEntry,
    Privacy,
    Routing,
    Separation,
    Summary,
    Timing,
    TrafficPart,
    UnlearnedPart,
    Unseen,
)
from server.unlearning import facts_of

if TYPE_CHECKING:
    from server.stage import Stage

MATRICES = ("iou", "dice", "biou", "biou_official")


def matrix_of(stream: Sequence[str], stages: Sequence[Stage], figure: str) -> ContinualMatrix:
    """The continual matrix of one figure: one row per stage; None if a task is unseen or has no value."""
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
) -> Summary:
    """The figures of a finished run.

    Args:
        federation: The institutions, with the run's counters.
        scenario: The resolved scenario.
        zero_shot: The evaluation before the first stage.
        stages: All stages in order, at least one.
        seconds: How long the run took.
    """
    matrices = {name: matrix_of(scenario.stream, stages, name) for name in MATRICES}
    iou = matrices["iou"]
    final, traffic = stages[-1].scores, federation.counters.traffic
    aggregates = aggregates_of(scenario, iou, zero_shot, stages)
    held_back = Quarantine(federation.folder.path).held_back()
    return Summary(
        schema=SCHEMA,
        scenario=scenario.name,
        scenario_digest=scenario.digest(),
        seed=scenario.seed,
        method=scenario.method,
        status="completed",
        evaluated_on=scenario.evaluation.split,
        tasks=list(scenario.stream),
        holders=holders_of(scenario, stages) | {item.task: [] for item in held_back},
        matrix={name: [list(row) for row in matrix.cells] for name, matrix in matrices.items()},
        zero_shot={name: zero_shot.figures[name] for name in MATRICES},
        unseen=unseen_of(unseen_tasks(federation, scenario), zero_shot, stages),
        statistics=final.statistics,
        **{name: found.value for name, found in aggregates.items()},
        site_ff_iou=site_forgetting(scenario, stages),
        complete={name: found.complete for name, found in aggregates.items()},
        iou_instance=final.figures["iou_instance"],
        worst_institution_iou=final.worst_iou,
        personal=final.personal,
        hd95=final.figures["hd95"] if scenario.evaluation.hd95 else None,
        routing=routing_of(scenario, final, unseen_tasks(federation, scenario)),
        trained_parameters=stages[-1].parameters,
        bytes=TrafficPart(up=traffic.up, down=traffic.down),
        privacy={name: privacy_of(name, member, federation) for name, member in federation.members.items()},
        approved_by=approved_by(federation),
        noise=noise_of(federation),
        quarantine=[HeldBackEntry(**asdict(item)) for item in held_back],
        canary={stage.task: stage.scores.canary for stage in stages},
        unlearned=unlearned_in(stages, zero_shot),
        decodes=[zero_shot.decodes, *(stage.scores.decodes for stage in stages)],
        timing=Timing(
            seconds=round(seconds, 3),
            stages=[{"task": stage.task, **stage.seconds} for stage in stages],
            learning_processor=[stage.learning for stage in stages],
        ),
        environment=environment(federation),
        run={"folder": federation.folder.path.name},
    )


def aggregates_of(
    scenario: Scenario, iou: ContinualMatrix, zero_shot: StageScores, stages: Sequence[Stage]
) -> dict[str, Aggregate]:
    """By name of the summary, the figures of the whole matrix.

    Where an institution has an order of its own, no stage is that of one task, so only the end has a figure.
    """
    before = {
        task: of.scores.figure("iou", task) for of, task in zip(stages, scenario.stream[1:], strict=False)
    }
    found = {
        "last_iou": last(iou),
        "avg_iou": average(iou),
        "ff_iou": forgetting(iou),
        "bwt_iou": backward_transfer(iou),
        "fwt_iou": forward_transfer(iou, before, zero_shot.iou),
        "plasticity_iou": plasticity(iou),
    }
    if scenario.own_streams:
        found |= {name: Aggregate(None, complete=False) for name in found if name != "last_iou"}
    return found


def site_forgetting(scenario: Scenario, stages: Sequence[Stage]) -> dict[str, float | None]:
    """By institution that told scores: what it forgot since it learned each of its tasks, in points."""
    found, own = {}, scenario.own_streams
    for site in scenario.institutions:
        scores = [
            {task: known.iou.mean for task, known in stage.scores.statistics.get(site.name, {}).items()}
            for stage in stages
        ]
        stream = own.get(site.name, scenario.stream)
        learned = {task: stage for stage, task in enumerate(stream, 1) if task in site.data}
        if learned and any(scores):
            found[site.name] = forgetting_at(scores, learned).value
    return found


def unseen_tasks(federation: Federation, scenario: Scenario) -> list[str]:
    """Tasks that institutions hold and that are not in the stream."""
    return [task for task in federation.tasks if task not in scenario.stream]


def unseen_of(tasks: Sequence[str], zero_shot: StageScores, stages: Sequence[Stage]) -> Unseen:
    """Scores and routes of the images of unseen tasks."""
    return Unseen(
        tasks=list(tasks),
        zero_shot={task: zero_shot.figure("iou", task) for task in tasks},
        iou=[{task: stage.scores.figure("iou", task) for task in tasks} for stage in stages],
        unknown_rate=[
            {task: unknown_rate(stage.scores.routes.get(task, {})) for task in tasks} for stage in stages
        ],
    )


def routing_of(scenario: Scenario, final: StageScores, unseen: Sequence[str]) -> Routing:
    """The router's decisions at the last stage; the figures are None for a method without routing."""
    routes = final.routes if method_of(scenario.method).routes else None
    metrics = routing_metrics(routes, seen=scenario.stream) if routes is not None else None
    known = total(final.margins[task] for task in scenario.stream if task in final.margins)
    near = {task for site in scenario.institutions if site.near for task in site.data}
    kinds = [[t for t in unseen if t in final.margins and (t in near) == wanted] for wanted in (True, False)]
    unknown_near, unknown_far = (total(final.margins[task] for task in kind) for kind in kinds)
    unknown = total([unknown_near, unknown_far])
    return Routing(
        accuracy=metrics.accuracy if metrics else None,
        confusion=routes,
        false_unknown_rate=metrics.false_unknown_rate if metrics else None,
        unseen_unknown_rate=metrics.unseen_unknown_rate if metrics else None,
        auroc=auroc(known, unknown),
        fpr95=fpr_at_tpr(known, unknown),
        near=Separation(auroc=auroc(known, unknown_near), fpr95=fpr_at_tpr(known, unknown_near)),
        far=Separation(auroc=auroc(known, unknown_far), fpr95=fpr_at_tpr(known, unknown_far)),
        margins={task: filled_bins(counts) for task, counts in final.margins.items()},
    )


def privacy_of(name: str, member: Member, federation: Federation) -> Privacy:
    """One institution's policy, and the run's counters of it."""
    counted = federation.counters
    spent = counted.epsilon.get(name, {})
    return Privacy(
        policy=member.policy,
        epsilon_train=spent.get(EPSILON_TRAIN),
        epsilon_metrics=spent.get(EPSILON_METRICS),
        epsilon_train_replaced=spent.get(EPSILON_TRAIN_REPLACED),
        epsilon_metrics_replaced=spent.get(EPSILON_METRICS_REPLACED),
        delta=member.policy.budget.delta,
        unit=member.policy.budget.unit,
        router_share={task: found.router_share for task, found in member.forecasts.items()},
        anonymity=counted.anonymity.get(name, {}),
        refusals=counted.refusals.get(name, {}),
        rejections=counted.rejections.get(name, {}),
        releases=counted.releases.get(name, 0),
        bytes=counted.traffic.up.get(name, 0),
    )


def holders_of(scenario: Scenario, stages: Sequence[Stage]) -> dict[str, list[str]]:
    """By task, the institutions that contributed to its entry at the end."""
    holders: dict[str, list[str]] = {stage.task: [] for stage in stages}
    own = scenario.own_streams
    for stage in stages:
        for name in stage.holders:  # after the last task of its own it may train on kept images
            for task in own.get(name, scenario.stream)[stage.number - 1 : stage.number]:
                holders[task].append(name)
    for left in (left for stage in stages for left in stage.unlearned):
        holders |= {task: [] for task in left.deleted}
        holders |= {task: list(names) for task, names in left.holders.items()}
    return holders


def unlearned_in(stages: Sequence[Stage], zero_shot: StageScores) -> list[UnlearnedPart]:
    """Institutions that left and were unlearned, with the matrix's rows before and after."""
    rows = [zero_shot.iou, *(stage.scores.iou for stage in stages)]
    return [
        UnlearnedPart(**facts_of(left, rows[stage.number - 1], rows[stage.number]))
        for stage in stages
        for left in stage.unlearned
    ]


def approved_by(federation: Federation) -> str:
    """Who approved the scenario. A node of a deployment answers only after its site did."""
    simulated = any(member.simulated for member in federation.members.values())
    return "the scenario itself" if simulated else "every institution"


def noise_of(federation: Federation) -> str | None:
    """The source of privacy noise; None if no policy asks for noise."""
    members = federation.members.values()
    noisy = [m for m in members if m.policy.private or m.policy.metrics == "noisy"]
    if not noisy:
        return None
    simulated = any(member.simulated for member in noisy)
    return "seeded (simulated, protects nobody)" if simulated else "operating system"


def filled_bins(counts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(bin, images) of the bins that are not empty (casam_core.routing.decision)."""
    return [(int(number), int(counts[number])) for number in np.flatnonzero(counts)]


def unknown_rate(routes: Mapping[str, int]) -> float | None:
    """Share of images sent to identity; None without images."""
    images = sum(routes.values())
    return routes.get(IDENTITY, 0) / images if images else None


def environment(federation: Federation) -> dict[str, Any]:
    """Versions, arithmetic and code of the run."""
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
    """Write the three files. summary.json is the last one: its presence means that the run is complete."""
    iou = matrix_of(scenario.stream, stages, "iou")
    folder.write_text("matrix.csv", matrix_csv(iou))
    folder.write_bytes("matrix.png", matrix_picture(iou, zero_shot.figures["iou"]))
    summary = summarise(federation, scenario, zero_shot, stages, folder.elapsed)
    folder.write_json(FILE, summary.model_dump(mode="json", by_alias=True))
