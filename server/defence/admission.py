"""Admission: checks of each answer alone, of layers against their peers, and of each new entry.

The server checks an answer against the same declarations as the institution's own guard, because a hostile
site has no guard. An admitted answer can still be wrong: docs/reliability.md lists attacks that pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from casam_core.bank.bank import Bank
from casam_core.bank.entry_file import Entry
from casam_core.config.scenario import Scenario
from casam_core.methods import alignment_of
from casam_core.methods import first_layer as build_first_layer
from casam_core.model.backbones import channels_of
from casam_core.model.forms import rank_of, weights_of
from casam_core.model.layer_library import LIBRARIES
from casam_core.protocol.limits import Allowed, AnswerError
from casam_core.protocol.messages import (
    ENVELOPE,
    Layer,
    RouterReply,
    RouterRequest,
    Sender,
    allowed_in,
    layer_spec,
    router_forms,
)
from casam_core.protocol.payload import Job, Payload
from casam_core.protocol.secure_sum import (
    EXCHANGE_SETTINGS,
    SECURE_SUM,
    SHARE_KEYS,
    UNMASK,
    SecureReply,
    SecureRequest,
    fault_in,
)
from casam_core.protocol.wire import unpacked
from server.federation.directory import Member

K = TypeVar("K")


def check_answer(
    scenario: Scenario, member: Member, kind: str, asked: Payload, payload: Payload, size: int
) -> None:
    """Raise AnswerError for a result of another form, size or range than an honest site's guard allows, or if
    it does not answer the request. asked: the request. size: bytes of the serialised answer."""
    most = int(scenario.admission.megabytes * 1e6)
    if size > most:
        raise AnswerError(f"{size} bytes: expected at most {most} (admission.megabytes)")
    if kind == SECURE_SUM:
        return check_exchange(scenario, asked, payload)
    channels = channels_of(scenario.backbone.name)
    sender = Sender(scenario, member.holdings, member.policy, channels, None, Job.of(asked), asked.config)
    allowed_in(kind, sender).check(payload)
    if kind == RouterReply.kind:
        try:
            reply = RouterReply.of(payload)
        except (KeyError, TypeError, ValueError) as error:
            raise AnswerError(f"router: {error} is missing or has another form") from error
        check_description(sender, RouterRequest.of(asked), reply)


def check_exchange(scenario: Scenario, asked: Payload, payload: Payload) -> None:
    """Raise AnswerError unless this is a member's part of the exchange that was asked for, in its form."""
    Allowed({**ENVELOPE, **EXCHANGE_SETTINGS}).check(Payload(payload.config))
    request = SecureRequest.of(asked)
    names = [site.name for site in scenario.institutions]
    own = names.index(request.job.institution) + 1
    try:
        reply = SecureReply.of(payload)
        protocol, told = unpacked(reply.protocol), unpacked(request.protocol)
        fault = fault_in(reply.step, protocol, reply.names)
    except Exception as error:  # reading unknown bytes can raise any exception
        raise AnswerError("train: not an exchange of a secure sum") from error
    if (reply.summed, reply.step) != (request.summed, request.step):
        raise AnswerError(f"train: expected {request.summed} {request.step}")
    due: list[int] | None = None
    if reply.step == SHARE_KEYS:
        due = [number for number, name in enumerate(names, 1) if name in request.members and number != own]
    elif reply.step == UNMASK:
        due = [*cast(list[int], told["active_nids"]), *cast(list[int], told["dead_nids"])]
    found = cast(list[int], protocol.get("dsts", protocol.get("nids", [])))
    if fault is None and due is not None and sorted(found) != sorted(due):
        fault = "expected a share for every member"
    if fault is not None:
        raise AnswerError(f"train {reply.step}: {fault}")


def check_description(sender: Sender, asked: RouterRequest, reply: RouterReply) -> None:
    """Raise AnswerError unless the reply holds what was asked: a fitted router with its threshold if the task
    has one holder, else the statistics of all folds."""
    finished, statistics = router_forms(sender)
    (finished if asked.alone else statistics).check("router", reply.router)
    if not reply.answers(asked, sender.scenario):
        raise AnswerError("router: expected a threshold if the task has one holder, else all folds")
    for part in () if asked.alone else (reply.router, *reply.folds):
        # The count is the reply's weight among the holders, so it must not exceed the images.
        if not 0 < part["count"][0] <= reply.images:
            raise AnswerError(f"router: expected a count of 1..{reply.images} images")


ENOUGH = 3
"""Minimum number of holders in a round whose layers are compared with each other. With two layers, it is open
which one is the outlier."""


def too_far(distances: Mapping[K, float], peers: Iterable[float], factor: float | None) -> dict[K, str]:
    """The layers that moved much farther than their peers: {key of `distances`: reason}.

    Args:
        distances: from start to trained layer, in this round.
        peers: distances of other tasks' layers of the same form, used if fewer than ENOUGH holders answer; at
            least two are needed.
        factor: the largest allowed ratio to the median; None: no limit.
    """
    if factor is None:
        return {}
    known = list(distances.values()) if len(distances) >= ENOUGH else list(peers)
    if len(known) < 2:
        return {}
    usual = median(known)
    return {
        name: f"the layer moved {distance:.3g}, {distance / usual:.0f} times as far as its peers"
        for name, distance in distances.items()
        if usual > 0 and distance > factor * usual
    }


def first_layer(scenario: Scenario, task: str) -> Layer | None:
    """The initial layer of every holder; None if it is a part of SAM, which the server does not load."""
    spec, channels = alignment_of(scenario, task), channels_of(scenario.backbone.name)
    if layer_spec(spec, channels, None).open:
        return None
    return weights_of(build_first_layer(scenario, task, channels, libraries=LIBRARIES.here))


def distance(layer: Layer, start: Layer) -> float:
    """Euclidean distance over all weights together."""
    return float(
        np.sqrt(sum(np.square(layer[name].astype(np.float64) - start[name]).sum() for name in start))
    )


def peers_in(bank: Bank, scenario: Scenario, task: str) -> list[float]:
    """Distances from start to trained layer, for tasks in the bank whose layers have the same form.

    If the task is learned again, its old layer is one of them.
    """
    spec = alignment_of(scenario, task)
    found = []
    for entry in bank:
        alike = (entry.provenance.form, entry.provenance.rank) == (spec.form, rank_of(spec))
        if entry.task not in scenario.stream or not alike:
            continue
        start = first_layer(scenario, entry.task)
        if start is not None:
            found.append(distance(entry.layer, start))
    return found


def fault_of(entry: Entry, bank: Bank) -> str | None:
    """Why an entry must be quarantined at once: it copies an entry of other holders. None if it does not.

    The old entry of the same task counts, too: a layer learned with a holder that left must not come back.
    """
    for other in bank:
        if other.provenance.holders == entry.provenance.holders:
            continue
        for part in ("layer",) if other.task == entry.task else ("layer", "router"):
            mine, theirs = getattr(entry, part), getattr(other, part)
            trained = part == "router" or entry.provenance.form != "identity"
            if mine and trained and mine.keys() == theirs.keys() and same(mine, theirs):
                return f"its {part} is a copy of {other.task}'s"
    return None


def same(one: Mapping[str, NDArray[np.generic]], other: Mapping[str, NDArray[np.generic]]) -> bool:
    """Whether two groups of arrays of equal names are equal to the last bit."""
    return all(np.array_equal(one[name], other[name]) for name in one)
