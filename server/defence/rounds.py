"""What of a round of training counts: whose layers, and whether they are enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from casam_core.bank.bank import Bank
from casam_core.errors import RunError
from casam_core.protocol.messages import AlignReply
from server.defence.admission import ENOUGH, Layer, distance, peers_in, too_far
from server.federation.federation import Federation
from server.federation.gathering import Gathered

SECURE_SUM = ""
"""Stands for all its members, of whom nobody sees a layer alone; no institution has this name."""


def admitted(
    federation: Federation,
    bank: Bank,
    stage: int,
    task: str,
    gathered: Gathered[AlignReply],
    start: Layer | None,
) -> Gathered[AlignReply]:
    """Those answers whose layers have the form of `start` (without one, that of most) and did not go much
    farther from it than others; the rest is rejected."""
    scenario = federation.scenario
    gathered = of_one_form(federation, stage, gathered, start)
    factor = scenario.admission.norm_factor
    if start is None or factor is None:
        return gathered
    moved = {name: distance(reply.layer, start) for name, reply in gathered.openly.items()}
    if gathered.summed is not None:
        moved[SECURE_SUM] = distance(gathered.summed.layer, start)
    peers = peers_in(bank, scenario, task) if len(moved) < ENOUGH else []
    odd = too_far(moved, peers, factor)
    for name, reason in odd.items():
        for who in gathered.members if name == SECURE_SUM else (name,):
            federation.reject(who, "train.align", stage, reason)
    return without(gathered, odd)


def without(gathered: Gathered[AlignReply], odd: Collection[str]) -> Gathered[AlignReply]:
    """What remains without some answers; where nothing does, asking again would not change it."""
    openly = {name: reply for name, reply in gathered.openly.items() if name not in odd}
    summed = None if SECURE_SUM in odd else gathered.summed
    return Gathered(
        openly=openly,
        summed=summed,
        members=gathered.members if summed is not None else (),
        refused=gathered.refused or bool(odd and not openly and summed is None),
    )


def of_one_form(
    federation: Federation, stage: int, gathered: Gathered[AlignReply], start: Layer | None
) -> Gathered[AlignReply]:
    """Those layers that can be merged: with the names and shapes of `start`, or of most."""

    def form(layer: Layer) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return tuple(sorted((name, array.shape) for name, array in layer.items()))

    forms = {name: form(reply.layer) for name, reply in gathered.openly.items()}
    if not forms:
        return gathered
    usual = form(start) if start is not None else Counter(forms.values()).most_common(1)[0][0]
    odd = [name for name in forms if forms[name] != usual]
    for name in odd:
        federation.reject(name, "train.align", stage, "the layer's arrays are not those of the others")
    return without(gathered, odd)


def too_few(federation: Federation, stage: int, task: str, names: Sequence[str]) -> bool:
    """Whether fewer holders answered than a round needs. Raises RunError where the scenario says stop."""
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
        f"stage {stage} {task}: trained by {found}; the others go on",
        stage=stage,
        task=task,
        holders=list(names),
        quorum=rule.quorum,
    )
    return True
