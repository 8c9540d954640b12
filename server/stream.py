"""The stage loop: institutions learn tasks one after the other, and after each all is measured again.

This is the whole protocol. What one step means stands in server.learning (layer, router) and
server.federation.federation (who is there, evaluation); what is written stands in server.run.summary.
"""

from __future__ import annotations

import contextlib

from flwr.serverapp import Grid

from casam_core.bank.bank import Bank
from casam_core.config.scenario import Scenario
from casam_core.methods import SHARED
from server.federation.counters import Counters
from server.federation.federation import Federation
from server.learning import LearnedLayer
from server.run.run_folder import RunFolder
from server.run.scores import StageScores
from server.run.state import State, restore, roll_back, save
from server.run.summary import write_results
from server.stage import Stage, run_stage
from server.unlearning import check_unlearning, facts_of, held_by, write_receipt


def run_stream(grid: Grid, scenario: Scenario, folder: RunFolder) -> None:
    """Run `scenario` over the institutions behind `grid`; leaves a finished run folder.

    Raises CasamError (RunError, ScenarioError) with what is on disk intact; the last event says why.
    """
    try:
        run_stages(grid, scenario, folder)
    except Exception as error:
        with contextlib.suppress(OSError):  # a full disk has no room for this line either
            folder.event("failed", f"failed: {error}", error=type(error).__name__, reason=str(error))
        raise


def run_stages(grid: Grid, scenario: Scenario, folder: RunFolder) -> None:
    """Stage 0 measures the frozen backbone; every further stage learns one task and measures all.

    After each the run is durable: one that was interrupted goes on behind its last stage.
    """
    folder.write_json("scenario.json", scenario.model_dump(mode="json"))
    federation = Federation(grid, scenario, folder)
    bank = Bank.open(folder.path / "bank", create=True)
    folder.event(
        "start",
        f"{scenario.name}: {len(scenario.stream)} stages, method {scenario.method}",
        scenario=scenario.digest(),
    )
    federation.discover()
    check_unlearning(federation)
    federation.forecast()

    state = restore(folder)
    if state is None:
        roll_back(bank, ())
        scores = federation.evaluate(0, bank)
        report(folder, 0, scenario, "frozen backbone", scores)
        state = keep(folder, federation, scores, (), bank, None, ())
    else:
        federation.counters = Counters.from_dict(state.counters)
        federation.remember(state.members)
        bank = bank_behind(folder, state)
        roll_back(bank, state.held)
        folder.resume(state.seconds)
        folder.event(
            "resumed",
            f"resumed behind stage {len(state.stages)} of {len(scenario.stream)}",
            stage=len(state.stages),
        )
    for number in range(len(state.stages) + 1, len(scenario.stream) + 1):
        learned = run_stage(federation, number, bank, state.layer, state.held)
        bank = learned.bank
        report(folder, number, scenario, learned.stage.task, learned.stage.scores)
        before = state.stages[-1].scores if state.stages else state.zero_shot
        for left in learned.stage.unlearned:
            write_receipt(folder, left, facts_of(left, before.iou, learned.stage.scores.iou))
        stages = (*state.stages, learned.stage)
        state = keep(folder, federation, state.zero_shot, stages, bank, learned.layer, state.files)

    write_results(folder, federation, scenario, state.zero_shot, state.stages)
    folder.event("end", f"finished in {folder.elapsed:.0f} s")


def keep(
    folder: RunFolder,
    federation: Federation,
    zero_shot: StageScores,
    stages: tuple[Stage, ...],
    bank: Bank,
    layer: LearnedLayer | None,
    files: tuple[str, ...],
) -> State:
    """Make what is known so far durable. files: of the stages before the newest."""
    held = held_by(bank, federation)
    counters, members = federation.counters.as_dict(), dict(federation.members)
    return save(folder, State(zero_shot, stages, counters, layer, held, members, folder.elapsed, files))


def bank_behind(folder: RunFolder, state: State) -> Bank:
    """The bank that the last finished stage left: methods with one layer for all have one per stage."""
    shared = any(item.task == SHARED for item in state.held)
    path = folder.path / "bank"
    return Bank.open(path / f"stage-{len(state.stages)}" if shared else path)


def report(folder: RunFolder, number: int, scenario: Scenario, what: str, scores: StageScores) -> None:
    """One event and one line: IoU of every task seen so far."""
    seen = scenario.stream[:number] if number else scenario.stream
    cells = "  ".join(
        f"{task} {iou:.3f}" if (iou := scores.figure("iou", task)) is not None else f"{task} missing"
        for task in seen
    )
    folder.event(
        "evaluated",
        f"stage {number}/{len(scenario.stream)} {what}: IoU {cells}",
        stage=number,
        iou={task: scores.figure("iou", task) for task in seen},
        routes=scores.routes,
        decodes=scores.decodes,
    )
