"""The one-run audit of an institution's claims: every private release that its ledger or its policy names.

The canaries are synthetic; the mechanisms, their noise and their number are the institution's own. So the
audit needs no images, and it works before a run (from the policy) and after it (from the ledger). The claims
are those of the same mechanisms at the audit's own delta: that of a policy is too large for many canaries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from casam_bench.bench import table_of
from casam_bench.membership.audit_lines import COLUMNS, Audits, Line, facts_of
from casam_bench.membership.canaries import Release, audit_release, layer_release, sum_release, together
from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.privacy.accounting import Mechanism, epsilon_of
from client.dp.plan import TaskPlan, evaluations, metrics_noise
from client.release.ledger import Ledger
from client.site import Site

FEWEST = 1000
"""Fewer canaries prove nothing about usual claims."""
RELEASES = {"align": "layer", "scores": "threshold", "evaluate": "metrics", "canary": "canary answers"}
"""A kind of the ledger in words, where its own word is not clear."""
CHOICES = ("start", "end")
"""Kinds in ledgers of earlier versions: one number out of few, about which canaries prove next to nothing."""
SPLITS = {"train": "training images", "val": "validation images", "test": "test images"}


@dataclass(frozen=True)
class Claimed:
    """A private release of a dataset's split. kind: as in the ledger."""

    split: str
    kind: str
    mechanism: Mechanism


def claims_of_ledger(site: Site) -> list[Claimed]:
    """By split, the releases of the dataset that cost most; empty without a ledger."""
    spends = Ledger(site.ledger).lines() if site.ledger.is_file() else []
    datasets: dict[tuple[str, str], list[Claimed]] = {}
    for spend in spends:
        claimed = Claimed(spend.split, spend.kind, spend.mechanism)
        datasets.setdefault((spend.split, spend.dataset), []).append(claimed)
    worst: dict[str, list[Claimed]] = {}
    for (split, _), claims in datasets.items():
        worst[split] = max(claims, worst.get(split, []), key=cost)
    return [claimed for claims in worst.values() for claimed in claims]


def cost(claims: Sequence[Claimed]) -> float:
    """For comparisons: the sum of what these mechanisms cost, at a fixed delta."""
    return epsilon_of([claimed.mechanism for claimed in claims], 1e-5)


PLANNED = 24
"""Images of a task for which a policy's plan is audited."""


def claims_of_policy(scenario: Scenario, policy: Policy) -> Iterator[Claimed]:
    """The private releases that learning one task and all evaluations of this scenario will need, if the task
    has PLANNED images: of folders that are elsewhere the number is not known.

    Raises RefusalError if no noise fits the policy's budget.
    """
    if policy.private:
        plan = TaskPlan(scenario, policy, PLANNED)
        yield from (Claimed("train", "align", cost) for cost in plan.layer_costs)
        for kind, mechanism in zip(("router", "scores"), plan.router_mechanisms, strict=False):
            yield Claimed("train", kind, mechanism)
    if policy.metrics == "noisy":
        once = Mechanism(metrics_noise(scenario, policy))
        yield from (Claimed("test", "evaluate", once) for _ in range(evaluations(scenario, policy)))


def audit_claims(claims: Mapping[str, Sequence[Claimed]], canaries: int, seed: int) -> Audits:
    """By institution: a line per kind of release, and a line for all releases of the same images together.

    Institutions without a private release are left out.
    """
    delta = 0.5 / canaries
    found = {}
    for name, of_site in claims.items():
        lines: list[Line] = []
        for split in dict.fromkeys(claimed.split for claimed in of_site):
            releases = tuple(releases_of([claimed for claimed in of_site if claimed.split == split]))
            if len(releases) > 1:
                releases += (together(f"all of {SPLITS.get(split, split)}", releases),)
            lines += [audit_release(release, canaries, delta, seed) for release in releases]
        if lines:
            found[name] = lines
    return found


def releases_of(claims: Sequence[Claimed]) -> Iterator[Release]:
    """One release per kind and noise; equal mechanisms of one kind become one with the steps of all."""
    steps: dict[tuple[str, float, float], int] = {}
    for claimed in claims:
        if claimed.kind in CHOICES:
            continue
        cost = claimed.mechanism
        key = (claimed.kind, cost.noise_multiplier, cost.sample_rate)
        steps[key] = steps.get(key, 0) + cost.steps
    for (kind, noise_multiplier, sample_rate), count in steps.items():
        mechanism = Mechanism(noise_multiplier, sample_rate, count)
        make = layer_release if kind == "align" or sample_rate < 1 else sum_release
        yield make(RELEASES.get(kind, kind), mechanism)


def table_of_audits(audits: Audits) -> Table:
    """One row per audited release."""
    title = "One-run privacy audit: what worst-case canaries prove about epsilon, at 95 %"
    table = table_of(title, ("institution", *COLUMNS), left=2)
    for name, lines in audits.items():
        for line in lines:
            table.add_row(name, *facts_of(line))
    return table


def refuted(audits: Audits) -> list[str]:
    """Claims that an audit refuted, with one line each."""
    return [
        f"{name}, {line.release}: epsilon is {line.at_least:.2f} or more (95 %), "
        f"the claim is {line.claim:.2f}"
        for name, lines in audits.items()
        for line in lines
        if line.refuted
    ]
