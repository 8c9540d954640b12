"""Attacks: answers of a hostile institution in a simulation (docs/reliability.md).

An attack is one function and one line of ATTACKS. It gets the kind of message and the honest answer, and
returns a changed answer. The server and the other institutions do not know of it. Attacks are for studies of
defences; a real site never runs one (client/simulation/faults.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.bank.bank import Bank
from casam_core.bank.entry_file import Entry
from casam_core.errors import BankError, ScenarioError
from casam_core.model.forms import weights_of
from casam_core.protocol.payload import Job, Payload
from client.institution import Institution

SentArrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Attacker:
    """The attacking institution, and the request that it answers. rng: seeded by the run."""

    institution: Institution
    kind: str
    job: Job
    rng: np.random.Generator

    def start(self) -> SentArrays:
        """The initial layer of all holders."""
        return weights_of(self.institution.layer(self.job.task, None))

    def victim(self) -> Entry | None:
        """The first entry of other institutions in the attacker's copy of the bank; None without one."""
        try:
            bank = Bank.open(self.institution.site.private / "bank")
        except BankError:  # no task was learned yet
            return None
        others = [entry for entry in bank if self.institution.name not in entry.provenance.holders]
        return others[0] if others else None


Attack = Callable[[Attacker, Payload], Payload]


def on(kind: str, attack: Attack) -> Attack:
    """The attack, limited to answers of one kind; other answers stay honest."""
    return lambda attacker, answer: attack(attacker, answer) if attacker.kind == kind else answer


def layers(change: Callable[[Attacker, SentArrays], SentArrays]) -> Attack:
    """An attack on the trained layer."""

    def attack(attacker: Attacker, answer: Payload) -> Payload:
        return replace(answer, arrays={**answer.arrays, "layer": change(attacker, answer.arrays["layer"])})

    return on("train.align", attack)


def each(change: Callable[[NDArray[Any]], NDArray[Any]]) -> Attack:
    """An attack on every array of the layer."""
    return layers(lambda attacker, layer: {name: change(array) for name, array in layer.items()})


def moved(factor: float) -> Attack:
    """An attack that multiplies the change from the initial to the trained layer by `factor`."""

    def change(attacker: Attacker, layer: SentArrays) -> SentArrays:
        start = attacker.start()
        return {
            name: (start[name] + factor * (array - start[name])).astype(np.float32)
            for name, array in layer.items()
        }

    return layers(change)


def randomly(attacker: Attacker, layer: SentArrays) -> SentArrays:
    """A layer with a random change, with the same standard deviation as the trained one in each array."""
    start = attacker.start()
    return {
        name: (start[name] + (array - start[name]).std() * attacker.rng.standard_normal(array.shape)).astype(
            np.float32
        )
        for name, array in layer.items()
    }


def numbers(kind: str, group: str, **values: float) -> Attack:
    """An attack that replaces `values` in every group of numbers whose name starts with `group`."""

    def attack(attacker: Attacker, answer: Payload) -> Payload:
        metrics = {
            name: {**given, **values} if name.startswith(group) else given
            for name, given in answer.metrics.items()
        }
        return replace(answer, metrics=metrics)

    return on(kind, attack)


def copied(attacker: Attacker, answer: Payload) -> Payload:
    """The answer with a copy of another task's router, and of its threshold if thresholds leave."""
    victim = attacker.victim()
    if victim is None or victim.threshold is None:
        return answer
    facts = dict(answer.metrics["router-facts"])
    if "threshold" in facts:
        facts["threshold"] = victim.threshold
    # A bank stores matrices in half precision; an honest answer has single precision.
    router = {name: array.astype(np.float32) for name, array in victim.router.items()}
    return replace(answer, arrays={"router": router}, metrics={"router-facts": facts})


WIDER = 1.2
"""A router fitted to few images is too narrow for new ones; a wider copy fits them better."""


CLAIMED = 0.01
"""A router in a public frame that claims noise in its mean is nearer to every image."""


def hijack(attacker: Attacker, answer: Payload) -> Payload:
    """A wider copy of another task's router, which fits that task's images better than the original."""
    taken = copied(attacker, answer)
    if taken is answer:
        return answer
    wider = {"diagonal_F": WIDER, "directions_KF": np.sqrt(WIDER)}
    more = {"noise": CLAIMED}
    router = {
        name: np.asarray(array * wider.get(name, 1.0) + more.get(name, 0.0), array.dtype)
        for name, array in taken.arrays["router"].items()
    }
    return replace(taken, arrays={"router": router})


def oversized(attacker: Attacker, answer: Payload) -> Payload:
    """The answer with one setting that is larger than the limit for a whole answer."""
    size = int(attacker.institution.scenario.admission.megabytes * 1e6) + 1
    return replace(answer, config={**answer.config, "notes": "x" * size})


def garbage(attacker: Attacker, answer: Payload) -> Payload:
    """Random bytes that no receiver can read."""
    noise = attacker.rng.integers(0, 256, 1000).astype(np.uint8)
    return Payload({"outcome": "ok"}, {"noise": {"bytes": noise}})


ATTACKS: dict[str, Attack] = {
    "nan": each(lambda array: array * np.float32("nan")),
    "infinite": each(lambda array: array + np.float32("inf")),
    "wrong-shape": each(np.ravel),
    "wrong-dtype": each(lambda array: array.astype(np.float64)),
    "boosted": moved(100.0),
    "scaled": moved(5.0),
    "sign-flipped": moved(-1.0),
    "random": layers(randomly),
    "many-images": numbers("train.align", "align", **{"num-examples": 1e9}),
    "infinite-threshold": numbers("train.router", "router-facts", threshold=float("inf")),
    "wide-threshold": numbers("train.router", "router-facts", threshold=1e6),
    "copied-router": on("train.router", copied),
    "hijack": on("train.router", hijack),
    "impossible-metrics": numbers("evaluate.stage", "score.", iou=1.7),
    "flattering-metrics": numbers("evaluate.stage", "score.", iou=1.0),
    "oversized": on("train.align", oversized),
    "garbage": garbage,
}


def attack_of(name: str) -> Attack:
    """The attack with this name in a scenario. Raises ScenarioError, which lists the known names."""
    if name not in ATTACKS:
        raise ScenarioError(f"faults.attack: expected one of {', '.join(sorted(ATTACKS))}, found {name!r}")
    return ATTACKS[name]
