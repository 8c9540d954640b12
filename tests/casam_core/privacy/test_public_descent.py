"""Private steps from a public start: what a filter keeps, how far steps go, and where training begins."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from casam_core.config.scenario import PrivacySpec, TrainingSpec
from casam_core.model.examples import Example
from casam_core.model.forms import Weights, build_layer, form_spec, set_weights, weights_of
from casam_core.model.layer_library import IDENTITY, JOINT, LIBRARIES, LayerLibrary
from casam_core.model.training import Learner, decode_batch, draw_instances
from casam_core.privacy.layer_steps import PrivateSteps
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.public_descent import PATH, SIGNAL, PublicDescent
from casam_core.privacy.units import single_images
from casam_core.seeding import Draws, numpy_generator
from tests.banks import picture, random_library, tiny_backbone

SPEC = TrainingSpec(instances=1)
IMAGES = 6
NAMES = ("scale_C", "shift_C")


def library(form: str = "scale_shift") -> LayerLibrary:
    return LIBRARIES.get(random_library(form), LIBRARIES.here)


def descent(noise: float, steps: int = 5) -> PublicDescent:
    return PublicDescent(library(), NAMES, clip=0.1, noise=noise, steps=steps)


def width() -> int:
    return sum(value.size for value in library().joint.values())


def examples() -> list[Example]:
    labels = np.zeros((48, 64), np.int32)
    labels[10:30, 12:36] = 1
    z_BCHW = tiny_backbone().encode([picture("polyp", seed) for seed in range(IMAGES)])
    return [Example(z_CHW, labels) for z_CHW in z_BCHW]


def trained(
    noise: float,
    form: str = "scale_shift",
    *,
    seed: int = 0,
    start: Weights | None = None,
    method: Literal["dp_sgd", "public_start"] = "public_start",
    public: LayerLibrary | None = None,
) -> Weights:
    """The weights after one round; start: in place of the library's joint layer."""
    public = public or library(form)
    layer = build_layer(form_spec(form), tiny_backbone().geometry.channels, 0)
    set_weights(layer, start or public.starts()[JOINT])
    learner = Learner(layer, tiny_backbone(), examples(), SPEC, 1e-3, numpy_generator(0))
    privacy = PrivacySpec(method=method, clip=1e-5, steps=4)  # gradients here are that small
    source, draws = NoiseSource.seeded(seed), Draws(0, ("test",))
    for _ in PrivateSteps(single_images(IMAGES), privacy, noise, source, draws, public)(learner):
        pass
    return weights_of(layer)


# --- The filter


def test_without_noise_a_gradient_stays_as_it_is() -> None:
    g_D = np.random.default_rng(0).normal(size=width())
    np.testing.assert_allclose(descent(0.0).filtered(g_D, 0.0), g_D, atol=1e-12)


def test_a_public_direction_keeps_more_than_the_others_and_more_noise_leaves_less() -> None:
    rows_KD = library().rows(NAMES)
    elsewhere_D = np.random.default_rng(0).normal(size=width())
    elsewhere_D -= elsewhere_D @ rows_KD.T @ rows_KD

    def kept(g_D: NDArray[np.float64], noise: float) -> float:
        return float(np.linalg.norm(descent(noise).filtered(g_D, noise)) / np.linalg.norm(g_D))

    for noise in (0.05, 0.5):
        assert kept(rows_KD[0], noise) > kept(rows_KD[1], noise) > kept(rows_KD[2], noise)
        assert kept(rows_KD[2], noise) > kept(elsewhere_D, noise)
    assert kept(rows_KD[0], 0.05) > kept(rows_KD[0], 0.5)
    share = SIGNAL**2 * (0.5 + 0.25 / width())
    assert kept(rows_KD[0], 0.5) == pytest.approx(share / (share + 0.25), rel=2e-3)


def test_of_all_factors_for_each_direction_the_filter_has_the_smallest_error() -> None:
    """Gradients as the library describes them: the expected error is smallest at these factors (Wiener)."""
    rng, rows_KD, noise = np.random.default_rng(1), library().rows(NAMES), 0.2
    rest = 0.25 / width()
    scale_K = SIGNAL * np.sqrt(library().shares_K)
    found = dict.fromkeys((0.7, 1.0, 1.3), 0.0)
    for _ in range(2000):
        true_D = rng.normal(size=3) * scale_K @ rows_KD + SIGNAL * rest**0.5 * rng.normal(size=width())
        noisy_D = true_D + noise * rng.normal(size=width())
        guess_D = descent(noise).filtered(noisy_D, noise)
        for factor in found:
            found[factor] += float(np.square(factor * guess_D - true_D).sum())
    assert min(found, key=found.__getitem__) == 1.0


# --- The way


def test_all_steps_together_go_as_far_as_the_public_length_allows() -> None:
    """Equal gradients at the clip, without noise: PATH lengths of the joint layer, at any number of steps."""
    g_D = np.zeros(width())
    g_D[0] = 0.1
    for steps in (1, 4, 25):
        moving = descent(0.0, steps)
        way_D = sum(moving.step(g_D) for _ in range(steps))
        assert np.linalg.norm(way_D) == pytest.approx(PATH * library().length)


def test_where_the_filter_keeps_less_the_whole_way_is_shorter() -> None:
    lengths = [descent(noise).length for noise in (0.0, 0.1, 1.0, 10.0)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == pytest.approx(PATH * library().length)
    assert lengths[-1] < 0.01 * lengths[0]


def test_a_running_mean_has_less_noise_than_its_newest_gradient() -> None:
    """The same way in four times the steps with twice the noise in each: the same signal is kept."""
    g_D = 0.1 * library().rows(NAMES)[0]
    few, many = descent(0.3, 10), descent(0.6, 40)
    one, other = (
        np.linalg.norm(np.sum([moving.step(g_D) for _ in range(moving.steps)], axis=0))
        for moving in (few, many)
    )
    assert one == pytest.approx(other, rel=0.1)


def test_gradients_that_are_mostly_noise_hardly_move_the_start() -> None:
    joint, moved = library().starts()[JOINT], trained(noise=1000.0)
    way = np.concatenate([(moved[name] - joint[name]).ravel() for name in NAMES])
    assert 0 < np.linalg.norm(way) < 0.05 * library().length


# --- Training


def test_a_round_starts_from_where_the_layer_is() -> None:
    merged = {name: value + 1 for name, value in library().starts()[IDENTITY].items()}
    later = trained(1e3, start=merged)
    for name in NAMES:
        np.testing.assert_allclose(later[name], merged[name], atol=5e-3)


def test_dp_sgd_does_not_use_a_library_that_a_scenario_has_for_other_reasons() -> None:
    """`alignment.start = "library"` is for training without noise."""
    own = library()
    other = replace(own, shares_K=own.shares_K[::-1])
    start = own.starts()[IDENTITY]
    one, same = (trained(0.1, start=start, method="dp_sgd", public=public) for public in (own, other))
    changed, changed_too = (trained(0.1, start=start, public=public) for public in (own, other))
    assert all(np.array_equal(one[name], same[name]) for name in NAMES)
    assert any(not np.array_equal(changed[name], changed_too[name]) for name in NAMES)
    assert any(not np.array_equal(one[name], changed[name]) for name in NAMES)


def test_what_a_library_shares_stays_bit_for_bit() -> None:
    moved, own = trained(0.1, "low_rank"), library("low_rank")
    assert np.array_equal(moved["down_RC"], own.shared["down_RC"])
    assert all(not np.array_equal(moved[name], own.joint[name]) for name in own.joint)


def test_equal_noise_gives_equal_bits_and_other_noise_another_layer() -> None:
    one, same, other = trained(1.0), trained(1.0), trained(1.0, seed=1)
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_with_little_noise_the_loss_of_the_training_images_falls() -> None:
    layer = build_layer(form_spec("scale_shift"), tiny_backbone().geometry.channels, 0)

    def loss(weights: Weights) -> float:
        set_weights(layer, weights)
        total = 0.0
        for number, example in enumerate(examples()):
            drawn = draw_instances(example, tiny_backbone(), SPEC, "box", numpy_generator(number))
            assert drawn is not None
            total += decode_batch(layer, tiny_backbone(), [drawn]).overlap_loss().item()
        return total

    assert loss(trained(0.01)) < loss(library().starts()[JOINT])
