"""The order of a private release: reserve its cost, compute, store, and only then send.

A release that was stored is sent again byte for byte when it is asked for again; one that was lost between
keeps its cost and is drawn anew. That is the same after a crash, a lost reply and a repeated request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from casam_core.errors import PolicyError
from casam_core.files import write_atomic
from casam_core.privacy.accounting import Mechanism, epsilon_of
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.units import units_of
from casam_core.protocol.audit import audit_log, now
from casam_core.protocol.messages import Forecast
from casam_core.protocol.payload import EPSILON_METRICS, EPSILON_TRAIN, Job, Payload, Scalar, digest_of
from casam_core.protocol.wire import deserialise, from_records, serialise, to_records
from client.data.splits import Part
from client.dp.plan import affordable_rounds
from client.institution import Institution
from client.release.ledger import Ledger, Spend, of_dataset
from client.release.refusals import BudgetSpentError, DeltaTooLargeError
from client.site import Site

LEDGER_LINES = "ledger"
"""Key of an audit line's `epsilon` that counts the ledger's lines at that time."""


def release_once(
    institution: Institution,
    job: Job,
    kind: str,
    request: Payload,
    *,
    split: str,
    mechanisms: dict[str, Mechanism],
    units: dict[str, int],
    compute: Callable[[NoiseSource], Payload],
) -> Payload:
    """What leaves in answer to `request`, paid for once.

    mechanisms, units: by task whose images are used, the cost and the number of units.
    Raises BudgetSpentError before anything is computed, DeltaTooLargeError, PolicyError.
    """
    folder = releases_of(institution.site)
    for path in folder.glob(f"{kind}-{digest_of(request)}-*.bin"):
        return from_records(deserialise(path.read_bytes()))
    for task, mechanism in mechanisms.items():
        reserve(institution, kind, task, split, mechanism, units[task])
    payload = compute(noise_for(institution, job, kind))
    folder.mkdir(mode=0o700, exist_ok=True)
    name = f"{kind}-{digest_of(request)}-{digest_of(payload)}.bin"
    write_atomic(folder / name, serialise(to_records(payload)))
    return payload


def units_held(institution: Institution, task: str, part: Part) -> list[list[int]]:
    """What the policy protects in one split of a task: indices of the images of every unit."""
    samples = institution.task(task).split.part(part)
    return units_of([s.group or s.id for s in samples], institution.site.policy.budget.unit)


def releases_of(site: Site) -> Path:
    """Where private releases of this run are kept."""
    return site.private / "releases"


def was_paid_for(site: Site, payload: Payload) -> bool:
    """Whether these arrays and numbers are a stored private release, to the last bit."""
    bare = digest_of(Payload({}, payload.arrays, payload.metrics))
    return any(releases_of(site).glob(f"*-{bare}.bin"))


def noise_for(institution: Institution, job: Job, kind: str) -> NoiseSource:
    """From the operating system; a simulation's can be repeated, and protects nobody."""
    if not institution.site.simulated:
        return NoiseSource.from_system()
    seed = institution.scenario.seed
    return NoiseSource.seeded(seed, institution.name, job.stage, job.round, "noise", kind, job.task)


def reserve(
    institution: Institution, kind: str, task: str, split: str, mechanism: Mechanism, units: int
) -> None:
    """Pay for one release of `task`'s images, or raise."""
    site = institution.site
    budget = site.policy.budget
    epsilon = budget.epsilon if split == "train" else budget.epsilon_metrics
    assert epsilon is not None  # a policy with noise has a budget
    assert budget.delta is not None
    if budget.delta >= 1 / units:
        raise DeltaTooLargeError(
            f"{task}: expected budget.delta below 1 / {units} {budget.unit}s, found {budget.delta:g}"
        )
    spend = Spend(
        time=now(),
        run=site.private.name,
        kind=kind,
        task=task,
        dataset=institution.dataset(task),
        split=split,
        unit=budget.unit,
        noise_multiplier=mechanism.noise_multiplier,
        sample_rate=mechanism.sample_rate,
        steps=mechanism.steps,
    )
    remembered = lines_in_audit(site)
    delta = budget.delta

    def allow(spends: Sequence[Spend]) -> None:
        if len(spends) < remembered:
            raise PolicyError(
                f"{site.ledger}: {len(spends)} lines, but the audit log saw {remembered}: an older ledger "
                "was put back; restore the newest one"
            )
        before = of_dataset(spends, spend.dataset, split)
        if any(s.unit != budget.unit for s in before):
            raise PolicyError(
                f"{site.ledger}: {task} was released per {before[0].unit} before, budget.unit is now "
                f"{budget.unit}; costs of different units cannot be added"
            )
        after = epsilon_of([*(s.mechanism for s in before), mechanism], delta)
        if after > epsilon:
            raise BudgetSpentError(
                f"{task}: this release would make epsilon {after:.2f}, the budget is {epsilon:g}"
            )

    Ledger(site.ledger).reserve(spend, allow)


def lines_in_audit(site: Site) -> int:
    """The most lines of the ledger that any release so far was logged with."""
    counts = [
        line.release.epsilon.get(LEDGER_LINES) or 0
        for line in audit_log(site.audit).lines()
        if line.release.epsilon is not None
    ]
    return int(max(counts, default=0))


def forecasts_of(institution: Institution) -> dict[str, Forecast]:
    """For every task that this institution trains privately, how many of its rounds the budget affords."""
    site, scenario = institution.site, institution.scenario
    spends = Ledger(site.ledger).spends()
    found = {}
    for task in scenario.institution(institution.name).data:
        if task in scenario.stream:
            spent = of_dataset(spends, institution.dataset(task), "train")
            count = affordable_rounds(scenario, site.policy, [s.mechanism for s in spent])
            found[task] = Forecast(count, scenario.training.rounds)
    return found


@dataclass(frozen=True)
class Account:
    """What was spent so far: the worst of the institution's datasets. None: not differentially private."""

    train: float | None
    metrics: float | None
    lines: int

    def config(self) -> dict[str, Scalar]:
        """As settings of a reply; what is None stays away."""
        given = {EPSILON_TRAIN: self.train, EPSILON_METRICS: self.metrics}
        return {key: value for key, value in given.items() if value is not None}

    def logged(self) -> dict[str, float | None]:
        """As an audit line has it."""
        return {"train": self.train, "metrics": self.metrics, LEDGER_LINES: self.lines}


def account_of(institution: Institution) -> Account | None:
    """None for an institution whose policy adds no noise anywhere."""
    policy, site = institution.site.policy, institution.site
    if not policy.private and policy.metrics != "noisy":
        return None
    assert policy.budget.delta is not None
    spends, delta = Ledger(site.ledger).spends(), policy.budget.delta
    split = institution.scenario.evaluation.split
    tasks = institution.scenario.institution(institution.name).data

    def worst(part: str) -> float:
        return max(
            epsilon_of([s.mechanism for s in of_dataset(spends, institution.dataset(task), part)], delta)
            for task in tasks
        )

    learned = (policy.adapter, policy.router)
    exact = any(item.share == "yes" and item.noise == "none" for item in learned)
    return Account(
        train=None if exact else worst("train"),
        # Of the split that is measured and the one that canaries look at: each has a budget line of its own.
        metrics=max(worst(split), worst("val")) if policy.metrics == "noisy" else None,
        lines=len(spends),
    )
