"""What a hostile institution of a simulation sends in place of its answers (docs/reliability.md).

An attack is one function and one line of ATTACKS. It sees the kind of message and the honest answer, and
changes what it is about; the server and the other institutions are not told. For studies of defences: a real
site never plays one (client/simulation/faults.py).
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

Group = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Attacker:
    """Who attacks, in answer to what. rng: seeded by the run."""

    institution: Institution
    kind: str
    job: Job
    rng: np.random.Generator

    def start(self) -> Group:
        """The layer that everybody's training began from."""
        return weights_of(self.institution.layer(self.job.task, None))

    def victim(self) -> Entry | None:
        """The first entry of others in the attacker's copy of the bank."""
        try:
            bank = Bank.open(self.institution.site.private / "bank")
        except BankError:  # nothing was learned yet
            return None
        others = [entry for entry in bank if self.institution.name not in entry.provenance.holders]
        return others[0] if others else None


Attack = Callable[[Attacker, Payload], Payload]


def on(kind: str, attack: Attack) -> Attack:
    """The attack on answers of one kind; all others stay honest."""
    return lambda attacker, answer: attack(attacker, answer) if attacker.kind == kind else answer


def layers(change: Callable[[Attacker, Group], Group]) -> Attack:
    """An attack on the trained layer."""

    def attack(attacker: Attacker, answer: Payload) -> Payload:
        return replace(answer, arrays={**answer.arrays, "layer": change(attacker, answer.arrays["layer"])})

    return on("train.align", attack)


def each(change: Callable[[NDArray[Any]], NDArray[Any]]) -> Attack:
    """An attack on every array of the layer."""
    return layers(lambda attacker, layer: {name: change(array) for name, array in layer.items()})


def moved(factor: float) -> Attack:
    """The way from the beginning to the trained layer, so many times as far."""

    def change(attacker: Attacker, layer: Group) -> Group:
        start = attacker.start()
        return {
            name: (start[name] + factor * (array - start[name])).astype(np.float32)
            for name, array in layer.items()
        }

    return layers(change)


def randomly(attacker: Attacker, layer: Group) -> Group:
    """As far as the trained layer, in a direction that means nothing."""
    start = attacker.start()
    return {
        name: (start[name] + (array - start[name]).std() * attacker.rng.standard_normal(array.shape)).astype(
            np.float32
        )
        for name, array in layer.items()
    }


def numbers(kind: str, group: str, **values: float) -> Attack:
    """Other numbers in one group, or in all whose name begins so."""

    def attack(attacker: Attacker, answer: Payload) -> Payload:
        metrics = {
            name: {**given, **values} if name.startswith(group) else given
            for name, given in answer.metrics.items()
        }
        return replace(answer, metrics=metrics)

    return on(kind, attack)


def copied(attacker: Attacker, answer: Payload) -> Payload:
    """Another task's router and threshold as one's own."""
    victim = attacker.victim()
    if victim is None or victim.threshold is None:
        return answer
    facts = {**answer.metrics["router-facts"], "threshold": victim.threshold}
    # A bank keeps matrices in half precision, which no honest answer has.
    router = {name: array.astype(np.float32) for name, array in victim.router.items()}
    return replace(answer, arrays={"router": router}, metrics={"router-facts": facts})


WIDER = 1.2
"""A router of few images is too narrow for new ones: a wider copy fits them better than the original."""


def hijack(attacker: Attacker, answer: Payload) -> Payload:
    """A copy of another task's router that fits the task's images better than its own, and takes any."""
    taken = copied(attacker, answer)
    if taken is answer:
        return answer
    wider = {"diagonal_F": WIDER, "directions_KF": np.sqrt(WIDER)}
    router = {
        name: np.asarray(array * wider.get(name, 1.0), array.dtype)
        for name, array in taken.arrays["router"].items()
    }
    return replace(taken, arrays={"router": router})


def oversized(attacker: Attacker, answer: Payload) -> Payload:
    """One setting that is larger than any answer may be."""
    size = int(attacker.institution.scenario.admission.megabytes * 1e6) + 1
    return replace(answer, config={**answer.config, "notes": "x" * size})


def garbage(attacker: Attacker, answer: Payload) -> Payload:
    """What no side knows how to read."""
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
    """The attack a scenario names. Raises ScenarioError listing the known ones."""
    if name not in ATTACKS:
        raise ScenarioError(f"faults.attack: expected one of {', '.join(sorted(ATTACKS))}, found {name!r}")
    return ATTACKS[name]
