"""How an institution's epsilon is divided between the layer and the router of a task."""

from __future__ import annotations

import math
from typing import Any

import pytest

from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.privacy.accounting import Mechanism, epsilon_of
from client.dp.plan import ENOUGH_VARIANCE, HALF, LEAST_SHARE, MOST_SHARE, TaskPlan
from tests.conftest import tiny_table


def plan(
    epsilon: float,
    units: int,
    noisy: tuple[str, ...] = ("adapter", "router"),
    rounds: int = 1,
    **privacy: Any,
) -> TaskPlan:
    scenario = Scenario.model_validate(
        tiny_table(
            privacy={"method": "public_start", "library": "0" * 64, **privacy}, training={"rounds": rounds}
        )
    )
    budget = {"epsilon": epsilon, "delta": 1e-3}
    parts = {part: {"noise": "dp"} for part in noisy}
    return TaskPlan(scenario, Policy.model_validate({**parts, "budget": budget}), units)


def test_the_router_gets_the_noise_that_its_images_need_and_no_more_of_epsilon() -> None:
    """24 images at epsilon 8: noise of 24 x sqrt(0.005) = 1.70 is enough."""
    found = plan(8.0, 24)
    assert found.router_noise == pytest.approx(24 * math.sqrt(ENOUGH_VARIANCE), rel=2e-3)
    assert found.router_share == pytest.approx(epsilon_of(found.router_mechanisms, 1e-3) / 8, rel=5e-3)


def test_more_images_leave_more_to_the_layer() -> None:
    plans = [plan(3.0, units) for units in (12, 24, 50, 100, 1000)]
    shares, noises = [found.router_share for found in plans], [found.layer_noise for found in plans]
    assert shares == sorted(shares, reverse=True)
    assert noises == sorted(noises, reverse=True)
    assert (shares[0], shares[-1]) == (MOST_SHARE, LEAST_SHARE)


def test_at_epsilon_1_with_24_images_the_router_takes_nine_tenths() -> None:
    assert plan(1.0, 24).router_share == MOST_SHARE


@pytest.mark.parametrize("method", ["dp_sgd", "public_start"])
def test_layer_and_router_together_use_the_budget_and_do_not_pass_it(method: str) -> None:
    for epsilon in (0.5, 1.0, 3.0, 8.0):
        for units in (24, 100):
            found = plan(epsilon, units, method=method)
            both = [*found.layer_costs, *found.router_mechanisms]
            assert 0.98 * epsilon < epsilon_of(both, 1e-3) <= epsilon


def test_all_rounds_and_the_router_together_use_the_budget_and_a_spent_part_leaves_fewer_rounds() -> None:
    found = plan(3.0, 24, rounds=3)
    together = [*found.layer_costs, *found.router_mechanisms]
    assert len(found.layer_costs) == 3
    assert 0.98 * 3.0 < epsilon_of(together, 1e-3) <= 3.0
    assert found.affordable_rounds([]) == 3
    assert found.affordable_rounds([Mechanism(1.0)]) < 3


def test_what_a_scenario_says_goes_before_the_plan() -> None:
    assert plan(8.0, 24, plan="half").router_share == HALF
    assert plan(8.0, 24, router_share=0.7).router_share == 0.7
    assert plan(8.0, 24, plan="half", router_share=0.7).router_share == 0.7


def test_what_leaves_without_noise_takes_no_share() -> None:
    assert plan(8.0, 24, ("adapter",)).router_share == 0
    assert plan(8.0, 24, ("adapter",)).router_mechanisms == []
    assert plan(8.0, 24, ("router",)).router_share == 1
    assert plan(8.0, 24, ("router",)).layer_costs == []
