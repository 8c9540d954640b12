"""The valid part of a round: which layers are admitted, whether there are enough, and which descriptions of a
task a router can be fitted to.

Statistics of the right form can still describe no images: a sum that is too large, or a matrix that is none
of features. Such a reply must not end the run, and not keep the other holders from having a router.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from casam_core.bank.bank import Bank
from casam_core.errors import RunError
from casam_core.protocol.messages import AlignReply, Layer, RouterReply
from casam_core.routing.routers import Arrays, Router
from server.defence.admission import ENOUGH, distance, peers_in, too_far
from server.federation.federation import Federation
from server.federation.gathering import Contribution, Gathered

Parts = Sequence[Contribution[AlignReply]]

Odd = Mapping[tuple[str, ...], str]
"""By the names of a part, why it is rejected."""


def admitted(
    federation: Federation,
    bank: Bank,
    stage: int,
    task: str,
    gathered: Gathered[AlignReply],
    start: Layer | None,
) -> Gathered[AlignReply]:
    """The replies whose layers have the form of `start` and moved not much farther from it than others.

    The other replies are rejected. Without `start`, layers must have the most frequent form, and distances
    are not compared.
    """
    factor = federation.scenario.admission.norm_factor
    parts = without(federation, stage, gathered.parts, of_other_form(gathered.parts, start))
    if start is not None and factor is not None:
        moved = {part.names: distance(part.reply.layer, start) for part in parts}
        peers = peers_in(bank, federation.scenario, task) if len(moved) < ENOUGH else []
        parts = without(federation, stage, parts, too_far(moved, peers, factor))
    return Gathered(tuple(parts), refused=gathered.refused or (bool(gathered.parts) and not parts))


def without(federation: Federation, stage: int, parts: Parts, odd: Odd) -> Parts:
    """The parts without the odd ones; the answers of the odd parts' institutions are rejected."""
    for names, reason in odd.items():
        for name in names:
            federation.reject(name, "train.align", stage, reason)
    return [part for part in parts if part.names not in odd]


def of_other_form(parts: Parts, start: Layer | None) -> Odd:
    """Layers that cannot be merged: their names or shapes differ from `start`, or from most layers."""

    def form(layer: Layer) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return tuple(sorted((name, array.shape) for name, array in layer.items()))

    forms = {part.names: form(part.reply.layer) for part in parts}
    if not forms:
        return {}
    usual = form(start) if start is not None else Counter(forms.values()).most_common(1)[0][0]
    reason = "the layer's arrays are not those of the others"
    return {names: reason for names, found in forms.items() if found != usual}


def too_few(federation: Federation, stage: int, task: str, names: Sequence[str]) -> bool:
    """Whether fewer holders answered than the quorum.

    Raises RunError in this case if `participation.missing` is "stop".
    """
    rule = federation.scenario.participation
    if len(names) >= rule.quorum:
        return False
    found = f"{len(names)} of {rule.quorum} holders needed (participation.quorum)"
    if rule.missing == "stop":
        if not names:
            raise RunError(f"stage {stage}: no holder of task {task!r} could train; their own logs say why")
        raise RunError(f"stage {stage}: {task!r} was trained by {found}; `casam run --resume` asks again")
    federation.folder.event(
        "skipped",
        f"stage {stage} {task}: trained by {found}; the round does not count",
        stage=stage,
        task=task,
        holders=list(names),
        quorum=rule.quorum,
    )
    return True


def fitted(router: Router, statistics: Sequence[Arrays]) -> Arrays | None:
    """The router of all statistics together; None if it cannot be computed or is not finite."""
    with np.errstate(all="ignore"), contextlib.suppress(ArithmeticError, ValueError, RuntimeError):
        state = router.fit(router.merge(statistics))
        if all(np.isfinite(array).all() for array in state.values()):
            return state
    return None


def fitted_all(router: Router, replies: Sequence[RouterReply]) -> list[Arrays] | None:
    """The router of every fold, and last the router of all images; None if one of them is not finite."""
    parts = [*zip(*(reply.folds for reply in replies), strict=True), [reply.router for reply in replies]]
    states = [fitted(router, part) for part in parts]
    whole = [state for state in states if state is not None]
    return whole if len(whole) == len(states) else None


def usable(
    federation: Federation, stage: int, router: Router, described: Gathered[RouterReply]
) -> Gathered[RouterReply]:
    """The replies that a router can be fitted to, each alone. The others are rejected."""
    parts = []
    for part in described.parts:
        if fitted_all(router, [part.reply]) is not None:
            parts.append(part)
            continue
        for name in part.names:
            federation.reject(name, RouterReply.kind, stage, "no router fits the statistics")
    return Gathered(tuple(parts), refused=described.refused)
