"""Faults and attacks that a scenario lets a simulated institution play
(casam_core.config.participation.FaultSpec).

They act where real ones do: behind the guard, on what is under way. A real site never plays any: its faults
are its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from casam_core.config.participation import FaultSpec
from casam_core.protocol.outcomes import Outcome
from casam_core.protocol.payload import Job, Payload
from casam_core.seeding import numpy_generator
from client.evaluation.results import Results
from client.institution import Institution
from client.simulation.adversaries import Attacker, attack_of
from client.site import Site

GONE = "gone"
"""A file of a simulated institution that will never answer again."""

LATE_SECONDS = 1.0
"""By how much an answer misses its deadline at least."""


class LostError(Exception):
    """What Flower makes of it is what it makes of a node that died: no answer comes."""


@dataclass(frozen=True)
class Role:
    """What one institution plays in answer to one message."""

    institution: Institution
    kind: str
    job: Job

    @property
    def spec(self) -> FaultSpec:
        """What goes wrong here."""
        return self.institution.scenario.institution(self.institution.name).faults

    @property
    def plays(self) -> bool:
        """Whether anything can."""
        return self.institution.site.simulated and self.spec != FaultSpec()


def is_gone(site: Site) -> bool:
    """Whether a simulated institution is gone for good."""
    return site.simulated and (site.private / GONE).exists()


def suffer(role: Role, seconds: float) -> None:
    """Be late, be lost or break down with an answer whose work took `seconds`. Raises LostError."""
    spec, job, site = role.spec, role.job, role.institution.site
    deadlines = role.institution.scenario.deadlines
    waited_for = deadlines.train if role.kind.startswith("train") else deadlines.evaluate
    # Nobody waits longer, and a simulated institution that sleeps keeps a worker from all others.
    time.sleep(min(spec.delay + (spec.slow_factor - 1) * seconds, waited_for + LATE_SECONDS))
    if spec.gone_at is not None and job.stage >= spec.gone_at:
        (site.private / GONE).touch()
        raise LostError("gone")
    tries = Results(site.private / "faults.jsonl")
    message = f"{role.kind} {job.stage} {job.task} {job.round}"
    attempt = len(tries.of(message))
    tries.put(message, str(attempt), True)
    if spec.crash_at == job.stage and not tries.of("crash"):
        tries.put("crash", message, True)
        raise LostError("crashed")
    rng = numpy_generator(role.institution.scenario.seed, site.institution, "faults", message, attempt)
    if rng.uniform() < spec.drop_rate:
        raise LostError("lost on its way")


def attacked(role: Role, answer: Payload) -> Payload:
    """What a hostile institution sends in place of a result."""
    spec, job = role.spec, role.job
    result = answer.config.get("outcome", Outcome.OK) == Outcome.OK
    if spec.attack is None or job.stage < spec.attack_at or not result:
        return answer
    seed = role.institution.scenario.seed
    rng = numpy_generator(seed, role.institution.name, "attack", role.kind, job.stage, job.round)
    return attack_of(spec.attack)(Attacker(role.institution, role.kind, job, rng), answer)
