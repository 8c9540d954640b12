"""The stage loop: institutions learn tasks one after the other, and after each all is measured again.

This is the whole protocol. What one step means stands in server.learning (layer, router) and
server.institutions (who is there, evaluation); what is written stands in server.summary.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from flwr.serverapp import Grid

from casam_core.bank import Bank
from casam_core.methods import SHARED, method_of
from casam_core.scenario import Scenario
from server.evaluation import StageScores
from server.institutions import Institutions
from server.learning import LearnedLayer, entry_of, learn_layer, learn_router
from server.run_folder import RunFolder
from server.summary import write_results
from server.unlearning import Unlearned, check_unlearning, facts_of, unlearn, write_receipt


@dataclass(frozen=True)
class Stage:
    """One learned task: what was measured after it, and the seconds each part took.

    parameters: of the layer that was trained; 0 where nothing is learned. unlearned: who left before it.
    """

    number: int
    task: str
    holders: tuple[str, ...]
    parameters: int
    scores: StageScores
    seconds: dict[str, float]
    unlearned: tuple[Unlearned, ...] = ()


def run_stream(grid: Grid, scenario: Scenario, folder: RunFolder) -> None:
    """Run `scenario` over the institutions behind `grid`; leaves a finished run folder.

    Raises CasamError (RunError, ScenarioError) with what is on disk intact; the last event says why.
    """
    try:
        run_stages(grid, scenario, folder)
    except Exception as error:
        folder.event("failed", f"failed: {error}", error=type(error).__name__, reason=str(error))
        raise


def run_stages(grid: Grid, scenario: Scenario, folder: RunFolder) -> None:
    """Stage 0 measures the frozen backbone; every further stage learns one task and measures all."""
    method = method_of(scenario.method)
    folder.write_json("scenario.json", scenario.model_dump(mode="json"))
    institutions = Institutions(grid, scenario, folder)
    bank = Bank.open(folder.path / "bank", create=True)
    folder.event(
        "start",
        f"{scenario.name}: {len(scenario.stream)} stages, method {scenario.method}",
        scenario=scenario.digest(),
    )

    institutions.meet()
    check_unlearning(institutions)
    institutions.forecast()
    zero_shot = institutions.evaluate(0, bank)
    report(folder, 0, scenario, "frozen backbone", zero_shot)

    stages: list[Stage] = []
    earlier = zero_shot
    layer: LearnedLayer | None = None
    learned: LearnedLayer | None = None
    for number, task in enumerate(scenario.stream, 1):
        clock = Clock()
        institutions.meet()
        unlearned = unlearn(institutions, number, bank)
        if unlearned:
            clock.lap("unlearn")
        if method.learns:
            before = layer if method.shared else None
            learned = learn_layer(institutions, number, task, before)
            layer = learned or before
            clock.lap("align")
            if layer is None:
                folder.event(
                    "refused",
                    f"stage {number} {task}: nobody shares a layer; the task stays identity for the others",
                    stage=number,
                    task=task,
                )
            elif method.shared:
                # Entries never change, and this one is replaced in every stage: so a bank per stage.
                bank = Bank.open(folder.path / "bank" / f"stage-{number}", create=True)
                bank.add(entry_of(institutions, number, SHARED, layer, {}, None))
            else:
                router, threshold = learn_router(institutions, number, task, layer.holders)
                clock.lap("router")
                digest = bank.add(entry_of(institutions, number, task, layer, router, threshold))
                folder.event("entry", stage=number, task=task, entry=digest, threshold=threshold)
                if not layer.improved:
                    folder.event(
                        "floor",
                        f"stage {number} {task}: the layer does not beat frozen SAM on its holders' "
                        "validation images; the task keeps the identity (training.floor)",
                        stage=number,
                        task=task,
                    )
        scores = institutions.evaluate(number, bank)
        clock.lap("evaluate")
        holders = learned.holders if learned else ()
        parameters = sum(weights.size for weights in layer.weights.values()) if layer else 0
        stages.append(Stage(number, task, holders, parameters, scores, clock.seconds, tuple(unlearned)))
        report(folder, number, scenario, task, scores)
        for left in unlearned:
            write_receipt(folder, left, facts_of(left, earlier.iou, scores.iou))
        earlier = scores

    write_results(folder, institutions, scenario, zero_shot, stages)
    folder.event("end", f"finished in {folder.elapsed:.0f} s")


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


class Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Close the part that began at the last lap."""
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now
