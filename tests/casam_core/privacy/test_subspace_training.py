"""Training along the directions of a public library: its cost, its plan, and what it learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario, TrainingSpec
from casam_core.model.examples import Example
from casam_core.model.forms import Weights, build_layer, form_spec, set_weights, weights_of
from casam_core.model.layer_library import LIBRARIES, LayerLibrary
from casam_core.model.training import Learner, decode_batch, draw_instances, train_layer
from casam_core.privacy.accounting import Mechanism, epsilon_of
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.subspace_training import (
    SubspaceSteps,
    kept_share,
    planned_steps,
    subspace_mechanisms,
)
from casam_core.privacy.units import single_images
from casam_core.seeding import Draws, numpy_generator
from client.dp.plan import TaskPlan
from tests.banks import picture, random_library, tiny_backbone
from tests.conftest import tiny_table

SPEC = TrainingSpec(instances=1)
IMAGES, DESCENT = 6, 3


def library(clip: float = 0.5) -> LayerLibrary:
    return replace(LIBRARIES.get(random_library("scale_shift"), LIBRARIES.here), clip=clip)


def examples() -> list[Example]:
    labels = np.zeros((48, 64), np.int32)
    labels[10:30, 12:36] = 1
    z_BCHW = tiny_backbone().encode([picture("polyp", seed) for seed in range(IMAGES)])
    return [Example(z_CHW, labels) for z_CHW in z_BCHW]


def trained(noise: float, seed: int = 0, *, clip: float = 0.5, count: int = DESCENT) -> dict[str, np.ndarray]:
    """The weights after one round."""
    layer = build_layer(form_spec("scale_shift"), tiny_backbone().geometry.channels, 0)
    source, draws = NoiseSource.seeded(seed), Draws(0, ("test",))
    steps = SubspaceSteps(single_images(IMAGES), count, library(clip), noise, source, draws, fresh=True)
    train_layer(
        layer,
        tiny_backbone(),
        examples(),
        SPEC,
        learning_rate=1.0,
        rng=numpy_generator(0),
        progress=lambda done, total: None,
        steps=steps,
    )
    return weights_of(layer)


def test_a_round_costs_a_start_steps_and_an_end_and_later_ones_no_start() -> None:
    once, steps = Mechanism(2.0), Mechanism(2.0, steps=3)
    assert subspace_mechanisms(3, 2.0, fresh=True) == {"start": once, "align": steps, "end": once}
    assert subspace_mechanisms(3, 2.0, fresh=False) == {"align": steps, "end": once}
    assert subspace_mechanisms(0, 2.0, fresh=True) == {"end": once}


def test_where_noise_would_hide_the_gradients_there_is_no_step() -> None:
    """The noise of one of n steps rises with the square root of n."""
    for units, steps in ((240, 8), (24, 4), (8, 0)):
        assert planned_steps(lambda n: 1.5 * n**0.5, units) == steps


def test_without_a_step_the_images_choose_between_frozen_sam_and_the_public_start() -> None:
    public, ends = library(), [trained(0.5, seed, count=0) for seed in range(4)]
    starts = [public.start(name) for name in ("identity", "joint")]
    assert all(any(equal(end, start) for start in starts) for end in ends)


def equal(one: dict[str, np.ndarray], other: Weights) -> bool:
    return all(np.array_equal(one[name], value) for name, value in other.items())


@pytest.mark.parametrize("method", ["dp_sgd", "subspace"])
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0, 8.0])
def test_all_rounds_and_the_router_together_use_the_budget_and_do_not_pass_it(
    epsilon: float, method: str
) -> None:
    table = tiny_table(privacy={"method": method, "library": "0" * 64}, training={"rounds": 3})
    scenario = Scenario.model_validate(table)
    policy = Policy.model_validate(
        {
            "adapter": {"noise": "dp"},
            "router": {"noise": "dp"},
            "metrics": "never",
            "budget": {"epsilon": epsilon, "delta": 1e-3},
        }
    )
    plan = TaskPlan(scenario, policy, units=24)
    costs = plan.layer_costs
    steps, none = ("align", "end"), ("end",)
    rounds = {"dp_sgd": {("align",) * 3}, "subspace": {("start", *steps * 3), none * 3}}[method]
    assert tuple(name for name, _ in costs) in rounds
    together = [*(cost for _, cost in costs), *plan.router_mechanisms]
    assert 0.98 * epsilon < epsilon_of(together, 1e-3) <= epsilon
    assert plan.affordable_rounds([]) == 3
    assert plan.affordable_rounds([Mechanism(1.0)]) < 3


def test_the_layer_ends_on_the_way_that_the_library_allows() -> None:
    """The difference to a start lies in the span of the directions."""
    public, weights = library(), trained(noise=0.02)
    ends = [
        np.concatenate([(weights[key] - public.start(name)[key]).ravel() for key in public.free])
        for name in public.names
    ]
    flat_KD = public.flat_directions
    outside = [np.linalg.norm(end - end @ flat_KD.T @ flat_KD) for end in ends]
    assert min(outside) < 1e-4


def test_equal_noise_gives_equal_bits_and_other_noise_another_layer() -> None:
    one, same, other = trained(1.0), trained(1.0), trained(1.0, seed=1)
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_a_way_with_little_noise_lowers_the_loss_of_the_training_images() -> None:
    layer = build_layer(form_spec("scale_shift"), tiny_backbone().geometry.channels, 0)
    learner = Learner(layer, tiny_backbone(), examples(), SPEC, 1.0, numpy_generator(0))
    draws, public = Draws(0, ("test",)), replace(library(), clip=1e-5)  # gradients here are that small
    noise = NoiseSource.seeded(0)
    steps = SubspaceSteps(single_images(IMAGES), DESCENT, public, 0.01, noise, draws, fresh=False)
    start = public.start("identity")
    *_, way_K = steps.descend(learner, start)

    def loss(along: float) -> float:
        set_weights(layer, public.moved(start, along * way_K))
        total = 0.0
        for number, example in enumerate(examples()):
            drawn = draw_instances(example, learner.backbone, SPEC, "box", numpy_generator(number))
            assert drawn is not None
            total += decode_batch(layer, learner.backbone, [drawn]).overlap_loss().item()
        return total

    assert min(loss(0.2), loss(0.6), loss(1.0)) < loss(0.0)


def test_a_gradient_that_is_mostly_noise_is_hardly_used() -> None:
    assert kept_share(16, 0.0) == 1.0
    assert kept_share(16, 0.125) == pytest.approx(0.5)
    assert kept_share(16, 1.0) < 0.02
