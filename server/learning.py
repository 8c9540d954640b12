"""How one task is learned: its layer, then its router and threshold, from its holders' answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from casam_core.errors import RunError
from casam_core.messages import (
    AlignReply,
    AlignRequest,
    CalibrateReply,
    CalibrateRequest,
    Job,
    RouterReply,
    RouterRequest,
)
from casam_core.routers import Arrays, build_router
from casam_core.threshold import histogram_percentile
from server.aggregation import build_strategy, merge_layers
from server.exchange import results
from server.institutions import Institutions


@dataclass(frozen=True)
class LearnedLayer:
    """The task's layer, who trained it, and on how many images together."""

    weights: Mapping[str, NDArray[np.float32]]
    holders: tuple[str, ...]
    images: int


def learn_layer(institutions: Institutions, stage: int, task: str) -> LearnedLayer:
    """Train at the task's holders for the scenario's rounds; several holders are merged every round.

    Who does not answer a round is left out of it. Raises RunError when a round has no answer at all.
    """
    scenario = institutions.scenario
    strategy = build_strategy(scenario.training.strategy)
    layer: LearnedLayer | None = None
    for server_round in range(1, scenario.training.rounds + 1):
        payloads = {
            name: AlignRequest(
                Job(name, stage, task, server_round), layer.weights if layer else None
            ).to_payload()
            for name in institutions.holders(task)
        }
        answers = institutions.ask("train.align", payloads, deadline=scenario.deadlines.train)
        replies = {name: AlignReply.of(payload) for name, payload in results(answers).items()}
        if not replies:
            raise RunError(f"stage {stage}: no holder of task {task!r} could train; their own logs say why")
        messages = [answer.message for answer in answers.values() if answer.message is not None]
        only = next(iter(replies.values()))
        layer = LearnedLayer(
            # A single holder's weights are the layer: averaging one would only round it.
            weights=only.layer if len(replies) == 1 else merge_layers(strategy, server_round, messages),
            holders=tuple(replies),
            images=sum(reply.images for reply in replies.values()),
        )
        institutions.folder.event(
            "align",
            f"stage {stage} {task}: round {server_round}/{scenario.training.rounds} trained at "
            f"{', '.join(layer.holders)} on {layer.images} images",
            stage=stage,
            task=task,
            round=server_round,
            holders=list(layer.holders),
            images=layer.images,
        )
    assert layer is not None  # a scenario has at least one round
    return layer


def learn_router(
    institutions: Institutions, stage: int, task: str, holders: tuple[str, ...]
) -> tuple[Arrays, float]:
    """(router state, threshold) of the task.

    A single holder finishes both at home. Several send summaries; the server merges them and asks for
    held-out scores under the merged routers as histograms, whose merged percentile is the threshold.
    """
    scenario = institutions.scenario
    alone = len(holders) == 1
    payloads = {name: RouterRequest(Job(name, stage, task), alone=alone).to_payload() for name in holders}
    answers = institutions.ask("train.router", payloads, deadline=scenario.deadlines.train)
    replies = {name: RouterReply.of(payload) for name, payload in results(answers).items()}
    if not replies:
        raise RunError(f"stage {stage}: no holder of task {task!r} could describe its images")
    if alone:
        (reply,) = replies.values()
        if reply.threshold is None:
            raise RunError(f"stage {stage}: the holder of task {task!r} sent no threshold")
        return reply.router, reply.threshold
    router = build_router(scenario.router)
    folds = [
        router.finish(router.merge(parts))
        for parts in zip(*(reply.folds for reply in replies.values()), strict=True)
    ]
    payloads = {name: CalibrateRequest(Job(name, stage, task), folds).to_payload() for name in replies}
    scored = results(institutions.ask("train.calibrate", payloads, deadline=scenario.deadlines.train))
    if not scored:
        raise RunError(f"stage {stage}: no holder of task {task!r} could score its held-out images")
    counts = np.sum([CalibrateReply.of(payload).histogram for payload in scored.values()], axis=0)
    state = router.finish(router.merge([reply.router for reply in replies.values()]))
    return state, histogram_percentile(counts, scenario.router.percentile)
