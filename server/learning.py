"""How one task is learned from its holders' answers: its layer, then its router and threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from casam_core.bank.bank import Bank
from casam_core.bank.entries import make_entry
from casam_core.bank.entry_file import Entry
from casam_core.config.scenario import LOCAL_STRATEGIES, Scenario
from casam_core.errors import RunError, ScenarioError
from casam_core.methods import Importance, alignment_of, method_of
from casam_core.model.forms import changes_sam
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
from server.aggregation import STRATEGIES, build_strategy, control_shifts, merge_layers
from server.defence.admission import first_layer
from server.defence.rounds import admitted, fitted_all, too_few, usable
from server.federation.federation import Federation
from server.federation.gathering import Gathered, gather


@dataclass(frozen=True)
class LearnedLayer:
    """A trained alignment layer. holders: the institutions that trained it in any round of the stage, on
    `images` together. importance: of each weight, for methods that protect weights from later tasks.
    improved: False if every holder reports that the layer does not beat frozen SAM. correction: of the
    decoder's estimates, the mean over the holders that told it, weighted by images."""

    weights: Mapping[str, NDArray[np.float32]]
    holders: tuple[str, ...]
    images: int
    importance: Importance | None = None
    improved: bool = True
    correction: float | None = None


def learn_entry(federation: Federation, stage: int, task: str, bank: Bank, *, now: int) -> Entry | None:
    """Learn a task of an earlier `stage` again at stage `now`, with the seeds of the first time.

    Returns None if no institution shares a layer.
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
    """The bank entry of a learned task."""
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
        correction=layer.correction,
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
    """Train a layer for the scenario's rounds; every round merges the layers of several institutions.

    Institutions with no valid reply are excluded from the round; `participation` decides what happens below
    the quorum (server.defence.rounds).

    Args:
        stage: the stage of the stream that the task belongs to.
        bank: the entries learned so far.
        before: the start layer of methods with one layer for all tasks.
        now: the stage in which the training happens, if the task is learned again.

    Returns:
        The layer after the last valid round. None if no institution may train or no round is valid.

    Raises:
        RunError: too few institutions trained, and `participation.missing` is "stop".
        ScenarioError: the strategy needs single layers, and an institution shares its layer only in sums.
    """
    scenario = federation.scenario
    trainers = method_of(scenario.method).trainers(federation.cohort(stage, now or stage))
    strategy = build_strategy(scenario.training, len(trainers))
    check_strategy(federation, task, trainers)
    layer, images, told = before, dict[str, int](), dict[str, AlignReply]()
    for number in range(1, scenario.training.rounds + 1) if trainers else ():
        job = Job("", stage, task, number)
        again = now is not None and now > stage
        requests = align_requests(scenario, job, trainers, layer, before, again=again)
        for name, shift in control_shifts(told).items():
            requests[name] = replace(requests[name], control=shift)
        gathered = gather(federation, requests, AlignReply)
        start = layer.weights if layer else first_layer(scenario, task)
        gathered = admitted(federation, bank, stage, task, gathered, start)
        if gathered.refused or too_few(federation, stage, task, gathered.names):
            break
        replies = gathered.replies
        images |= images_in(federation, trainers, gathered)
        told |= {part.names[0]: part.reply for part in gathered.parts if part.reply.control}
        layer = LearnedLayer(
            weights=merge_layers(strategy, number, replies, start),
            holders=tuple(name for name in trainers if name in images),
            images=sum(images.values()),
            importance=add_importance(before.importance if before else None, replies),
            improved=any(reply.improved is not False for reply in replies),
            correction=mean_correction(replies),
        )
        report_round(federation, job, gathered)
    # An invalid round does not cancel earlier rounds: their trainers shared those layers.
    return layer if images else None


def check_strategy(federation: Federation, task: str, trainers: Mapping[str, tuple[str, ...]]) -> None:
    """Raise ScenarioError if an institution's policy, or the layer's form, does not go with the strategy."""
    name = federation.scenario.training.strategy
    members = federation.members
    hidden = [site for site in trainers if members[site].policy.adapter.aggregation == "secagg"]
    noisy = [site for site in trainers if members[site].policy.adapter.noise == "dp"]
    form, fault = alignment_of(federation.scenario, task).form, ""
    if hidden and not STRATEGIES[name].means:
        fault = f"needs each single layer, but {hidden[0]} shares its layer only in secure sums"
    elif noisy and name in LOCAL_STRATEGIES:
        fault = f"has no training with noise, but {noisy[0]} shares its layer only with noise"
    elif changes_sam(form) and name in ("scaffold", "fedadam", "fedyogi"):
        fault = f"needs a layer that the server knows, but the form {form!r} changes SAM itself"
    if fault:
        raise ScenarioError(f"training.strategy: {name} {fault}; use fedavg")


def align_requests(
    scenario: Scenario,
    job: Job,
    trainers: Mapping[str, tuple[str, ...]],
    layer: LearnedLayer | None,
    before: LearnedLayer | None,
    *,
    again: bool,
) -> dict[str, AlignRequest]:
    """One round's requests by institution.

    Args:
        trainers: by institution, the tasks that it trains on.
        layer: the start of the round.
        before: the start of the stage; the anchor of methods with a penalty.
        again: whether the task is learned again in a later stage.
    """
    method = method_of(scenario.method)
    anchor = before if method.penalty else None
    request = AlignRequest(
        job,
        layer=layer.weights if layer else None,
        anchor=anchor.weights if anchor else None,
        importance=anchor.importance if anchor else None,
        pooled=method.pools,
        again=again,
    )
    return for_trainers(request, trainers)


def for_trainers(asked: AlignRequest, trainers: Mapping[str, tuple[str, ...]]) -> dict[str, AlignRequest]:
    """The request for each trainer. trainers: by institution, the tasks that it trains on."""
    own = (asked.job.task,)
    return {
        name: replace(asked, job=replace(asked.job, institution=name), tasks=() if tasks == own else tasks)
        for name, tasks in trainers.items()
    }


def images_in(
    federation: Federation, trainers: Mapping[str, tuple[str, ...]], gathered: Gathered[AlignReply]
) -> dict[str, int]:
    """By institution, the images it trained on in a round; from the directory for members of a secure sum."""
    return {
        name: sum(federation.members[name].holdings[task].train for task in trainers[name])
        if part.summed
        else part.reply.images
        for part in gathered.parts
        for name in part.names
    }


def report_round(federation: Federation, job: Job, gathered: Gathered[AlignReply]) -> None:
    """One event and one line about a valid round."""
    images = sum(reply.images for reply in gathered.replies)
    summed = f", {len(gathered.summed)} of them in a secure sum" if gathered.summed else ""
    federation.folder.event(
        "align",
        f"stage {job.stage} {job.task}: round {job.round}/{federation.scenario.training.rounds} trained at "
        f"{', '.join(gathered.names)} on {images} images{summed}",
        stage=job.stage,
        task=job.task,
        round=job.round,
        holders=list(gathered.names),
        summed=list(gathered.summed),
        images=images,
    )


def mean_correction(replies: Sequence[AlignReply]) -> float | None:
    """The mean correction of the holders that told one, weighted by images."""
    told = [(reply.correction, reply.images) for reply in replies if reply.correction is not None]
    if not told:
        return None
    corrections, images = zip(*told, strict=True)
    return float(np.average(corrections, weights=images))


def add_importance(before: Importance | None, replies: Sequence[AlignReply]) -> Importance | None:
    """Importance summed over tasks; within a task, the mean over holders, weighted by images."""
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
    """(router state, threshold) of a task; ({}, None) if no holder shares a router.

    A single holder fits both itself. Several holders send sufficient statistics; the server merges them and
    asks for histograms of held-out scores under the merged routers. The threshold is a percentile of the sum
    of these histograms. If the scenario has one threshold for all tasks, nobody is asked for one.

    Raises:
        RunError: no holder answered, and `participation.missing` is "stop".
    """
    scenario = federation.scenario
    alone, constant = len(holders) == 1, scenario.router.constant
    requests = {name: RouterRequest(Job(name, stage, task), alone=alone) for name in holders}
    described = gather(federation, requests, RouterReply)
    replies = described.replies
    if described.refused:
        return {}, None
    if not replies:
        return without_router(federation, stage, task, "describe its images")
    if alone:
        return replies[0].router, replies[0].threshold if constant is None else constant
    router = build_router(scenario.router)
    states = fitted_all(router, replies)
    if states is None:
        described = usable(federation, stage, router, described)
        states = fitted_all(router, described.replies) if described.parts else None
    if states is None:
        return without_router(federation, stage, task, "describe its images")
    *folds, state = states
    if constant is not None:
        return state, constant
    held_out = {name: CalibrateRequest(Job(name, stage, task), folds) for name in described.names}
    scored = gather(federation, held_out, CalibrateReply).replies
    if not scored:
        return without_router(federation, stage, task, "score its held-out images")
    return state, histogram_threshold(added(scored), scenario.router)


def added(scored: Sequence[CalibrateReply]) -> NDArray[np.int64]:
    """The sum of the holders' histograms."""
    counts: NDArray[np.int64] = np.sum([reply.histogram for reply in scored], axis=0)
    return counts


def without_router(federation: Federation, stage: int, task: str, missing: str) -> tuple[Arrays, None]:
    """({}, None), with an event: the entry gets no router and is used by its name alone.

    Raises RunError if `participation.missing` is "stop". missing: what the holders could not do.
    """
    if federation.scenario.participation.missing == "stop":
        raise RunError(f"stage {stage}: no holder of task {task!r} could {missing}")
    federation.folder.event(
        "skipped",
        f"stage {stage} {task}: no holder could {missing}; the entry is used by its name alone",
        stage=stage,
        task=task,
    )
    return {}, None
