"""One stage of the stream: who leaves is unlearned, one task is learned, everybody's images are scored."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from casam_core.bank.bank import Bank
from casam_core.methods import SHARED, method_of
from server.defence.quarantine import admit, quarantine_by_canary
from server.federation.federation import Federation
from server.learning import LearnedLayer, entry_of, learn_layer, learn_router
from server.run.scores import StageScores
from server.unlearning import Held, Unlearned, unlearn


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


@dataclass(frozen=True)
class Learned:
    """What a stage leaves to the next one. layer: of methods that carry one from stage to stage."""

    stage: Stage
    bank: Bank
    layer: LearnedLayer | None


def run_stage(
    federation: Federation,
    number: int,
    bank: Bank,
    before: LearnedLayer | None,
    held: tuple[Held, ...],
) -> Learned:
    """Learn the stage's task. before: the layer carried so far. held: what the bank held when it began."""
    scenario, folder = federation.scenario, federation.folder
    method, task, clock = method_of(scenario.method), scenario.stream[number - 1], Clock()
    federation.discover()
    unlearned = unlearn(federation, number, bank, held)
    if unlearned:
        clock.lap("unlearn")
    learned: LearnedLayer | None = None
    layer, candidate = before, ""
    if method.learns:
        learned = learn_layer(federation, number, task, bank, before)
        layer = learned or before
        clock.lap("align")
        if layer is None:
            folder.event(
                "refused",
                f"stage {number} {task}: no layer came that counts; the task stays identity for the others",
                stage=number,
                task=task,
            )
        elif method.shared:
            # Entries never change, and this one is replaced in every stage: so a bank per stage.
            bank = Bank.open(folder.path / "bank" / f"stage-{number}", create=True)
            bank.add(entry_of(federation, number, SHARED, layer, {}, None))
        else:
            router, threshold = learn_router(federation, number, task, layer.holders)
            clock.lap("router")
            entry = entry_of(federation, number, task, layer, router, threshold)
            if admit(folder, bank, entry, number):
                candidate = task if method.routes else ""
            if not layer.improved:
                folder.event(
                    "floor",
                    f"stage {number} {task}: the layer does not beat frozen SAM on its holders' "
                    "validation images; the task keeps the identity (training.floor)",
                    stage=number,
                    task=task,
                )
    scores = federation.evaluate(number, bank, candidate)
    if quarantine_by_canary(federation, bank, candidate, number, scores):
        federation.withdraw(bank)
        # What was measured under an entry that is held back does not count; what was said about it does.
        # Noisy scores are not asked for twice: their budget is for one measurement a stage.
        again = federation.evaluate(number, bank, spare_noisy=True)
        scores = replace(again, canary=scores.canary, decodes=scores.decodes + again.decodes)
    clock.lap("evaluate")
    holders = learned.holders if learned else ()
    parameters = sum(weights.size for weights in layer.weights.values()) if layer else 0
    stage = Stage(number, task, holders, parameters, scores, clock.seconds, tuple(unlearned))
    return Learned(stage, bank, layer if method.shared else None)


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
