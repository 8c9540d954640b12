"""How much noise an institution adds, and how many rounds its budget can pay.

The scenario sets how private training is done. The institution's policy sets how much may be spent. A task's
router gets the smallest noise at which it costs its share of epsilon. If the scenario sets no noise for
training, the smallest noise is used with which the scenario's rounds and the router fit the whole budget.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

from casam_core.config.named_parts import ROUTERS, RouterSpec
from casam_core.config.policy import LearnedPolicy, Policy
from casam_core.config.scenario import PrivacySpec, Scenario
from casam_core.privacy.accounting import Mechanism, affordable, calibrate, round_mechanism
from casam_core.privacy.private_scores import scores_mechanism
from casam_core.privacy.subspace_training import subspace_mechanisms
from casam_core.protocol.outcomes import Outcome, RefusalError

SMALL_EPSILON = 1.0
"""Up to this budget, a router of few images needs nearly all of it, and a layer learns next to nothing."""


def leaves_noisy(learned: LearnedPolicy) -> bool:
    """Whether this part leaves with noise."""
    return learned.share == "yes" and learned.noise == "dp"


def learning_noise(scenario: Scenario, policy: Policy) -> float:
    """Noise multiplier of a training round.

    Raises RefusalError (budget-spent) if no noise fits the budget.
    """
    if scenario.privacy.noise_multiplier is not None:
        return scenario.privacy.noise_multiplier
    router = router_mechanisms(scenario, policy)
    with named_refusal():
        return _learning_noise(scenario.privacy, scenario.training.rounds, tuple(router), *budget_of(policy))


def layer_round(spec: PrivacySpec, noise: float, *, fresh: bool) -> dict[str, Mechanism]:
    """What one round of training costs, by the name of its lines in the ledger.

    fresh: the round starts from new weights.
    """
    if spec.method == "subspace":
        return subspace_mechanisms(spec, noise, fresh=fresh)
    return {"align": round_mechanism(spec, noise)}


def layer_rounds(spec: PrivacySpec, noise: float, rounds: int) -> list[dict[str, Mechanism]]:
    """What each of the rounds of one task costs (`layer_round`)."""
    return [layer_round(spec, noise, fresh=number == 0) for number in range(rounds)]


def router_noise(scenario: Scenario, policy: Policy) -> float:
    """Noise multiplier of a task's router; of each of its releases.

    Raises RefusalError (budget-spent) if no noise fits the budget.
    """
    epsilon, delta = budget_of(policy)
    share = 1.0
    if leaves_noisy(policy.adapter):
        share = scenario.privacy.router_share or (0.9 if epsilon <= SMALL_EPSILON else 0.5)
    # Beside a sampled layer the router is composed in Rényi divergences, so it must fit its share there.
    beside = layer_round(scenario.privacy, 1.0, fresh=True).values()
    exact = not leaves_noisy(policy.adapter) or all(m.sample_rate == 1 for m in beside)
    with named_refusal():
        return _router_noise(scenario.privacy, scenario.router, share * epsilon, delta, exact)


def router_mechanisms(scenario: Scenario, policy: Policy) -> list[Mechanism]:
    """What the router of one task costs; nothing if it does not leave with noise.

    Raises RefusalError (budget-spent) if no noise fits the budget.
    """
    if not leaves_noisy(policy.router) or ROUTERS[scenario.router.kind].private is None:
        return []
    return description(scenario.privacy, scenario.router, router_noise(scenario, policy))


def layer_costs(scenario: Scenario, policy: Policy) -> list[tuple[str, Mechanism]]:
    """What the layer of one task costs in all rounds, with the names of the ledger's lines; nothing if it
    does not leave with noise.

    Raises RefusalError (budget-spent) if no noise fits the budget.
    """
    if not leaves_noisy(policy.adapter):
        return []
    rounds = layer_rounds(scenario.privacy, learning_noise(scenario, policy), scenario.training.rounds)
    return [cost for of_round in rounds for cost in of_round.items()]


def budget_of(policy: Policy) -> tuple[float, float]:
    """(epsilon, delta) for training."""
    assert policy.budget.epsilon is not None  # a policy with noise has a budget
    assert policy.budget.delta is not None
    return policy.budget.epsilon, policy.budget.delta


@contextlib.contextmanager
def named_refusal() -> Iterator[None]:
    """Turn the error "no noise fits the budget" into the refusal budget-spent."""
    try:
        yield
    except ValueError as error:
        raise RefusalError(Outcome.BUDGET_SPENT, f"policy.budget: {error}") from error


@lru_cache(maxsize=256)
def _learning_noise(
    spec: PrivacySpec, rounds: int, router: tuple[Mechanism, ...], epsilon: float, delta: float
) -> float:
    def costs(noise: float) -> list[Mechanism]:
        return [
            *router,
            *(part for of_round in layer_rounds(spec, noise, rounds) for part in of_round.values()),
        ]

    return calibrate(costs, epsilon, delta)


@lru_cache(maxsize=256)
def _router_noise(spec: PrivacySpec, router: RouterSpec, epsilon: float, delta: float, exact: bool) -> float:
    return calibrate(lambda noise: description(spec, router, noise), epsilon, delta, exact=exact)


def description(spec: PrivacySpec, router: RouterSpec, noise: float) -> list[Mechanism]:
    """All mechanisms of one task's router: its statistics and, unless all tasks have one threshold, the
    scores from which its threshold follows (client/dp/noisy_router.py)."""
    private = ROUTERS[router.kind].private
    assert private is not None
    scores = [] if router.constant is not None else [scores_mechanism(noise)]
    return [private.mechanism(spec, noise), *scores]


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


def affordable_rounds(scenario: Scenario, policy: Policy, spent: Sequence[Mechanism]) -> int:
    """How many of the scenario's rounds of one task fit the budget, besides `spent` and the router."""
    try:
        noise, router = learning_noise(scenario, policy), router_mechanisms(scenario, policy)
    except RefusalError:
        return 0
    return affordable(
        [*spent, *router],
        [of_round.values() for of_round in layer_rounds(scenario.privacy, noise, scenario.training.rounds)],
        *budget_of(policy),
    )
