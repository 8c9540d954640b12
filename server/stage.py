"""One stage of the stream, in two halves; each is a function from one state to the next."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from casam_core.bank.bank import Bank
from casam_core.errors import RunError
from casam_core.methods import SHARED, method_of
from casam_core.routing.public_frames import FRAMES
from casam_core.routing.routers.public_frame import frame_named
from server.defence.quarantine import admit, quarantine_by_canary
from server.evaluation import StageScores, evaluate, withdraw
from server.federation.directory import Member
from server.federation.federation import Federation
from server.learning import LearnedLayer, entry_of, learn_layer, learn_router
from server.unlearning import Held, Unlearned, held_by, unlearn, without


@dataclass(frozen=True, kw_only=True)
class Learned:
    """The first half of a stage: its task is learned, and no institution is evaluated yet.

    number: from 1. holders: the institutions that trained in this stage. parameters: number of the layer's
    weights; 0 without a layer. candidates: tasks whose entries are new. seconds: by part of the stage.
    unlearned: the institutions that left at its start. learning: see Timing.learning_processor. rejected: the
    scores under candidates that a canary failed, if any; only their canaries and decodes count.
    """

    number: int
    task: str
    holders: tuple[str, ...]
    parameters: int
    candidates: tuple[str, ...] = ()
    seconds: dict[str, float]
    unlearned: tuple[Unlearned, ...] = ()
    learning: float | None = None
    rejected: StageScores | None = None


@dataclass(frozen=True, kw_only=True)
class Stage(Learned):
    """A whole stage: one learned task, and the scores after it."""

    scores: StageScores


@dataclass(frozen=True)
class State:
    """Everything that the server knows after half a stage; server.run.state keeps it on disk.

    zero_shot: scores of the frozen backbone. stages: the finished ones. held: the bank's entries. layer: the
    shared layer of methods with one layer for all tasks. counters: Counters.as_dict of the federation.
    members: as last seen. seconds: of the run so far. learned: the stage that is to be evaluated, if any.
    files: SHA-256 of the files that hold zero_shot and the stages.
    """

    zero_shot: StageScores
    stages: tuple[Stage, ...]
    bank: Bank
    held: tuple[Held, ...]
    layer: LearnedLayer | None
    counters: Mapping[str, Any]
    members: Mapping[str, Member]
    seconds: float
    learned: Learned | None = None
    files: tuple[str, ...] = ()


def first_state(federation: Federation) -> State:
    """Stage 0: an empty bank, and all scores with the frozen backbone."""
    bank = Bank.open(federation.folder.path / "bank", create=True)
    if digest := frame_named(federation.scenario.router):
        FRAMES.keep(FRAMES.data(digest, FRAMES.here), bank.frames)  # a bank works without this machine
    roll_back(bank, ())
    scores = evaluate(federation, 0, bank)
    return State(scores, (), bank, (), None, **memory_of(federation))


def learn_stage(federation: Federation, state: State) -> State:
    """The first half of a stage: unlearn the institutions that leave, and learn one task.

    No institution has seen the new entry yet. Once the result is on disk, the entry never changes.
    """
    number = len(state.stages) + 1
    task = federation.scenario.stream[number - 1]
    method, clock = method_of(federation.scenario.method), Clock()
    federation.discover()

    unlearned = unlearn(federation, number, state.bank, state.held)
    if unlearned:
        clock.lap("unlearn")

    bank, layer, holders, new = learn_task(federation, state, number, task, clock)
    anew = [name for left in unlearned for name in left.retrained if name in bank]
    learned = Learned(
        number=number,
        task=task,
        holders=holders,
        parameters=sum(weights.size for weights in layer.weights.values()) if layer else 0,
        candidates=(*anew, *([task] if new else [])) if method.routes else (),
        seconds=clock.seconds,
        unlearned=tuple(unlearned),
        learning=clock.processor,
    )
    return replace(
        state,
        bank=bank,
        held=held_by(bank, federation),
        layer=layer if method.shared else None,
        learned=learned,
        **memory_of(federation),
    )


def evaluate_stage(federation: Federation, state: State) -> State:
    """The second half of a stage: evaluate all institutions under the bank.

    If a canary fails the new entries, the stage is not finished: the returned state, without these entries,
    is to be saved and evaluated again. Institutions with noisy scores are not asked twice, because their
    budget covers one evaluation per stage.
    """
    learned, bank, clock = state.learned, state.bank, Clock()
    assert learned is not None
    if learned.rejected is not None:
        withdraw(federation, bank, learned.candidates)
        roll_back(bank, state.held)
    candidates = learned.candidates if learned.rejected is None else ()
    scores = evaluate(federation, learned.number, bank, candidates, spare_noisy=learned.rejected is not None)
    clock.lap("evaluate")
    seconds = {
        **learned.seconds,
        "evaluate": learned.seconds.get("evaluate", 0.0) + clock.seconds["evaluate"],
    }
    if quarantine_by_canary(federation, bank, candidates, learned.number, scores):
        return replace(
            state,
            held=tuple(item for item in state.held if item.task not in candidates),
            learned=replace(learned, seconds=seconds, rejected=scores),
            **memory_of(federation),
        )
    if (before := learned.rejected) is not None:
        scores = replace(scores, canary=before.canary, decodes=before.decodes + scores.decodes)
    unlearned = tuple(without(leaver, bank) for leaver in learned.unlearned)
    known = {**vars(learned), "seconds": seconds, "unlearned": unlearned, "rejected": None}
    return replace(
        state,
        stages=(*state.stages, Stage(**known, scores=scores)),
        held=held_by(bank, federation),
        learned=None,
        **memory_of(federation),
    )


def roll_back(bank: Bank, held: tuple[Held, ...], *, unlearning: bool = False) -> None:
    """Remove the entries that the state on disk does not name, of an interrupted stage or rejected ones.

    Raises RunError if an entry of the state is missing.

    Args:
        held: the bank's entries in the state.
        unlearning: whether an interrupted unlearning may have removed some, which would remove them again.
    """
    bank.sweep()  # of an interrupted unlearning
    known = {item.task for item in held}
    for task in bank.tasks:
        if task not in known:
            bank.remove(task)
    lost = [item.task for item in held if item.task not in bank.tasks and not (unlearning and item.leaves)]
    if lost:
        raise RunError(f"{bank.folder}: the entry of {lost[0]} is missing since the run stopped; start anew")


def memory_of(federation: Federation) -> dict[str, Any]:
    """The part of a state that the federation holds."""
    return {
        "counters": federation.counters.as_dict(),
        "members": dict(federation.members),
        "seconds": federation.folder.elapsed,
    }


def learn_task(
    federation: Federation, state: State, number: int, task: str, clock: Clock
) -> tuple[Bank, LearnedLayer | None, tuple[str, ...], bool]:
    """Learn the task's layer, router and threshold as the method says, and add its entry to the bank.

    Returns the bank; the layer, trained in this stage or kept from earlier ones; the institutions that
    trained in this stage; and whether the bank has a new entry of the task.
    """
    method, folder, bank = method_of(federation.scenario.method), federation.folder, state.bank
    if not method.learns:
        return bank, state.layer, (), False
    trained = learn_layer(federation, number, task, bank, state.layer)
    clock.lap("align")
    layer, holders = trained or state.layer, trained.holders if trained else ()
    if layer is None:
        folder.event(
            "refused",
            f"stage {number} {task}: no valid layer arrived; the other institutions use the identity",
            stage=number,
            task=task,
        )
        return bank, None, (), False
    if method.shared:
        # Entries never change, but the shared layer does in every stage: therefore one bank per stage.
        bank = Bank.open(folder.path / "bank" / f"stage-{number}", create=True)
        roll_back(bank, ())  # of an interrupted stage
        bank.add(entry_of(federation, number, SHARED, layer, {}, None))
        return bank, layer, holders, False
    router, threshold = learn_router(federation, number, task, layer.holders)
    clock.lap("router")
    admitted = admit(folder, bank, entry_of(federation, number, task, layer, router, threshold), number)
    if not layer.improved:
        folder.event(
            "fallback",
            f"stage {number} {task}: the layer does not beat frozen SAM on its holders' "
            "validation images; the task falls back to the identity",
            stage=number,
            task=task,
        )
    return bank, layer, holders, admitted


class Clock:
    """Measures the seconds of each part of a stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last, self._began = time.monotonic(), time.process_time()

    def lap(self, name: str) -> None:
        """End the part that began at the last lap."""
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now

    @property
    def processor(self) -> float:
        """Processor seconds of this process since the stage began."""
        return round(time.process_time() - self._began, 3)
