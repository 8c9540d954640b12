"""Common parts of the attack benchmark: sizes, settings, tables, claims."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from casam_bench.bench import Figures, table_of
from casam_bench.membership.statistics import AttackFigures, attack_figures
from casam_bench.privacy.synthetic_site import SEED
from casam_core.seeding import numpy_generator

EPSILONS = (8.0, 3.0, 1.0)
PARTS = 3
"""A shadow trains on a third of all images, as many as the target."""


@dataclass(frozen=True)
class Size:
    """members, others: images of the one large site. shadows: number of layers. sites, small: for routers,
    number of sites and members of each; a site has twice as many others. router_shadows: per site. canaries,
    lone_canaries: of an audit of mechanisms, together and one a site. broken: the epsilons at which broken
    mechanisms are audited, with twice as many canaries; an audit of so many cannot prove more than 8."""

    members: int = 1000
    others: int = 2000
    shadows: int = 3
    sites: int = 50
    small: int = 20
    router_shadows: int = 9
    canaries: int = 100_000
    lone_canaries: int = 10_000
    broken: tuple[float, ...] = (3.0, 2.0, 1.0)


@dataclass(frozen=True)
class Setting:
    """One row. epsilon: the claim; None without noise. noise: the noise multiplier for it."""

    name: str
    epsilon: float | None = None
    noise: float = 0.0


@dataclass(frozen=True)
class Claim:
    """One attack on a release with a claimed epsilon."""

    row: str
    epsilon: float
    outcome: AttackFigures

    @property
    def refuted(self) -> bool:
        """Whether the lower bound is above the claim."""
        return self.outcome.epsilon is not None and self.outcome.epsilon > self.epsilon


Claims = list[Claim]


def claimed(claim: Claim) -> str:
    """The claim and its bound, for messages."""
    return f"{claim.row}: {claim.outcome.epsilon:.2f} or more, claimed {claim.epsilon:g}"


def delta_of(members: int) -> float:
    """A delta below 1 / members, as for a policy."""
    return 0.1 / members


def verdict(score_N: NDArray[np.float64], members: int, delta: float) -> AttackFigures:
    """The figures of an attack. score_N: members first."""
    rng = numpy_generator(SEED, "halves")
    return attack_figures(score_N[:members], score_N[members:], delta=delta, rng=rng)


def attack_table(title: str, *more: str) -> Table:
    """A table without rows."""
    figures = ("AUC", "TPR at 1 % FPR", "epsilon is at least", "could at most show")
    return table_of(title, ("setting", *more, "attack", *figures))


def report(
    table: Table, what: str, setting: Setting, found: dict[str, AttackFigures], claims: Claims, *more: str
) -> Figures:
    """Add a row per attack to the table and its claims to `claims`; return the figures."""
    figures: Figures = {}
    for attack, outcome in found.items():
        vacuous = setting.epsilon is not None and outcome.vacuous(setting.epsilon)
        table.add_row(
            setting.name,
            *more,
            attack,
            f"{outcome.auc:.3f}",
            or_word(outcome.tpr[0.01]),
            or_word(outcome.epsilon),
            or_word(outcome.ceiling) + (" (vacuous)" if vacuous else ""),
        )
        name = f"{what}_{key(setting.name)}_{key(attack)}"
        measured = {"auc": outcome.auc, "tpr_at_1pct_fpr": outcome.tpr[0.01], "epsilon": outcome.epsilon}
        figures |= {f"{figure}_{name}": value for figure, value in measured.items() if value is not None}
        if setting.epsilon is not None:
            claims.append(Claim(f"{what}, {attack}", setting.epsilon, outcome))
    return figures


def key(name: str) -> str:
    """The name of a row or an attack as part of a figure's name."""
    return name.split(" (")[0].replace(",", "").replace(" ", "_").replace("-", "_")


def or_word(value: float | None) -> str:
    """The figure, or the reason why there is none."""
    return "not measurable" if value is None else f"{value:.3f}"
