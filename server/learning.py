"""How one task is learned: its layer, then its router and threshold, from its holders' answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from casam_core.bank.bank import Bank
from casam_core.bank.entries import make_entry
from casam_core.bank.entry_file import Entry
from casam_core.errors import RunError, ScenarioError
from casam_core.methods import Importance, method_of
from casam_core.protocol.messages import (
    AlignReply,
    AlignRequest,
    CalibrateReply,
    CalibrateRequest,
    RouterReply,
    RouterRequest,
)
from casam_core.protocol.payload import Job
from casam_core.routing.routers import Arrays, build_router
from casam_core.routing.threshold import histogram_threshold
from server.aggregation import build_strategy, merge_layers
from server.defence.admission import first_layer
from server.defence.rounds import admitted, too_few
from server.federation.federation import Federation
from server.federation.gathering import gather


@dataclass(frozen=True)
class LearnedLayer:
    """A layer, who trained it in any round of the stage, on how many images together, and what later
    tasks must not disturb. improved: whether it beats frozen SAM at any holder that could say."""

    weights: Mapping[str, NDArray[np.float32]]
    holders: tuple[str, ...]
    images: int
    importance: Importance | None = None
    improved: bool = True


def learn_entry(federation: Federation, stage: int, task: str, bank: Bank, *, now: int) -> Entry | None:
    """Layer, router and threshold of a task with an entry of its own; None when nobody shares a layer.

    stage: of the stream, which all seeds know. now: a later stage where the task is learned anew.
    """
    layer = learn_layer(federation, stage, task, bank, now=now)
    if layer is None:
        return None
    router, threshold = learn_router(federation, stage, task, layer.holders)
    return entry_of(federation, stage, task, layer, router, threshold)


def entry_of(
    federation: Federation,
    stage: int,
    task: str,
    layer: LearnedLayer,
    router: Arrays,
    threshold: float | None,
) -> Entry:
    """What was learned, as an entry."""
    return make_entry(
        federation.scenario,
        federation.directory.backbone,
        task=task,
        stage=stage,
        layer=layer.weights,
        improved=layer.improved,
        holders=layer.holders,
        images=layer.images,
        router=router,
        threshold=threshold,
    )


def learn_layer(
    federation: Federation,
    stage: int,
    task: str,
    bank: Bank,
    before: LearnedLayer | None = None,
    *,
    now: int | None = None,
) -> LearnedLayer | None:
    """Train where the method says, for the scenario's rounds; several replies are merged every round.

    bank: what was learned before. before: the layer that methods with a shared one start from. now: see
    learn_entry. Who does not answer a round, or not as it should, is left out of it. None when nobody may be
    asked or nobody's answer counts; what happens below the quorum says the scenario (server.defence.rounds).
    """
    scenario, members = federation.scenario, federation.members
    method = method_of(scenario.method)
    strategy = build_strategy(scenario.training.strategy)
    trainers = method.trainers(federation.cohort(stage, task, now or stage))
    if scenario.training.strategy != "fedavg":
        hidden = [name for name in trainers if members[name].policy.adapter.aggregation == "secagg"]
        if hidden:
            raise ScenarioError(
                f"training.strategy: {scenario.training.strategy} looks at each layer, and {hidden[0]} "
                "shares its own in secure sums only; use fedavg"
            )
    importance = before.importance if before else None
    layer = before
    trained_on: dict[str, int] = {}
    if not trainers:
        return None
    for server_round in range(1, scenario.training.rounds + 1):
        payloads = {
            name: AlignRequest(
                job=Job(name, stage, task, server_round),
                layer=layer.weights if layer else None,
                tasks=tasks if tasks != (task,) else (),
                anchor=before.weights if method.penalty and before else None,
                importance=importance if method.penalty else None,
                pooled=method.pools,
                again=now is not None and now > stage,
            ).to_payload()
            for name, tasks in trainers.items()
        }
        gathered = gather(
            federation,
            "train.align",
            payloads,
            AlignReply.of,
            learned="adapter",
            deadline=scenario.deadlines.train,
        )
        start = layer.weights if layer else first_layer(scenario, task)
        gathered = admitted(federation, bank, stage, task, gathered, start)
        replies = gathered.replies
        if gathered.refused or too_few(federation, stage, task, gathered.names):
            # In a later round the rounds before it stand: who trained them shared them.
            return layer if trained_on else None
        trained_on |= {name: reply.images for name, reply in gathered.openly.items()}
        trained_on |= {name: members[name].holdings[task].train for name in gathered.members}
        layer = LearnedLayer(
            # A single holder's weights are the layer: averaging one would only round it.
            weights=replies[0].layer if len(replies) == 1 else merge_layers(strategy, server_round, replies),
            holders=tuple(name for name in trainers if name in trained_on),
            images=sum(trained_on.values()),
            importance=add_importance(importance, replies),
            improved=any(reply.improved is not False for reply in replies),
        )
        images = sum(reply.images for reply in replies)
        federation.folder.event(
            "align",
            f"stage {stage} {task}: round {server_round}/{scenario.training.rounds} trained at "
            f"{', '.join(gathered.names)} on {images} images"
            + (f", {len(gathered.members)} of them in a secure sum" if gathered.members else ""),
            stage=stage,
            task=task,
            round=server_round,
            holders=list(gathered.names),
            summed=list(gathered.members),
            images=images,
        )
    assert layer is not None  # a scenario has at least one round
    return layer


def add_importance(before: Importance | None, replies: Sequence[AlignReply]) -> Importance | None:
    """Importance summed over tasks; within a task, the holders' mean weighted by images."""
    given = [(reply.images, reply.importance) for reply in replies if reply.importance is not None]
    if not given:
        return before
    images = sum(count for count, _ in given)
    return {
        name: np.asarray(
            (before[name] if before else 0) + sum(count / images * part[name] for count, part in given),
            np.float32,
        )
        for name in given[0][1]
    }


def learn_router(
    federation: Federation, stage: int, task: str, holders: tuple[str, ...]
) -> tuple[Arrays, float | None]:
    """(router state, threshold) of the task; nothing and None where no holder shares it.

    A single holder finishes both at home. Several send summaries; the server merges them and asks for
    held-out scores under the merged routers as histograms, whose merged percentile is the threshold.
    """
    scenario = federation.scenario
    alone = len(holders) == 1
    deadline = scenario.deadlines.train
    described = gather(
        federation,
        "train.router",
        {name: RouterRequest(Job(name, stage, task), alone=alone).to_payload() for name in holders},
        RouterReply.of,
        learned="router",
        deadline=deadline,
    )
    replies = described.replies
    if described.refused:
        return {}, None
    if not replies:
        return undescribed(federation, stage, task, "describe its images")
    if alone:
        return replies[0].router, replies[0].threshold
    router = build_router(scenario.router)
    folds = [
        router.fit(router.merge(parts)) for parts in zip(*(reply.folds for reply in replies), strict=True)
    ]
    scored = gather(
        federation,
        "train.calibrate",
        {name: CalibrateRequest(Job(name, stage, task), folds).to_payload() for name in described.names},
        CalibrateReply.of,
        learned="router",
        deadline=deadline,
    ).replies
    if not scored:
        return undescribed(federation, stage, task, "score its held-out images")
    counts = np.sum([reply.histogram for reply in scored], axis=0)
    state = router.fit(router.merge([reply.router for reply in replies]))
    return state, histogram_threshold(counts, scenario.router)


def undescribed(federation: Federation, stage: int, task: str, what: str) -> tuple[Arrays, None]:
    """A task that no holder could describe is used by its name alone. Raises RunError where the scenario says
    stop (participation.missing)."""
    if federation.scenario.participation.missing == "stop":
        raise RunError(f"stage {stage}: no holder of task {task!r} could {what}")
    federation.folder.event(
        "skipped",
        f"stage {stage} {task}: no holder could {what}; the entry is used by its name alone",
        stage=stage,
        task=task,
    )
    return {}, None
