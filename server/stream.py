"""The stage loop: institutions learn one task after the other; after each, all tasks are evaluated again.

This is the whole protocol. server.stage runs one stage, server.learning learns a task, and server.evaluation
evaluates all institutions.
"""

from __future__ import annotations

from pathlib import Path

from flwr.serverapp import Grid

from casam_core.config.scenario import Scenario
from casam_core.errors import ScenarioError
from casam_core.methods import alignment_of, check_streams
from server.defence.quarantine import Quarantine
from server.evaluation import StageScores
from server.federation.counters import Counters
from server.federation.federation import Federation
from server.run.run_folder import RunFolder
from server.run.state import restore, save
from server.run.summary import write_results
from server.stage import State, evaluate_stage, first_state, learn_stage, roll_back
from server.unlearning import check_unlearning, empty_quarantine, facts_of, write_receipt


def run_stream(grid: Grid, scenario: Scenario, folder: RunFolder, register: Path | None = None) -> None:
    """Run `scenario` with the institutions behind `grid` and complete the run folder.

    Args:
        register: the file with the consortium's keys; None for a simulation, which makes its own.

    Raises:
        CasamError: a RunError or ScenarioError. Files on disk stay intact; the last event states the reason.
    """
    with folder.telling_failures():
        run_stages(grid, scenario, folder, register)


def run_stages(grid: Grid, scenario: Scenario, folder: RunFolder, register: Path | None) -> None:
    """Stage 0 evaluates the frozen backbone; every further stage learns one task and evaluates all tasks.

    The state is on disk when a stage's task is learned, when canaries rejected its entries, and when all are
    evaluated: there an interrupted run resumes. An entry that an institution may have seen never changes.
    Raises CasamError.
    """
    folder.write_json("scenario.json", scenario.model_dump(mode="json"))
    folder.event(
        "start",
        f"{scenario.name}: {len(scenario.stream)} stages, method {scenario.method}",
        scenario=scenario.digest(),
    )
    check_streams(scenario)
    if scenario.relayed:
        raise ScenarioError(
            "relayed: expected false, found true; the members of a relay are asked with `casam deploy run "
            "... --relay FOLDER`"
        )
    for task in scenario.stream:
        alignment_of(scenario, task)  # what does not go together is refused before anybody is asked
    federation = Federation(grid, scenario, folder, register)
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
        if state.learned is None:
            state = save(folder, learn_stage(federation, state))
        before, state = state, evaluate_stage(federation, state)
        if state.learned is not None:  # a canary failed: once more, without the rejected entries
            state = save(folder, state)
            continue
        report_stage(federation, before, state)
        state = save(folder, state)
        empty_quarantine(folder.path, state.stages[-1].unlearned)

    write_results(folder, federation, scenario, state.zero_shot, state.stages)
    folder.event("end", f"finished in {folder.elapsed:.0f} s")


def resume(federation: Federation, state: State) -> None:
    """Restore the counters, the members and the bank of an interrupted run."""
    folder, number = federation.folder, len(state.stages)
    federation.counters = Counters.from_dict(state.counters)
    federation.remember(state.members)
    roll_back(state.bank, state.held, unlearning=state.learned is None)
    held = {item.digest for item in state.held}
    Quarantine(folder.path).drop(lambda item: item.entry in held)  # no state has rejected it
    empty_quarantine(folder.path, (left for stage in state.stages for left in stage.unlearned))
    folder.resume(state.seconds)
    folder.event(
        "resumed",
        f"resumed after stage {number} of {len(federation.scenario.stream)}"
        + (f"; stage {number + 1} is learned already" if state.learned else ""),
        stage=number,
    )


def report_forecasts(federation: Federation) -> None:
    """One event per institution and privately trained task: how many rounds the budget can pay."""
    for name, member in federation.directory.members.items():
        for task, found in member.forecasts.items():
            federation.folder.event(
                "forecast",
                f"{name}: {found.affordable} of {found.rounds} rounds of {task} affordable at epsilon "
                f"{member.policy.budget.epsilon:g}; {found.division(member.policy.budget.epsilon or 0.0)}",
                institution=name,
                task=task,
                affordable=found.affordable,
                rounds=found.rounds,
                router_share=found.router_share,
            )


def report_stage(federation: Federation, before: State, after: State) -> None:
    """Report the stage's scores; write a receipt for each institution that was unlearned in it."""
    stage = after.stages[-1]
    report_scores(federation, stage.number, stage.task, stage.scores)
    earlier = before.stages[-1].scores if before.stages else before.zero_shot
    for left in stage.unlearned:
        write_receipt(federation, left, facts_of(left, earlier.iou, stage.scores.iou))


def report_scores(federation: Federation, number: int, what: str, scores: StageScores) -> None:
    """One event and one line: the IoU of every task seen so far; at stage 0, of all tasks of the stream."""
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
