"""The router in a public frame: its score by hand, its sums, its noise, its stack."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from casam_core.config.scenario import BackboneSpec, PrivacySpec, Scenario
from casam_core.errors import ScenarioError
from casam_core.privacy.accounting import Mechanism
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.private_sum import PrivateSum
from casam_core.privacy.units import Units, single_images, units_of
from casam_core.routing.public_frames import FRAMES
from casam_core.routing.routers import Arrays, PublicFrameSpec
from casam_core.routing.routers.public_frame import (
    PRIVATE,
    WIDER,
    PublicFrameRouter,
    log_distances,
    read_by_place,
)
from casam_core.seeding import Draws
from casam_use.router_stack import PublicFrameStack
from tests.banks import random_frame
from tests.conftest import tiny_table

WIDTH = 16


@pytest.fixture
def router() -> PublicFrameRouter:
    return PublicFrameRouter(PublicFrameSpec(frame=random_frame(WIDTH)), FRAMES.here)


def features(count: int, seed: int = 0) -> Tensor:
    return 1 + torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def noisy(
    router: PublicFrameRouter, f_NF: Tensor, multiplier: float, units: Units | None = None, seed: int = 0
) -> Arrays:
    make = PRIVATE.prepare(router, PrivacySpec(), lambda: [])
    return make(
        f_NF,
        units or single_images(len(f_NF)),
        noise_multiplier=multiplier,
        draws=Draws(0, ("test",)),
        noise=NoiseSource.seeded(seed),
    )


def test_a_score_by_hand() -> None:
    """Differences of 0.3 and 0.4, spreads of 3 x 0.01: squares of 3 and 16/3, mean 25/6."""
    u_K, mean_TK = np.array([0.3, 0.5]), np.array([[0.0, 0.1]])
    (score,) = log_distances(u_K, mean_TK, np.array([0.0]), np.float32([0.01, 0.01]))
    assert WIDER == 3
    assert score == pytest.approx(0.5 * math.log(25 / 6), abs=1e-6)


def test_a_score_with_noise_by_hand() -> None:
    """Scatter 3 x 0.01 = 0.03 and noise 0.06: kept 1/3, added 2/3, variance of the distance
    (2 x 0.06^2 + 4 x 0.06 x 0.03) / 0.09^2 / 2 = 8/9, so the spread is sqrt(8). The distance is 25/18."""
    u_K, mean_TK = np.array([0.3, 0.5]), np.array([[0.0, 0.1]])
    (score,) = log_distances(u_K, mean_TK, np.array([0.06]), np.float32([0.01, 0.01]))
    spread = math.sqrt(8)
    debiased = (25 / 18 - 2 / 3) * 3 + 0.5 * spread
    assert score == pytest.approx(0.5 * math.log((debiased + math.hypot(debiased, spread)) / 2), abs=1e-6)


def test_the_score_of_an_image_is_expected_to_be_the_same_with_and_without_noise() -> None:
    """An image at twice the scatter, in 64 axes, under means with much noise and with none."""
    rng, scatter_K = np.random.default_rng(0), np.full(64, 0.004, np.float32)
    u_K = np.sqrt(2 * WIDER * scatter_K.astype(np.float64)) * rng.choice([-1, 1], 64)
    (alone,) = log_distances(u_K, np.zeros((1, 64)), np.zeros(1), scatter_K)
    for noise in (0.002, 0.014):
        mean_TK = math.sqrt(noise) * rng.standard_normal((4000, 64))
        noisy_T = log_distances(u_K, mean_TK, np.full(4000, noise), scatter_K)
        assert noisy_T.mean() == pytest.approx(alone, abs=0.12)
        assert alone == pytest.approx(0.5 * math.log(2), abs=1e-6)


def test_a_tasks_own_images_score_below_the_threshold_and_far_ones_above(router: PublicFrameRouter) -> None:
    state = router.fit(router.sufficient_statistics(features(24), 0))
    threshold = router.spec.constant
    assert threshold is not None
    assert np.median([router.score(f_F, state) for f_F in features(24, seed=1)]) < threshold
    assert router.score(features(1)[0] * 100, state) > threshold


def test_merged_statistics_are_those_of_all_images_in_any_order(router: PublicFrameRouter) -> None:
    parts = [features(5, seed=1), features(9, seed=2), features(2, seed=3)]
    joint = router.sufficient_statistics(torch.cat(parts), 0)
    for order in ([0, 1, 2], [2, 0, 1]):
        merged = router.merge([router.sufficient_statistics(parts[i], 0) for i in order])
        for name, value in joint.items():
            np.testing.assert_allclose(merged[name], value, atol=1e-12)


def test_a_state_takes_less_than_512_bytes() -> None:
    schema = PublicFrameRouter(PublicFrameSpec()).schema(512)
    assert sum(spec.bits / 8 for spec in schema.state.values()) == 4 * 64 + 4


def test_states_and_statistics_have_the_declared_form(router: PublicFrameRouter) -> None:
    schema = router.schema(WIDTH)
    for statistics in (router.sufficient_statistics(features(6), 0), noisy(router, features(6), 2.0)):
        for name, spec in schema.statistics.items():
            spec.check(name, np.asarray(statistics[name]))
        state = router.fit(statistics)
        assert state.keys() == schema.state.keys()
        for name, spec in schema.state.items():
            spec.check(name, np.asarray(state[name]))


# --- With noise --------------------------------------------------------------------------------------


def test_one_image_more_changes_the_sum_before_the_noise_by_at_most_one(router: PublicFrameRouter) -> None:
    images = features(8).clone()
    images[3], images[5] = images[3] * 1e6, float("nan")
    for left_out in range(8):
        rest = torch.cat([images[:left_out], images[left_out + 1 :]])
        both = [noisy(router, f_NF, 0.0)["sum_K"] for f_NF in (images, rest)]
        assert np.linalg.norm(both[0] - both[1]) <= 1 + 1e-9


def test_the_noise_has_the_stated_variance(router: PublicFrameRouter) -> None:
    """`noise` is the variance of every number of the mean: (multiplier / units)^2."""
    f_NF, multiplier = features(10), 3.0
    plain_K = router.fit(noisy(router, f_NF, 0.0))["mean_K"]
    states = [router.fit(noisy(router, f_NF, multiplier, seed=seed)) for seed in range(60)]
    errors = np.stack([state["mean_K"] - plain_K for state in states])
    stated = float(states[0]["noise"][0])
    assert stated == pytest.approx((multiplier / 10) ** 2)
    assert np.square(errors).mean() == pytest.approx(stated, rel=0.2)


def test_the_noise_of_several_holders_adds_up(router: PublicFrameRouter) -> None:
    parts = [noisy(router, features(n, seed=n), 2.0) for n in (4, 12)]
    state = router.fit(router.merge(parts))
    assert float(state["noise"][0]) == pytest.approx(2 * (2.0 / 16) ** 2)


def test_a_group_counts_once(router: PublicFrameRouter) -> None:
    f_NF = features(6)
    groups = units_of([str(i) for i in range(6)], ["a", "a", "a", "a", "b", "b"], "group", most=4)
    state = router.fit(noisy(router, f_NF, 0.0, groups))
    means = [router.frame.place(f_NF[part].double().numpy().mean(0)) for part in (slice(4), slice(4, 6))]
    # The grid of the sum without noise is that of the least noise.
    np.testing.assert_allclose(state["mean_K"], np.mean(means, axis=0), atol=PrivateSum(1.0, 0.0).grid)


def test_a_noisy_router_still_knows_its_images(router: PublicFrameRouter) -> None:
    state = router.fit(noisy(router, features(24), 2.0))
    assert router.spec.constant is not None
    assert np.mean([router.score(f_F, state) < router.spec.constant for f_F in features(24, seed=1)]) > 0.9


def test_claimed_noise_does_not_attract_every_image(router: PublicFrameRouter) -> None:
    """A state from elsewhere may claim any noise: it comes no nearer than an image's own state."""
    honest = router.fit(router.sufficient_statistics(features(24), 0))
    zero_K = np.zeros_like(honest["mean_K"])
    own = np.median([router.score(f_F, honest) for f_F in features(24, seed=1)])
    for claim in (0.01, 0.1, 1.0, 1e30):
        claimed = {"mean_K": zero_K, "noise": np.float32([claim])}
        assert router.score(features(1)[0], claimed) > own - 1
    claims = [router.score(features(1)[0], {**honest, "noise": np.float32([claim])}) for claim in (1, 1e30)]
    assert claims[0] == claims[1]


def test_it_costs_one_gaussian_mechanism() -> None:
    assert PRIVATE.mechanism(PrivacySpec(), 2.0, 24) == Mechanism(2.0)


# --- Many states, attacks, frames -----------------------------------------------------------------------


def test_many_states_together_score_bit_for_bit_like_each_alone(router: PublicFrameRouter) -> None:
    states = [router.fit(noisy(router, features(6, seed=t), 0.5 * (t % 3), seed=t)) for t in range(40)]
    stack = PublicFrameStack(router, states)
    for f_F in features(20, seed=99):
        alone = [router.score(f_F, state) for state in states]
        together = log_distances(
            router.frame.place(f_F.double().numpy()), stack.mean_TK, stack.noise_T, router.frame.scatter_K
        )
        assert alone == together.tolist()
        assert stack.contenders(f_F) == [int(np.argmin(alone))]


def test_a_state_reveals_only_its_mean(router: PublicFrameRouter) -> None:
    f_NF = features(12).double()
    centre_F, read_NF = read_by_place(router, f_NF, router.fit(router.sufficient_statistics(f_NF, 0)))
    assert torch.equal(read_NF, centre_F.expand_as(f_NF))


def test_a_scenario_names_the_shipped_frame_and_other_backbones_need_one() -> None:
    scenario = Scenario.model_validate(tiny_table())
    assert isinstance(scenario.router, PublicFrameSpec)
    assert scenario.router.frame == scenario.router.completed(BackboneSpec(name="tiny")).frame is not None
    assert Scenario.model_validate_json(scenario.canonical_json()).digest() == scenario.digest()
    unknown = PublicFrameSpec().completed(BackboneSpec(name="vit_b"))
    with pytest.raises(ScenarioError, match=r"router\.frame: expected the SHA-256"):
        PublicFrameRouter(unknown).frame  # noqa: B018
