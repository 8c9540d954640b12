"""How much noise an institution adds, and how many rounds its budget can pay.

The scenario sets how private training is done. The institution's policy sets how much may be spent. If the
scenario sets no noise, the smallest noise is used with which the scenario's rounds and the router fit the
whole budget.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

from casam_core.config.named_parts import ROUTERS
from casam_core.config.policy import LearnedPolicy, Policy
from casam_core.config.scenario import PrivacySpec, Scenario
from casam_core.privacy.accounting import Mechanism, affordable, calibrate, round_mechanism
from casam_core.privacy.private_scores import scores_mechanism
from casam_core.protocol.outcomes import Outcome, RefusalError


def leaves_noisy(learned: LearnedPolicy) -> bool:
    """Whether this part leaves with noise."""
    return learned.share == "yes" and learned.noise == "dp"


def learning_noise(scenario: Scenario, policy: Policy) -> float:
    """Noise multiplier of a training round; a router uses `privacy.router_ratio` times this value.

    Raises RefusalError (budget-spent) if no noise fits the budget.
    """
    spec = scenario.privacy
    if spec.noise_multiplier is not None:
        return spec.noise_multiplier
    assert policy.budget.epsilon is not None  # a policy with noise has a budget
    assert policy.budget.delta is not None
    with named_refusal():
        return _learning_noise(
            spec.model_dump_json(),
            scenario.training.rounds if leaves_noisy(policy.adapter) else 0,
            noisy_router(scenario, policy),
            policy.budget.epsilon,
            policy.budget.delta,
        )


@contextlib.contextmanager
def named_refusal() -> Iterator[None]:
    """Turn the error "no noise fits the budget" into the refusal budget-spent."""
    try:
        yield
    except ValueError as error:
        raise RefusalError(Outcome.BUDGET_SPENT, f"policy.budget: {error}") from error


@lru_cache(maxsize=256)
def _learning_noise(spec_json: str, rounds: int, router: str | None, epsilon: float, delta: float) -> float:
    spec = PrivacySpec.model_validate_json(spec_json)
    return calibrate(lambda scale: one_task(spec, rounds, router, scale), epsilon, delta)


def one_task(spec: PrivacySpec, rounds: int, router: str | None, noise: float) -> list[Mechanism]:
    """All mechanisms of learning one task. router: its kind; None if it leaves without noise."""
    return [round_mechanism(spec, noise)] * rounds + description(spec, router, noise)


def description(spec: PrivacySpec, router: str | None, noise: float) -> list[Mechanism]:
    """All mechanisms of one task's router (client/dp/noisy_router.py)."""
    private = ROUTERS[router].private if router is not None else None
    if private is None:  # the router leaves without noise, or it has no private version and cannot leave
        return []
    return [private.mechanism(spec, noise), scores_mechanism(spec.router_ratio * noise)]


def noisy_router(scenario: Scenario, policy: Policy) -> str | None:
    """The router's kind if it leaves with noise, else None."""
    return scenario.router.kind if leaves_noisy(policy.router) else None


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
    budget = policy.budget
    try:
        noise = learning_noise(scenario, policy)
    except RefusalError:
        return 0
    assert budget.epsilon is not None
    assert budget.delta is not None
    router = one_task(scenario.privacy, 0, noisy_router(scenario, policy), noise)
    return affordable(
        [*spent, *router],
        [round_mechanism(scenario.privacy, noise)],
        budget.epsilon,
        budget.delta,
        scenario.training.rounds,
    )
