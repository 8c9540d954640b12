"""A study's tuning: every combination that learns chooses from the same few learning rates.

Trials run under the study's first seed. Their measure is last_iou on *validation* images only; they do not
read test images. The study's own cells then use the best rate. Trials are ordinary cells; their folder is
`tuning` in the study's folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from casam_core.config.scenario import Scenario
from casam_core.errors import RunError
from casam_core.methods import METHODS, alignment_of
from casam_core.model.forms import learning_rate_of
from scenarios.study.study import Cell, Plan

RATE = "learning_rate"
"""The additional axis of the trials."""


def trials(plan: Plan) -> Plan:
    """One cell per learning combination and learning rate, under the study's first seed."""
    cells = []
    for cell in plan.cells:
        if cell.seed != plan.study.seeds[0] or not METHODS[cell.scenario.method].learns:
            continue
        own = learning_rate_of(alignment_of(cell.scenario))
        for factor in plan.study.tune:
            rate = f"{own * factor:.6g}"
            evaluation = cell.scenario.evaluation.model_copy(update={"split": "val"})
            scenario = with_rate(cell.scenario, float(rate)).model_copy(update={"evaluation": evaluation})
            cells.append(Cell(f"{cell.name}_rate-{rate}", {**cell.labels, RATE: rate}, cell.seed, scenario))
    return Plan(plan.study, tuple(cells))


def tuned(plan: Plan, tried: Plan, last_iou: Mapping[str, float | None]) -> Plan:
    """The plan with the best learning rate in every learning cell. Of two equally good rates, the lower wins.

    Args:
        plan: The study.
        tried: Its trials.
        last_iou: By name of a trial, its IoU on validation images; None if it failed.

    Raises:
        RunError: All trials of a combination failed.
    """
    found: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for trial in tried.cells:
        labels = dict(trial.labels)
        rate = float(labels.pop(RATE))
        figures = found.setdefault(tuple(labels.values()), [])
        if (figure := last_iou[trial.name]) is not None:
            figures.append((figure, -rate))
    cells = []
    for cell in plan.cells:
        key = tuple(cell.labels.values())
        if key not in found:
            cells.append(cell)
        elif found[key]:
            cells.append(replace(cell, scenario=with_rate(cell.scenario, -max(found[key])[1])))
        else:
            raise RunError(f"tuning {cell.name}: no learning rate gave a finished run; try lower factors")
    return replace(plan, cells=tuple(cells))


def with_rate(scenario: Scenario, rate: float) -> Scenario:
    """The scenario with another learning rate."""
    changes: dict[str, Any] = {"learning_rate": rate}
    return scenario.model_copy(update={"alignment": scenario.alignment.model_copy(update=changes)})
