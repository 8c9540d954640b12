"""How much noise an institution adds, and how many rounds its budget can pay.

The scenario sets how private training is done. The institution's policy sets how much may be spent. Layer and
router of a task are learned from the same images and share epsilon; metrics use other images and have an
epsilon of their own. With `privacy.plan` auto, the router gets no more than it needs: the more images, the
less noise a mean of them has. If the scenario sets no noise for training, the layer gets the smallest noise
with which the scenario's rounds and the router together fit the whole budget.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from casam_core.config.named_parts import ROUTERS, RouterSpec
from casam_core.config.policy import LearnedPolicy, Policy
from casam_core.config.scenario import PrivacySpec, Scenario
from casam_core.privacy.accounting import Mechanism, affordable, calibrate, epsilon_of, round_mechanism
from casam_core.privacy.private_scores import scores_mechanism
from casam_core.protocol.outcomes import Outcome, RefusalError

ENOUGH_VARIANCE = 0.005
"""The variance of the noise on each number of a router's mean, in squares of an image's largest length, with
which a router still recognises its task: from 0.006 on, images of phantoms go to other tasks."""
LEAST_SHARE, MOST_SHARE, HALF = 0.05, 0.9, 0.5
"""The limits of a router's share of epsilon where it is planned; its share with `privacy.plan` half."""


def leaves_noisy(learned: LearnedPolicy) -> bool:
    """Whether this part leaves with noise."""
    return learned.share == "yes" and learned.noise == "dp"


@dataclass(frozen=True)
class TaskPlan:
    """How one task's epsilon is divided, and the noise that follows.

    All properties raise RefusalError (budget-spent) if no noise fits the budget.

    Args:
        units: number of private units of the task's training images, which is public.
    """

    scenario: Scenario
    policy: Policy
    units: int

    @property
    def budget(self) -> tuple[float, float]:
        """(epsilon, delta) for training."""
        assert self.policy.budget.epsilon is not None  # a policy with noise has a budget
        assert self.policy.budget.delta is not None
        return self.policy.budget.epsilon, self.policy.budget.delta

    @property
    def exact(self) -> bool:
        """Whether the router's cost is composed exactly. Beside a sampled layer it is composed in Rényi
        divergences, so it must fit its share there."""
        return not leaves_noisy(self.policy.adapter) or self.scenario.privacy.rate(self.units) == 1

    @cached_property
    def router_share(self) -> float:
        """The share of epsilon that the router alone may cost; 0 if it leaves without noise, 1 if only it
        leaves with noise."""
        scenario, spec = self.scenario, self.scenario.privacy
        if not leaves_noisy(self.policy.router) or ROUTERS[scenario.router.kind].private is None:
            return 0.0
        if not leaves_noisy(self.policy.adapter):
            return 1.0
        if spec.router_share is not None or spec.plan == "half":
            return spec.router_share or HALF
        epsilon, delta = self.budget
        enough = description(spec, scenario.router, math.sqrt(ENOUGH_VARIANCE) * self.units, self.units)
        share = epsilon_of(enough, delta, exact=self.exact) / epsilon
        return min(MOST_SHARE, max(LEAST_SHARE, share))

    @cached_property
    def router_noise(self) -> float:
        """Noise multiplier of the task's router; of each of its releases."""
        epsilon, delta = self.budget
        spec, share = self.scenario.privacy, self.router_share or 1.0
        with named_refusal():
            return _router_noise(spec, self.scenario.router, self.units, share * epsilon, delta, self.exact)

    @cached_property
    def router_mechanisms(self) -> list[Mechanism]:
        """What the router of the task costs; nothing if it does not leave with noise."""
        if not self.router_share:
            return []
        return description(self.scenario.privacy, self.scenario.router, self.router_noise, self.units)

    @cached_property
    def layer_noise(self) -> float:
        """Noise multiplier of a training round."""
        spec, rounds = self.scenario.privacy, self.scenario.training.rounds
        if spec.noise_multiplier is not None:
            return spec.noise_multiplier
        with named_refusal():
            return _layer_noise(spec, rounds, self.units, tuple(self.router_mechanisms), *self.budget)

    @property
    def layer_round(self) -> Mechanism:
        """What a round of training costs."""
        return round_mechanism(self.scenario.privacy, self.layer_noise, self.units)

    @property
    def layer_costs(self) -> list[Mechanism]:
        """What the layer of the task costs, a round after the other; nothing if it leaves without noise."""
        noisy = leaves_noisy(self.policy.adapter)
        return [self.layer_round] * self.scenario.training.rounds if noisy else []

    def affordable_rounds(self, spent: Sequence[Mechanism]) -> int:
        """How many of the scenario's rounds fit the budget, besides `spent` and the router."""
        try:
            rounds, router = [self.layer_round] * self.scenario.training.rounds, self.router_mechanisms
        except RefusalError:
            return 0
        return affordable([*spent, *router], rounds, *self.budget)


@contextlib.contextmanager
def named_refusal() -> Iterator[None]:
    """Turn the error "no noise fits the budget" into RefusalError (budget-spent)."""
    try:
        yield
    except ValueError as error:
        raise RefusalError(Outcome.BUDGET_SPENT, f"policy.budget: {error}") from error


@lru_cache(maxsize=256)
def _layer_noise(
    spec: PrivacySpec, rounds: int, units: int, router: tuple[Mechanism, ...], epsilon: float, delta: float
) -> float:
    def costs(noise: float) -> list[Mechanism]:
        return [*router, *[round_mechanism(spec, noise, units)] * rounds]

    return calibrate(costs, epsilon, delta)


@lru_cache(maxsize=256)
def _router_noise(
    spec: PrivacySpec, router: RouterSpec, units: int, epsilon: float, delta: float, exact: bool
) -> float:
    return calibrate(lambda noise: description(spec, router, noise, units), epsilon, delta, exact=exact)


def description(spec: PrivacySpec, router: RouterSpec, noise: float, units: int) -> list[Mechanism]:
    """All mechanisms of one task's router: its statistics and, unless all tasks have one threshold, the
    scores from which its threshold follows (client/dp/noisy_router.py). noise: of the statistics, in units of
    what one unit can change. units: how many the task has."""
    private = ROUTERS[router.kind].private
    assert private is not None
    scores = [] if router.constant is not None else [scores_mechanism(noise)]
    return [private.mechanism(spec, noise, units), *scores]


def evaluations(scenario: Scenario, policy: Policy) -> int:
    """Number of evaluations of the institution's test images in this run."""
    return sum(policy.present(stage) for stage in range(len(scenario.stream) + 1))


def metrics_noise(scenario: Scenario, policy: Policy) -> float:
    """Noise multiplier of one evaluation, chosen so that all evaluations of this run fit the budget.

    Raises RefusalError (budget-spent) if no noise fits the budget.
    """
    assert policy.budget.epsilon_metrics is not None  # a policy with noisy metrics has a budget
    assert policy.budget.delta is not None
    times = evaluations(scenario, policy)
    with named_refusal():
        return _metrics_noise(times, policy.budget.epsilon_metrics, policy.budget.delta)


@lru_cache(maxsize=256)
def _metrics_noise(times: int, epsilon: float, delta: float) -> float:
    return calibrate(lambda scale: [Mechanism(scale)] * times, epsilon, delta)
