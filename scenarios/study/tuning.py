"""A study's tuning: every combination that learns chooses from the same few learning rates.

Trials run under the study's first seed and the first value of every axis that `tune_by` leaves out. Their
measure is last_iou on *validation* images only; they do not read test images. The study's own cells then use
the best rate. Trials are ordinary cells; their folder is `tuning` in the study's folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from casam_core.config.scenario import Scenario
from casam_core.errors import RunError
from casam_core.methods import METHODS, alignment_of
from casam_core.model.forms import learning_rate_of
from scenarios.study.study import Cell, Plan, Study

RATE = "learning_rate"
"""The additional axis of the trials."""


def trials(plan: Plan) -> Plan:
    """One cell per combination that learns and learning rate, under the study's first seed."""
    cells, seen = [], set[tuple[str, ...]]()
    for cell in plan.cells:
        combination = tuned_as(plan.study, cell)
        if combination in seen or not METHODS[cell.scenario.method].learns:
            continue
        seen.add(combination)
        own = learning_rate_of(alignment_of(cell.scenario))
        for factor in plan.study.tune:
            rate = f"{own * factor:.6g}"
            evaluation = cell.scenario.evaluation.model_copy(update={"split": "val"})
            scenario = with_rate(cell.scenario, float(rate)).model_copy(update={"evaluation": evaluation})
            cells.append(Cell(f"{cell.name}_rate-{rate}", {**cell.labels, RATE: rate}, cell.seed, scenario))
    return Plan(plan.study, tuple(cells))


def needed(tried: Plan, cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The trials that decide about these cells of the study."""
    combinations = {tuned_as(tried.study, cell) for cell in cells}
    return tuple(trial for trial in tried.cells if tuned_as(tried.study, trial) in combinations)


def tuned(plan: Plan, tried: Plan, last_iou: Mapping[str, float | None]) -> Plan:
    """The plan with the best learning rate in every learning cell. Of two equally good rates, the lower wins.

    Args:
        plan: The study.
        tried: Its trials.
        last_iou: By name of a trial, its IoU on validation images; None if it failed. A combination of which
            no trial is here keeps its rate.

    Raises:
        RunError: All trials of a combination failed.
    """
    found: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for trial in tried.cells:
        if trial.name not in last_iou:
            continue
        figures = found.setdefault(tuned_as(plan.study, trial), [])
        if (figure := last_iou[trial.name]) is not None:
            figures.append((figure, -float(trial.labels[RATE])))
    cells = []
    for cell in plan.cells:
        key = tuned_as(plan.study, cell)
        if key not in found:
            cells.append(cell)
        elif found[key]:
            cells.append(replace(cell, scenario=with_rate(cell.scenario, -max(found[key])[1])))
        else:
            raise RunError(f"tuning {cell.name}: no learning rate gave a finished run; try lower factors")
    return replace(plan, cells=tuple(cells))


def tuned_as(study: Study, cell: Cell) -> tuple[str, ...]:
    """The labels that decide the cell's learning rate."""
    axes = study.labels() if study.tune_by is None else study.tune_by
    return tuple(cell.labels[axis] for axis in axes)


def with_rate(scenario: Scenario, rate: float) -> Scenario:
    """The scenario with another learning rate."""
    changes: dict[str, Any] = {"learning_rate": rate}
    return scenario.model_copy(update={"alignment": scenario.alignment.model_copy(update=changes)})
