"""Faults and attacks of simulated institutions, as the scenario sets them
(casam_core.config.participation.FaultSpec).

They act after the guard, on the answer that is about to leave, as real faults do. A real site never simulates
them.
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
"""Name of the file that marks a simulated institution as gone: it never answers again."""

LATE_SECONDS = 1.0
"""Upper limit of a simulated delay beyond the deadline."""


class LostError(Exception):
    """Ends the handler without an answer; Flower treats this like a dead node."""


@dataclass(frozen=True)
class Role:
    """One institution and the message that it answers, for simulated faults."""

    institution: Institution
    kind: str
    job: Job

    @property
    def spec(self) -> FaultSpec:
        """The institution's faults in the scenario."""
        return self.institution.site.faults

    @property
    def plays(self) -> bool:
        """Whether the institution is simulated and has any faults."""
        return self.institution.site.simulated and self.spec != FaultSpec()


def is_gone(site: Site) -> bool:
    """Whether a simulated institution has left forever."""
    return site.simulated and (site.private / GONE).exists()


def suffer(role: Role, seconds: float) -> None:
    """Delay or lose an answer, as the scenario says. seconds: how long its work took. Raises LostError."""
    spec, job, site = role.spec, role.job, role.institution.site
    deadlines = role.institution.scenario.deadlines
    waited_for = deadlines.train if role.kind.startswith("train") else deadlines.evaluate
    # The server does not wait longer, and a sleeping institution blocks a worker for all others.
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
    """The answer after the institution's attack; unchanged without one, before `attack_at`, or if not ok."""
    spec, job = role.spec, role.job
    result = answer.config.get("outcome", Outcome.OK) == Outcome.OK
    if spec.attack is None or job.stage < spec.attack_at or not result:
        return answer
    seed = role.institution.scenario.seed
    rng = numpy_generator(seed, role.institution.name, "attack", role.kind, job.stage, job.round)
    return attack_of(spec.attack)(Attacker(role.institution, role.kind, job, rng), answer)
