"""The stage loop: institutions learn tasks one after the other, and after each task all are measured again.

This is the whole protocol. What one stage does stands in server.stage; how a task is learned in
server.learning; how everybody is measured in server.evaluation.
"""

from __future__ import annotations

import contextlib

from flwr.serverapp import Grid

from casam_core.config.scenario import Scenario
from server.evaluation import StageScores
from server.federation.counters import Counters
from server.federation.federation import Federation
from server.run.run_folder import RunFolder
from server.run.state import restore, save
from server.run.summary import write_results
from server.stage import State, first_state, roll_back, run_stage
from server.unlearning import check_unlearning, facts_of, write_receipt


def run_stream(grid: Grid, scenario: Scenario, folder: RunFolder) -> None:
    """Run `scenario` over the institutions behind `grid`; leaves a finished run folder.

    Raises:
        CasamError: a RunError or ScenarioError. What is on disk stays intact; the last event says why.
    """
    try:
        run_stages(grid, scenario, folder)
    except Exception as error:
        with contextlib.suppress(OSError):  # a full disk has no room for this line either
            folder.event("failed", f"failed: {error}", error=type(error).__name__, reason=str(error))
        raise


def run_stages(grid: Grid, scenario: Scenario, folder: RunFolder) -> None:
    """Stage 0 measures the frozen backbone; every further stage learns one task and measures all.

    The state is durable after each stage: an interrupted run goes on behind its last one.
    """
    folder.write_json("scenario.json", scenario.model_dump(mode="json"))
    folder.event(
        "start",
        f"{scenario.name}: {len(scenario.stream)} stages, method {scenario.method}",
        scenario=scenario.digest(),
    )
    federation = Federation(grid, scenario, folder)
    federation.discover()
    check_unlearning(federation)
    report_forecasts(federation)

    state = restore(folder)
    if state is None:
        state = first_state(federation)
        report_scores(federation, 0, "frozen backbone", state.zero_shot)
        state = save(folder, state)
    else:
        resume(federation, state)

    while len(state.stages) < len(scenario.stream):
        before, state = state, run_stage(federation, state)
        report_stage(federation, before, state)
        state = save(folder, state)

    write_results(folder, federation, scenario, state.zero_shot, state.stages)
    folder.event("end", f"finished in {folder.elapsed:.0f} s")


def resume(federation: Federation, state: State) -> None:
    """Go on with the counters, the members and the bank of an interrupted run."""
    folder, number = federation.folder, len(state.stages)
    federation.counters = Counters.from_dict(state.counters)
    federation.remember(state.members)
    roll_back(state.bank, state.held)
    folder.resume(state.seconds)
    folder.event(
        "resumed",
        f"resumed behind stage {number} of {len(federation.scenario.stream)}",
        stage=number,
    )


def report_forecasts(federation: Federation) -> None:
    """One line per institution and task that is trained privately: how far the budget goes."""
    for name, member in federation.directory.members.items():
        for task, found in member.forecasts.items():
            federation.folder.event(
                "forecast",
                f"{name}: {found.affordable} of {found.rounds} rounds of {task} affordable at epsilon "
                f"{member.policy.budget.epsilon:g}",
                institution=name,
                task=task,
                affordable=found.affordable,
                rounds=found.rounds,
            )


def report_stage(federation: Federation, before: State, after: State) -> None:
    """The stage's scores as an event, and a receipt for each institution that was unlearned in it."""
    stage = after.stages[-1]
    report_scores(federation, stage.number, stage.task, stage.scores)
    earlier = before.stages[-1].scores if before.stages else before.zero_shot
    for left in stage.unlearned:
        write_receipt(federation.folder, left, facts_of(left, earlier.iou, stage.scores.iou))


def report_scores(federation: Federation, number: int, what: str, scores: StageScores) -> None:
    """One event and one line: IoU of every task seen so far."""
    stream = federation.scenario.stream
    iou = {task: scores.figure("iou", task) for task in (stream[:number] if number else stream)}
    cells = (f"{task} missing" if value is None else f"{task} {value:.3f}" for task, value in iou.items())
    federation.folder.event(
        "evaluated",
        f"stage {number}/{len(stream)} {what}: IoU {'  '.join(cells)}",
        stage=number,
        iou=iou,
        routes=scores.routes,
        decodes=scores.decodes,
    )
